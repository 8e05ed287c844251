// Assembles the page.

report.rows.forEach((row, at) => { row.at = at; });

const fillVerdict = () => {
  const { status, headline, summary, detectable, doubts } = report.verdict;
  const mark = { pass: "✓ ", fail: "✗ ", broken: "✗ ", undecided: "? ", none: "" }[status];
  const section = part("verdict");
  section.classList.add(status);
  const missing = report.rows.filter((row) => row.status !== "ok");
  // Gates on unavailable results would only repeat the reason.
  const known = new Set(missing.map(address));
  const blocking = report.gates.filter((gate) => (gate.blocks || gate.status === "fail") && !known.has(`${gate.artifact} on ${gate.device}`));
  const short = (text) => (text.length > 300 ? `${text.slice(0, 299)}…` : text);
  const reasons = [
    ...missing.slice(0, blocking.length ? 2 : 3).map((row) => make("li", {}, make("a", { href: `#artifact-${row.at}` }, short(address(row))), short(` ${row.status}: ${row.reason}`))),
    ...blocking.slice(0, missing.length ? 2 : 3).map((gate) => make("li", {}, short(`${gate.artifact} on ${gate.device}: ${gate.reason || gate.status}`), ` (${short(gate.gate)})`)),
  ];
  const more = missing.length + blocking.length - reasons.length;
  section.append(
    make("div", { class: "headline" },
      make("h2", { id: "headline", class: `is-${status}` }, mark + headline), make("p", {}, summary), detectable ? make("p", { class: "muted" }, detectable) : null,
      ...doubts.map((doubt) => make("p", { class: "is-undecided" }, doubt))),
    reasons.length ? make("ul", {}, reasons, more > 0 ? make("li", {}, `and ${more} more, below`) : null) : "");
};

const fillGates = () => {
  if (!report.gates.length) return;
  part("gates").hidden = false;
  part("gates").append(table("Gates with their confidence; blocking ones first",
    [["verdict"], ["gate", "line"], ["artifact", "line"], ["device", "line"], ["measured", "number"], ["limit", "number"], ["confidence interval", "wide"], ["McNemar p", "number"], ["reason", "wide"]],
    report.gates.map((gate) => [state(gate.status), gate.gate, gate.artifact, gate.device, gate.measured || "–", gate.limit, gate.interval, gate.p,
      gate.reason + (gate.status !== "pass" && !gate.blocks ? " (not blocking)" : "")]), "tall"));
};

const fillMade = () => {
  const section = part("made");
  section.append(facts([["recipe", report.recipe, report.document ? "#document" : ""], ...report.run,
    ["files", make("span", {}, report.links.map(([name, link]) => [linked(name, link), " "]))]]),
    make("h3", {}, "To reproduce it"),
    copyable(report.command, "command"));
  if (report.document) {
    section.append(make("details", { id: "document" }, make("summary", {}, "Resolved recipe"),
      make("pre", { class: "code", tabindex: "0", "aria-label": "Resolved recipe" }, report.document)));
  }
  if (report.source) {
    section.append(make("h3", {}, "Original model"), make("div", { class: "pair" }, facts(report.source.facts),
      report.source.measurements.length ? table("Measurements of the original model",
        [["measurement"], ["value", "number"], ["95 % interval", "number"], ["n", "number"]], report.source.measurements) : null));
  }
  if (report.notes.length) section.append(make("h3", {}, "Notes"), make("ul", {}, report.notes.map((note) => make("li", {}, note))));
};

const fillContents = () => {
  const places = [["#results", "Results"], ...(report.gates.length ? [["#gates", "Gates"]] : []), ["#devices", "Devices"], ["#made", "How it was made"]];
  part("contents").append(...places.map(([to, name]) => make("a", { href: to }, name)));
};

// A link to the details of a result opens them.
const follow = () => {
  if (location.hash === "#document" && part("document")) part("document").open = true;
  const target = /^#(artifact|row)-(\d+)$/.exec(location.hash);
  const row = target && report.rows[Number(target[2])];
  if (!row) return;
  if (target[1] === "row") resultsTable.go(row);
  else row.open();
};

fillVerdict();
fillCards();
fillContents();
const draw = fillFronts((row) => resultsTable.go(row));
const resultsTable = new ResultsTable(draw);
fillGates();
part("devices").append(...report.devices.map(deviceSection));
fillMade();
resultsTable.update();
themed(() => { for (const chart of charts) if (chart.rows) chart.show(chart.rows); });
announce("");
follow();

addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  // Following the same link again does not change the hash.
  const link = event.target.closest?.("a[href^='#']");
  if (link && link.hash === location.hash) follow();
});
root.dataset.ready = Math.round(performance.now());
