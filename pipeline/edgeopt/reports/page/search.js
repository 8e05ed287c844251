// A search: what it found, charts and table of its trials, and the recipe of the trial that was clicked.

report.rows.forEach((row, at) => { row.at = at; });

// What a trial is, as part of a recipe; a link to #artifact-N or a click in a chart leads here.
const showTrial = (row) => {
  part("trial").hidden = false;
  part("trial-title").textContent = `${row.variant}, ${row.format}`;
  part("trial").replaceChildren(part("trial-title"),
    facts([["status", row.status], ...report.columns.map((column, at) => [column.title, row.cells[at]?.[0] ?? "–"]),
      ...(row.over ? [["exceeds", row.over]] : []), ...(row.reason ? [["reason", row.reason]] : [])]),
    make("h3", {}, "As part of a recipe"),
    make("pre", { class: "code", tabindex: "0", "aria-label": `${row.variant} as part of a recipe` }, row.snippet));
};
const go = (row) => { resultsTable.go(row); showTrial(row); };

const numbers = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const drawn = report.costs.map(({ name, bytes }) => {
  COSTS[name] = { title: name, axis: name, text: bytes ? sizeText : (value) => numbers.format(value), bytes };
  return new Front({ cost: name, choose: go, controls: "" });
});
part("fronts").append(...drawn.map((chart) => chart.figure), make("p", { class: "hint", id: "fronts-hint" },
  "Every point is a trial, measured on the selection data. Hollow: over a limit; an arrow leads to a point beyond the axes. "
  + "Click a point to see the trial as part of a recipe; with the keyboard, focus a chart, select a point with the arrow keys and press Enter."));
const resultsTable = new ResultsTable((rows) => { for (const chart of drawn) chart.show(rows); });

part("verdict").classList.add(report.status);
part("verdict").append(make("div", { class: "headline" }, make("h2", { id: "headline", class: `is-${report.status}` }, report.headline)));
if (report.found.length) {
  part("found").hidden = false;
  part("found").append(table("Drops on the data of the selection and on data that it never saw; the difference is its optimism",
    [["variant"], ["trial"], ["format"], ["gates"], ["metric"], ["selection", "number"], ["evaluation", "number"], ["optimism", "number"]],
    report.found.flatMap((one) => (one.drops.length ? one.drops : [["–", "–", "–", "–"]]).map((drop) => [
      linked(one.variant, one.link), one.trial, linked(one.format, one.report), state(one.passed), ...drop]))));
}
part("made").append(facts(report.facts), make("h3", {}, "What varied"), table("Dimensions of the space", [["name"], ["values", "wide"]], report.dimensions));
if (report.notes.length) part("made").append(make("h3", {}, "Notes"), make("ul", {}, report.notes.map((note) => make("li", {}, note))));
resultsTable.update();
themed(() => { for (const chart of charts) if (chart.rows) chart.show(chart.rows); });
announce("");

const follow = () => {
  const target = /^#artifact-(\d+)$/.exec(location.hash);
  const row = target && report.rows[Number(target[1])];
  if (!row) return;
  showTrial(row);
  part("trial").focus();
};
follow();
addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  // Following the same link again does not change the hash.
  const link = event.target.closest?.("a[href^='#artifact-']");
  if (link && link.hash === location.hash) follow();
});
root.dataset.ready = Math.round(performance.now());
