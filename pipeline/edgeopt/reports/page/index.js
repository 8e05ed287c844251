// All runs of a folder: the selection, the three charts, and the tables.

const select = (id, options) => make("select", { id }, options.map(([value, name]) => make("option", { value }, shorten(name))));
const fill = (field, options) => {
  field.replaceChildren(...select("", options).children);
  field.selectedIndex = 0;
};

const recipes = report.recipes;
const fields = {
  recipe: select("recipe", recipes.map((recipe, at) => [at, `${recipe.name} (${recipe.runs.length} ${recipe.runs.length === 1 ? "run" : "runs"})`])),
  device: select("device", []),
  variant: select("variant", []),
  format: select("format", []),
};

const shown = {};

const choices = () => {
  const recipe = recipes[Number(fields.recipe.value)];
  const previous = { ...shown };
  fill(fields.device, recipe.devices.map((name, at) => [at, name]));
  fill(fields.variant, [["", "all"], ...distinct(recipe.artifacts.map(([variant]) => variant)).map((name) => [name, name])]);
  fill(fields.format, [["", "all"], ...distinct(recipe.artifacts.map(([, format]) => format)).map((name) => [name, name])]);
  for (const key of ["variant", "format"]) {
    if ([...fields[key].options].some((option) => option.value === previous[key])) fields[key].value = previous[key];
  }
};

const view = () => {
  for (const key of ["variant", "format"]) shown[key] = fields[key].value;
  const recipe = recipes[Number(fields.recipe.value)];
  const artifacts = recipe.artifacts.map((_, at) => at).filter((at) => (!shown.variant || recipe.artifacts[at][0] === shown.variant)
    && (!shown.format || recipe.artifacts[at][1] === shown.format));
  return { recipe, device: Number(fields.device.value), artifacts };
};

const go = (run) => {
  const row = document.getElementById(`run-${run.at}`);
  for (const other of document.querySelectorAll(".found")) other.classList.remove("found");
  row.classList.add("found");
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "center" });
  announce(`Run of ${timeOf(run)}`);
};

const scored = (value, span) => scoreText(value, span, view().recipe.share);
const lines = [
  // No line joins accuracies on different samples, or latencies on different processors.
  new Line({ id: "accuracy", title: "Accuracy", place: 2, text: scored, breaks: (one, other) => one.run.data !== other.run.data, choose: go }),
  new Line({ id: "size", title: "Size", place: 3, text: sizeText, breaks: () => false, choose: go }),
  new Line({ id: "latency", title: "Latency, p50", place: 4, text: timeText, breaks: (one, other) => one.point[5] !== other.point[5], choose: go }),
];

const verdict = (run) => make("span", { class: `state is-${run.status}` }, `${{ pass: "✓ ", fail: "✗ ", broken: "✗ ", undecided: "? ", none: "" }[run.status]}${run.headline}`);

const fillRuns = ({ recipe }) => {
  const runs = [...recipe.runs].reverse();
  const box = table(`Runs of ${recipe.name}, newest first`,
    [["started", "line"], ["verdict"], ["measured", "number"], ["gates failed", "number"], ["samples", "number"], ["duration", "number"], ["edgeopt"], ["folder"]],
    runs.map((run) => [run.link ? make("a", { href: run.link }, timeOf(run)) : timeOf(run), verdict(run), `${run.ok} of ${run.of}`,
      run.gates ? `${run.failed} of ${run.gates}` : "", run.samples.toLocaleString("en"), `${run.seconds} s`, run.edgeopt, run.folder]), "tall");
  [...box.querySelectorAll("tbody tr")].forEach((row, at) => {
    row.id = `run-${runs[at].at}`;
    row.tabIndex = -1;
  });
  part("runs").replaceChildren(part("runs-title"), box);
};

const difference = (now, then, text) => (now === null || then === null || now === undefined || then === undefined ? ""
  : now === then ? "same" : `${now > then ? "+" : "−"}${text(Math.abs(now - then))}`);

const fillNewest = ({ recipe, device, artifacts }) => {
  const newest = recipe.runs.at(-1);
  const before = recipe.runs.at(-2);
  const of = (run, at) => run?.points.find((one) => one[0] === at && one[1] === device);
  const rows = artifacts.filter((at) => of(newest, at)).map((at) => {
    const [now, then] = [of(newest, at), of(before, at)];
    const same = before && before.data === newest.data;
    const one = (place, text) => (now[place] === null ? "–" : text(now[place], 0));
    return [recipe.artifacts[at].join("."), one(2, scored), same ? difference(now[2], then?.[2], (change) => (recipe.share ? `${(100 * change).toFixed(2)} pt` : timeless(change))) : before ? "other data" : "",
      now[3] === null ? "–" : `${now[3].toLocaleString("en")} B`, difference(now[3], then?.[3], (change) => `${change.toLocaleString("en")} B`), one(4, timeText)];
  });
  part("newest").replaceChildren(part("newest-title"), table(
    `${timeOf(newest)} on ${recipe.devices[device] ?? "no device"}${before ? `, against ${timeOf(before)}` : ""}. Latencies of two runs share no clock and are not subtracted`,
    [["artifact"], [recipe.metric, "number"], ["change", "number"], ["size", "number"], ["change", "number"], ["p50", "number"]], rows, "tall"));
};
const timeless = (value) => String(Number(value.toPrecision(3)));

const update = () => {
  const now = view();
  lines[0].title.textContent = now.recipe.metric;
  for (const line of lines) line.show(now);
  fillNewest(now);
  fillRuns(now);
  announce(`${now.recipe.runs.length} runs of ${now.recipe.name}, ${now.artifacts.length} artifacts`);
};

recipes.forEach((recipe, number) => recipe.runs.forEach((run, at) => { run.at = `${number}-${at}`; }));
if (recipes.length) {
  part("choice").append(make("div", { class: "filters bare", role: "search", "aria-label": "Selection" },
    Object.entries(fields).map(([name, field]) => labelled(name, field))));
  fields.recipe.addEventListener("input", () => { choices(); update(); });
  for (const key of ["device", "variant", "format"]) fields[key].addEventListener("input", update);
  part("charts").append(...lines.map((line) => line.figure), make("p", { class: "hint", id: "charts-hint" },
    "Each step to the right is one run. Lines are interrupted where the evaluation data (accuracy) or the processor (latency) changed: "
    + "the numbers on both sides are not comparable. Click a point to go to its run. The tables contain the same numbers."));
  choices();
  themed(update);
} else {
  part("choice").append(make("p", {}, "This folder contains no runs."));
  for (const id of ["charts", "newest", "runs"]) part(id).hidden = true;
  themed(() => {});
}
if (report.damaged.length) {
  part("damaged").hidden = false;
  part("damaged").append(table("They are not included above", [["folder"], ["reason", "wide"]], report.damaged));
}
announce("");
root.dataset.ready = Math.round(performance.now());
