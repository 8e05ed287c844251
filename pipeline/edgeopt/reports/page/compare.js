// The comparison of several runs: a card for each, the charts with a colour for each, and one table.

report.rows.forEach((row, at) => { row.at = at; });

const runCard = (run, at) => make("article", { class: `card ship ${{ pass: "ship", fail: "none", broken: "none" }[run.status] ?? "unjudged"}`, "aria-labelledby": `run-${at}` },
  make("h2", { id: `run-${at}` }, linked(run.name, run.link), at ? "" : " (reference)"),
  make("p", {}, make("span", { class: `state is-${run.status}` }, run.headline)),
  facts(run.facts));

part("runs").append(...report.runs.map(runCard));
const draw = fillFronts((row) => resultsTable.go(row));
const resultsTable = new ResultsTable(draw);
const missing = report.rows.filter((row) => row.status !== "ok");
if (missing.length) {
  part("missing").hidden = false;
  part("missing").append(table("Artifacts without measurements", [["artifact", "line"], ["run"], ["device"], ["status"], ["reason", "wide"]],
    missing.map((row) => [row.variant, row.format, row.device, state(row.status), row.reason])));
}
part("notes").append(make("ul", {}, report.notes.map((note) => make("li", {}, note))));
resultsTable.update();
themed(() => { for (const chart of charts) if (chart.rows) chart.show(chart.rows); });
announce("");
root.dataset.ready = Math.round(performance.now());
