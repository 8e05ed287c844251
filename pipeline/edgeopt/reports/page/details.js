// Details of each artifact on each device, built when they are opened: a large report has hundreds of them.

const within = (row) => {
  const belongs = (one) => one.variant === row.variant && one.format === row.format;
  const search = report.searches.find(belongs);
  const file = report.files.find(belongs);
  const measured = row.measurements.length ? table(`Measurements of ${address(row)}`,
    [["measurement"], ["value", "number"], ["95 % interval", "number"], ["n", "number"]], row.measurements) : null;
  return [
    row.reason ? make("p", {}, state(row.status), " ", row.reason) : null,
    row.notes.length ? make("ul", {}, row.notes.map((note) => make("li", {}, note))) : null,
    make("div", { class: "pair broad" }, make("div", { class: "stack" },
      row.facts.length ? facts(row.facts) : null,
      hops(row),
      outputsOf(row),
      row.diagnose ? make("p", { class: "muted" }, "To find the layers that lose accuracy: ", make("code", {}, row.diagnose)) : null),
    measured),
    row.spread ? latencyOf(row) : null,
    row.tasks.map((found) => taskOf(found, row)),
    row.flips ? flips(row) : null,
    row.classes ? make("div", { class: "pair uneven" }, classes(row), confusions(row)) : null,
    search && search.layers.length ? sensitivity(search) : null,
    search && search.trials.length ? trials(search) : null,
    file ? bytes(file) : null,
    file && file.graph.length ? graphOf(row, file) : null,
    row.layers ? layers(row) : null,
    make("p", {}, make("a", { href: `#row-${row.at}` }, "Back to the table")),
  ];
};

const hops = (row) => (row.hops.length ? table(
  `Change of the outputs of ${address(row)} in each step`,
  [["step"], ["to"], ["SNR", "number"], ["largest error", "number"], ["agreement", "number"], [""]],
  row.hops.flatMap((hop) => [[hop.stage, hop.produced, hop.snr, hop.error, hop.agreement,
    hop.status === "ok" ? (hop.lossless ? "lossless" : "") : make("span", {}, state(hop.status), hop.reason ? `: ${hop.reason}` : "")],
  ...hop.outputs.map((one) => [`output ${one.name}`, "", one.snr, one.error, one.agreement,
    one.status === "ok" ? "" : state(one.status)])])) : null);

const layers = (row) => {
  const { titles, rows, count } = row.layers;
  const kinds = titles.map((_, at) => (rows.some((cells) => typeof cells[at] === "number") ? "number" : ""));
  const scope = rows.length < count ? `, ${rows.length} of ${count}; report.json contains all` : "";
  return table(`Operators of ${address(row)}${scope}`, titles.map((title, at) => [title, kinds[at]]), rows, "tall");
};

const summaryOf = (row) => {
  const values = [row.accuracy && `${report.metric.name} ${row.accuracy.text}`, row.size && row.size.text,
    row.latency && `${row.latency.text}${row.estimated ? " estimated" : ""}`];
  return make("summary", {}, make("b", {}, `${row.variant} · ${row.format}`), state(row.status), " ", state(row.gate), " ",
    make("span", { class: "muted" }, values.filter(Boolean).join(" · ")));
};

const detailsOf = (row) => {
  const inside = make("div", { class: "inside" });
  const details = make("details", { id: `artifact-${row.at}` }, summaryOf(row), inside);
  const fill = () => { if (!inside.firstChild) inside.append(...within(row).flat().filter(Boolean)); };
  details.addEventListener("toggle", () => { if (details.open) fill(); });
  row.open = () => { fill(); details.open = true; details.querySelector("summary").focus(); };
  return details;
};

// Latency distributions of several results on one scale: a line from minimum to maximum, a bar from the median
// to the 90th percentile, a tick at the 99th.
const strips = (caption, rows) => {
  const values = rows.flatMap((row) => row.spread.map((point) => point.value));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const logarithmic = low > 0 && high / low > 20;
  const scaled = (value) => (logarithmic ? Math.log(value / low) / Math.log(high / low) : value / (high || 1)) * 198 + 1;
  const strip = (row) => {
    const [first, p50, p90, p99, last] = row.spread.map((point) => scaled(point.value));
    return drawing("svg", { viewBox: "0 0 200 14", class: "spread", "aria-hidden": "true", preserveAspectRatio: "none" },
      drawing("line", { x1: first, x2: last, y1: 7, y2: 7 }),
      drawing("rect", { x: p50, width: Math.max(1.5, p90 - p50), y: 2, height: 10 }),
      drawing("line", { x1: p99, x2: p99, y1: 3, y2: 11 }));
  };
  return table(`${caption}${logarithmic ? ", on a logarithmic scale" : ""}: line min to max, bar p50 to p90, tick p99`,
    [["artifact", "line"], ["distribution", "wide"], ["min", "number"], ["p50", "number"], ["p90", "number"], ["p99", "number"], ["max", "number"]],
    rows.map((row) => [`${row.variant}.${row.format}`, strip(row), ...row.spread.map((point) => point.text)]));
};

const distribution = (rows) => {
  const timed = rows.filter((row) => row.spread);
  if (!timed.length) return null;
  return make("details", {}, make("summary", {}, "Latency distribution"),
    make("div", { class: "inside" }, strips("Latency distribution", timed)));
};

// Together with the float artifact of the same format, with which it is compared.
const latencyOf = (row) => strips("Latency distribution", report.rows.filter((other) => other.spread
  && other.device === row.device && other.format === row.format && (other === row || other.variant === "float")));

const deviceSection = (device, at) => {
  const rows = report.rows.filter((row) => row.device === device.name);
  const all = make("button", { type: "button", class: "quiet" }, "Open all");
  const list = rows.map(detailsOf);
  all.addEventListener("click", () => {
    const closed = list.some((details) => !details.open);
    for (const details of list) details.open = closed;
    all.textContent = closed ? "Close all" : "Open all";
  });
  return make("section", { class: "card", id: `device-${at}`, "aria-labelledby": `device-${at}-title` },
    make("div", { class: "titled" }, make("h2", { id: `device-${at}-title` }, device.name), all),
    list, distribution(rows),
    device.environment.length ? make("details", {}, make("summary", {}, "Environment"), make("div", { class: "inside" }, facts(device.environment)))
      : make("p", { class: "muted" }, "Its environment is unknown."));
};
