// Charts of the decisions of an artifact beside those of the original model. They follow the stylesheet.

const PLOT = { width: 360, height: 210, left: 46, right: 8, top: 8, bottom: 36 };
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const short = (value) => (Math.abs(value) >= 1e4 ? compact.format(value) : Number(value.toPrecision(3)).toString());

// Axes for the given extent, and the functions that place values on them.
const axes = ([low, high], [bottom, top], [xTitle, yTitle], ticks = even(low, high, 1)) => {
  const { width, height, left, right, top: above, bottom: below } = PLOT;
  const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
  const y = (value) => height - below - ((value - bottom) / (top - bottom || 1)) * (height - above - below);
  const parts = [
    ...even(bottom, top, 1).flatMap((value) => [drawing("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
      drawing("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, short(value))]),
    ...ticks.flatMap((value) => [drawing("line", { x1: x(value), x2: x(value), y1: height - below, y2: height - below + 4, class: "grid" }),
      drawing("text", { x: x(value), y: height - below + 16, "text-anchor": x(value) > width - 24 ? "end" : "middle" }, short(value))]),
    drawing("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle", class: "title" }, xTitle),
    ...(yTitle ? [drawing("text", { x: 11, y: (height - below + above) / 2, "text-anchor": "middle", class: "title", transform: `rotate(-90 11 ${(height - below + above) / 2})` }, yTitle)] : []),
  ];
  return { x, y, parts };
};

const figureOf = (title, label, parts, keys, note = "", dots = false) => make("figure", { class: "chart" },
  make("figcaption", {}, make("span", {}, title), make("span", { class: "keys" }, keys.map(([name, text]) => make("span", {},
    drawing("svg", { viewBox: "0 0 20 10", class: `key plotted ${name}`, "aria-hidden": "true" },
      dots ? drawing("circle", { cx: 12, cy: 5, r: 3.5, class: name }) : drawing("line", { x1: 0, x2: 20, y1: 5, y2: 5 })), text)))),
  drawing("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, class: "plotted", role: "img", "aria-label": label }, ...parts),
  note ? make("p", { class: "hint" }, note) : null);

const KEYS = [["before", "original model"], ["after", "this file"]];
const extremes = (values) => {
  const known = values.filter((value) => value !== null);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
};

// A curve through values over the same places, or a dot for each sample.
const plotOf = (chart) => {
  const line = chart.style === "line";
  const all = [...chart.before, ...chart.after];
  const unit = line && all.every((value) => value === null || (value >= 0 && value <= 1));
  // Curves close to 1 would coincide with the upper edge.
  const lowest = extremes(all)[0];
  const reach = unit ? [lowest > 0.6 ? Math.floor(lowest * 10) / 10 : 0, 1] : extremes(all);
  const { x, y, parts } = axes(unit ? [0, 1] : extremes(chart.x), reach, chart.titles);
  const series = (values, name) => {
    const places = values.flatMap((value, at) => (value === null || chart.x[at] === null ? [] : [[x(chart.x[at]), y(value)]]));
    return line ? [drawing("polyline", { points: places.map((place) => place.map((value) => value.toFixed(1)).join(",")).join(" "), class: name })]
      : places.map(([cx, cy]) => drawing("circle", { cx: cx.toFixed(1), cy: cy.toFixed(1), r: 2.6, class: name }));
  };
  const largest = Math.max(0, ...chart.before.map((value, at) => (value === null || chart.after[at] === null ? 0 : Math.abs(value - chart.after[at]))));
  return figureOf(chart.title, `${chart.title}: ${chart.titles[1]} against ${chart.titles[0]}; the largest difference between original model and this file is ${short(largest)}`,
    [...parts, ...series(chart.before, "before"), ...series(chart.after, "after")], KEYS, "", !line);
};

// Bars for this file, and steps for the original model.
const histogramOf = (chart) => {
  const most = Math.max(1, ...chart.after, ...(chart.before ?? []));
  const edges = chart.edges.map((edge) => edge ?? 0);
  const whole = edges.every((edge, at) => edge === edges[0] + at && Math.abs(edge % 1) === 0.5);
  const numbers = whole ? chart.after.map((_, at) => edges[at] + 0.5).filter((_, at, all) => at % Math.ceil(all.length / 10) === 0) : undefined;
  const { x, y, parts } = axes([edges[0], edges.at(-1)], [0, most], [chart.x, "count"], numbers);
  const bars = chart.after.map((number, at) => drawing("rect", { x: x(edges[at]) + 0.5, width: Math.max(0.5, x(edges[at + 1]) - x(edges[at]) - 1), y: y(number), height: y(0) - y(number), class: "after" }));
  const steps = chart.before?.flatMap((number, at) => [[x(edges[at]), y(number)], [x(edges[at + 1]), y(number)]]) ?? [];
  const total = chart.after.reduce((sum, number) => sum + number, 0);
  return figureOf(chart.title, `${chart.title}: ${count(total)} values from ${short(edges[0])} to ${short(edges.at(-1))}; most in one bar ${count(most)}`,
    [...parts, ...bars, ...(steps.length ? [drawing("polyline", { points: steps.map((place) => place.map((value) => value.toFixed(1)).join(",")).join(" "), class: "before" })] : [])],
    chart.before ? KEYS : KEYS.slice(1), chart.outside ? `${count(chart.outside)} values are not finite or outside of the chart.` : "");
};

const classesOf = (chart) => {
  const scope = chart.rows.length < chart.count ? `, ${chart.rows.length} of ${chart.count}; report.json contains more` : "";
  const most = Math.max(...chart.rows.map((row) => Math.abs(row[4] ?? 0))) || 1;
  return table(`${chart.title} by class, largest loss first${scope}`,
    [["class"], [chart.counted, "number"], ["original", "number"], ["this file", "number"], ["", "graph"]],
    chart.rows.map(([label, n, before, after, change]) => [nameOf(label), count(n), before, after, change ? bar(change / most) : ""]), "tall");
};

const chartOf = (chart) => ({ plot: plotOf, histogram: histogramOf, by_class: classesOf })[chart.kind](chart);

// What became of the decisions of a task: how many changed, the charts, and the samples.
const taskOf = (found, row) => {
  const of = found.head ? ` of ${found.head}` : "";
  const worse = found.worse === null ? "" : `, ${found.worse ? count(found.worse) : "none"} of them farther from the label than before`;
  return make("section", { class: "stack", "aria-label": `Decisions${of} on ${address(row)}` },
    make("h3", {}, `Decisions${of}`),
    make("p", {}, found.changed ? `${count(found.changed)} of ${count(report.samples)} samples changed${worse}.` : "No sample changed."),
    found.charts.length ? make("div", { class: "charts" }, found.charts.map(chartOf)) : null,
    samplesOf(found, row));
};

const outputsOf = (row) => (row.outputs.rows.length ? table(`Outputs of ${address(row)}, compared with the original model`,
  [["output"], ...row.outputs.titles.map((title) => [title, "number"]), ["parts that died", "wide"]], row.outputs.rows) : null);
