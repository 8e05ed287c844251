// Putting the page together.

report.rows.forEach((row, at) => { row.at = at; });

const fillVerdict = () => {
  const { status, headline, told, detectable } = report.verdict;
  const mark = { pass: "✓ ", fail: "✗ ", broken: "✗ ", undecided: "? ", none: "" }[status];
  const section = part("verdict");
  section.classList.add(status);
  const missing = report.rows.filter((row) => row.status !== "ok");
  // A gate on what is missing says the same once more.
  const known = new Set(missing.map(address));
  const stopping = report.gates.filter((gate) => (gate.blocks || gate.status === "fail") && !known.has(`${gate.artifact} on ${gate.device}`));
  const short = (text) => (text.length > 300 ? `${text.slice(0, 299)}…` : text);
  const reasons = [
    ...missing.slice(0, stopping.length ? 2 : 3).map((row) => make("li", {}, make("a", { href: `#artifact-${row.at}` }, short(address(row))), short(` ${row.status}: ${row.reason}`))),
    ...stopping.slice(0, missing.length ? 2 : 3).map((gate) => make("li", {}, short(`${gate.artifact} on ${gate.device}: ${gate.reason || gate.status}`), ` (${short(gate.gate)})`)),
  ];
  const more = missing.length + stopping.length - reasons.length;
  section.append(
    make("div", { class: "headline" },
      make("h2", { id: "headline", class: `is-${status}` }, mark + headline), make("p", {}, told), detectable ? make("p", { class: "muted" }, detectable) : null),
    reasons.length ? make("ul", {}, reasons, more > 0 ? make("li", {}, `and ${more} more, below`) : null) : "");
};

const fillGates = () => {
  if (!report.gates.length) return;
  part("gates").hidden = false;
  part("gates").append(table("What each gate measured, and how sure it is; those that stop come first",
    [["verdict"], ["gate", "line"], ["artifact", "line"], ["device", "line"], ["measured", "number"], ["limit", "number"], ["how sure", "wide"], ["McNemar p", "number"], ["why", "wide"]],
    report.gates.map((gate) => [state(gate.status), gate.gate, gate.artifact, gate.device, gate.measured || "–", gate.limit, gate.sure, gate.p,
      gate.reason + (gate.status !== "pass" && !gate.blocks ? " (does not stop)" : "")]), "tall"));
};

const fillMade = () => {
  const section = part("made");
  const copy = make("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(report.command); say("Copied"); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(part("command")); say("Selected: copy it with the keyboard"); }
  });
  section.append(facts([["recipe", report.recipe], ...report.run]),
    make("h3", {}, "To make it again"),
    make("div", { class: "command" }, make("code", { id: "command" }, report.command), copy));
  if (report.document) {
    section.append(make("details", {}, make("summary", {}, "The recipe as it was carried out"),
      make("pre", { class: "code", tabindex: "0", "aria-label": "The recipe as it was carried out" }, report.document)));
  }
  if (report.source) {
    section.append(make("h3", {}, "The untouched model"), make("div", { class: "pair" }, facts(report.source.facts),
      report.source.measurements.length ? table("Measurements of the untouched model",
        [["measurement"], ["value", "number"], ["95 % interval", "number"], ["n", "number"]], report.source.measurements) : null));
  }
  if (report.notes.length) section.append(make("h3", {}, "Notes"), make("ul", {}, report.notes.map((note) => make("li", {}, note))));
};

const fillContents = () => {
  const places = [["#branches", "Branches"], ...(report.gates.length ? [["#gates", "Gates"]] : []), ["#devices", "Devices"], ["#made", "How it was made"]];
  part("contents").append(...places.map(([to, name]) => make("a", { href: to }, name)));
};

const fillFronts = (choose) => {
  const metric = report.metric.name;
  const timed = distinct(report.rows.filter((row) => row.latency && row.accuracy).map((row) => row.device));
  const device = make("select", { id: "timed" }, timed.map((name) => make("option", { value: name }, shorten(name))));
  const tried = make("input", { type: "checkbox", id: "trials" });
  const size = new Front({ id: "size-front", title: `${metric} against size`, cost: "size", unit: "size of the file", choose,
    controls: report.searches.length && report.metric.source !== null ? labelled("what searches tried", tried) : "" });
  const latency = new Front({ id: "latency-front", title: `${metric} against latency`, cost: "latency", unit: "latency", choose,
    controls: timed.length ? labelled("on", device) : "" });
  // Times of one device say nothing of another: one device at a time.
  const timing = (rows) => latency.show(rows.filter((row) => row.device === device.value));
  device.addEventListener("change", () => timing(shownRows));
  tried.addEventListener("change", () => { size.trials = tried.checked; size.show(size.rows); });
  part("fronts").append(size.figure, latency.figure, make("p", { class: "hint", id: "fronts-hint" },
    "No branch beats those on the front. Hollow: a gate failed or is undecided. A click on a point goes to its row; on the keyboard, focus a "
    + "chart, choose a point with the arrow keys and press Enter. The table has the same numbers."));
  let shownRows = [];
  return (rows) => {
    shownRows = rows;
    if (chosen.device && timed.includes(chosen.device)) device.value = chosen.device;
    size.show(rows);
    timing(rows);
  };
};

// A link to a branch's details opens them.
const follow = () => {
  const found = /^#(artifact|row)-(\d+)$/.exec(location.hash);
  const row = found && report.rows[Number(found[2])];
  if (!row) return;
  if (found[1] === "row") branches.go(row);
  else row.open();
};

fillVerdict();
fillContents();
const draw = fillFronts((row) => branches.go(row));
const branches = new Branches(draw);
fillGates();
part("devices").append(...report.devices.map(deviceSection));
fillMade();
branches.update();
themed(() => { for (const chart of charts) if (chart.rows) chart.show(chart.rows); });
say("");
follow();

addEventListener("hashchange", follow);
document.addEventListener("click", (event) => {
  // The same link twice changes no hash.
  const link = event.target.closest?.("a[href^='#']");
  if (link && link.hash === location.hash) follow();
});
root.dataset.ready = Math.round(performance.now());
