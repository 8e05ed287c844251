// The Pareto charts. They show the results that the table shows; shape and colour both encode the format.

const shapes = ["circle", "rect", "triangle", "rectRot", "star", "crossRot"];
const formats = distinct(report.rows.map((row) => row.format));
const charts = [];

// Pareto front: the points that no other point beats in both cost and accuracy.
const front = (points) => {
  const sign = report.metric.higher ? 1 : -1;
  const optimal = [];
  let best = -Infinity;
  for (const point of [...points].sort((a, b) => a.x - b.x || sign * (b.y - a.y))) {
    if (sign * point.y > best) { optimal.push(point); best = sign * point.y; }
  }
  return optimal;
};

// Results with equal values, such as one file on four devices, share one point.
const gather = (rows, cost) => {
  const points = new Map();
  for (const row of rows) {
    if (!row.accuracy || !row[cost]) continue;
    const place = `${row.format}\n${row[cost].value}\n${row.accuracy.value}\n${row.gate}`;
    if (!points.has(place)) points.set(place, { x: row[cost].value, y: row.accuracy.value, rows: [] });
    points.get(place).rows.push(row);
  }
  return [...points.values()];
};

// The legend shows every shape filled, even if the first point of the format is hollow.
const legend = (chart) => Chart.defaults.plugins.legend.labels.generateLabels(chart).map((item) => (
  { ...item, fillStyle: item.strokeStyle, lineDash: chart.data.datasets[item.datasetIndex].borderDash ?? [] }));

const COSTS = {
  size: { title: "size", axis: "file size", text: sizeText, bytes: true },
  latency: { title: "latency", axis: "latency", text: timeText },
  memory: { title: "RAM", axis: "RAM of the model", text: sizeText, bytes: true },
  flash: { title: "flash", axis: "flash", text: sizeText, bytes: true },
};

// The range that the points which may be shipped need, and others that are not far from it: a result that lost half
// of its accuracy would leave no room for the rest.
const reach = (needed, others, logarithmic) => {
  const to = logarithmic ? Math.log : (value) => value;
  const from = logarithmic ? Math.exp : (value) => value;
  const [low, high] = [Math.min(...needed), Math.max(...needed)].map(to);
  const span = high - low || Math.abs(high) * 0.1 || 0.1;
  const near = others.map(to).filter((value) => value >= low - span && value <= high + span);
  return [Math.min(low, ...near), Math.max(high, ...near)].map(from);
};
const limited = (value, [low, high]) => Math.min(high, Math.max(low, value));

const namesOf = (point) => {
  const names = distinct(point.rows.map((row) => row.variant));
  const text = names.length > 1 ? `${names[0]} + ${names.length - 1}` : names[0];
  return text.length > 22 ? `${text.slice(0, 21)}…` : text;
};

// Draws intervals behind the points, and names beside them where there is room.
const INTERVALS = 30;
const annotations = (front) => ({
  id: "annotations",
  beforeDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales: { x, y } } = chart;
    const active = new Set(chart.getActiveElements().map((hit) => chart.data.datasets[hit.datasetIndex].data[hit.index]));
    ctx.save();
    ctx.beginPath();
    ctx.rect(area.left, area.top, area.width, area.height);
    ctx.clip();
    ctx.lineWidth = 1.5;
    ctx.strokeStyle = colour("muted");
    for (const point of front.points.filter((one) => !one.off && (front.points.length <= INTERVALS || active.has(one)))) {
      const [across, up] = [x.getPixelForValue(point.x), y.getPixelForValue(point.y)];
      ctx.beginPath();
      if (point.rows[0].accuracy.ends) {
        const [low, high] = point.rows[0].accuracy.ends.map((value) => y.getPixelForValue(value));
        ctx.moveTo(across, low); ctx.lineTo(across, high);
        for (const end of [low, high]) { ctx.moveTo(across - 4, end); ctx.lineTo(across + 4, end); }
      }
      if (point.rows[0][front.cost].ends) {
        const [low, high] = point.rows[0][front.cost].ends.map((value) => x.getPixelForValue(value));
        ctx.moveTo(low, up); ctx.lineTo(high, up);
      }
      ctx.stroke();
    }
    ctx.restore();
  },
  afterDatasetsDraw(chart) {
    const { ctx, chartArea: area, scales: { x, y } } = chart;
    ctx.save();
    ctx.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    ctx.fillStyle = colour("text");
    ctx.strokeStyle = colour("card");
    ctx.lineWidth = 3;
    ctx.lineJoin = "round";
    ctx.textBaseline = "middle";
    const ordered = [...front.points.filter((point) => point.off), ...front.points.filter((point) => !point.off)];
    const places = ordered.map((point) => [x.getPixelForValue(point.x), y.getPixelForValue(point.y), point]);
    const taken = places.map(([across, up]) => [across - 6, up - 6, across + 6, up + 6]);
    const free = (box) => box[0] >= area.left && box[2] <= area.right && box[1] >= area.top && box[3] <= area.bottom
      && !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
    front.labels = [];
    for (const [across, up, point] of places) {
      const text = point.off ? `${namesOf(point)} ${point.off}` : namesOf(point);
      const { width } = ctx.measureText(text);
      const corners = [[across + 9, up - 6], [across - 9 - width, up - 6], [across - width / 2, up - 22], [across - width / 2, up + 10], [across - 4, up - 22], [across + 4 - width, up - 22]];
      const found = corners.find(([left, top]) => free([left, top, left + width, top + 12]));
      if (!found) continue;
      taken.push([found[0], found[1], found[0] + width, found[1] + 12]);
      ctx.strokeText(text, found[0], found[1] + 6);
      ctx.fillText(text, found[0], found[1] + 6);
      front.labels.push(text);
    }
    front.canvas.dataset.labels = front.labels.join("\n");
    ctx.restore();
  },
});

const lines = (point) => {
  const shown = point.rows.slice(0, 4).map(address);
  return point.rows.length > 4 ? [...shown, `and ${point.rows.length - 4} more`] : shown;
};
class Front {
  // cost: a key of COSTS. choose: called with the row of a selected point.
  constructor({ cost, choose, controls }) {
    const title = `${report.metric.name} against ${COSTS[cost].title}`;
    Object.assign(this, { cost, choose, title, at: -1, trials: false, labels: [] });
    this.canvas = make("canvas", {
      id: `${cost}-front`, tabindex: "0", role: "application", "aria-roledescription": "chart", "aria-describedby": "fronts-hint",
    });
    this.empty = make("p", { class: "empty", hidden: true });
    this.plot = make("div", { class: "plot" }, this.canvas);
    this.figure = make("figure", { class: "card" },
      make("figcaption", {}, make("h2", {}, title), controls), this.plot, this.empty);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.look(-1));
    charts.push(this);
  }

  datasets(points, left, right) {
    const series = formats.map((format, index) => {
      const own = points.filter((point) => point.rows[0].format === format);
      const ink = colour(`series-${index % 6}`);
      // Beyond six formats, colours repeat with another shape.
      const shape = (index + Math.floor(index / 6)) % shapes.length;
      const strokes = shape > 3;
      return {
        label: shorten(format), data: own, pointStyle: shapes[shape], borderColor: ink, borderWidth: 2,
        backgroundColor: own.map((point) => (["fail", "undecided"].includes(point.rows[0].gate) ? colour("card") : ink)),
        hoverBackgroundColor: ink, hoverBorderColor: colour("text"), radius: strokes ? 7 : 6, hoverRadius: 9, hitRadius: 8, order: 1, clip: 8,
      };
    }).filter((set) => set.data.length);
    // What may not be shipped beats nothing.
    const possible = points.filter((point) => point.rows[0].gate !== "fail");
    const best = front(possible.length ? possible : points);
    const line = {
      type: "line", pointStyle: "line", pointRadius: 0, pointHitRadius: 0, pointHoverRadius: 0, borderWidth: 1.5,
      borderColor: colour("muted"), order: 3, silent: true,
    };
    const source = report.metric.source;
    return [...series, ...this.trialPoints(points),
      { ...line, label: "Pareto front", data: [...best, { x: right, y: best.at(-1).y }], stepped: "before" },
      ...(source === null ? [] : [{ ...line, label: "original model", borderDash: [2, 4], data: [{ x: left, y: source }, { x: right, y: source }] }]),
    ];
  }

  trialPoints(points) {
    if (!this.trials || report.metric.source === null) return [];
    const seen = new Set(points.flatMap((point) => point.rows.map((row) => `${row.variant}\n${row.format}`)));
    const sign = report.metric.higher ? 1 : -1;
    const data = report.searches.filter((search) => seen.has(`${search.variant}\n${search.format}`)).flatMap((search) =>
      search.trials.filter((trial) => trial.drop !== null).map((trial) => (
        { x: trial.size, y: report.metric.source - sign * trial.drop, trial, rows: [] })));
    const ink = colour("muted");
    return [{
      label: "search trials", data, pointStyle: "circle", radius: 3, hitRadius: 5, borderColor: ink,
      backgroundColor: "transparent", borderWidth: 1, order: 2,
    }];
  }

  // Draw these results in a new chart, because the type of a scale may change.
  show(rows) {
    this.rows = rows;
    this.chart?.destroy();
    this.chart = null;
    this.at = -1;
    this.points = gather(rows, this.cost).sort((a, b) => a.x - b.x || b.y - a.y);
    this.empty.textContent = this.missing(rows);
    this.empty.hidden = this.points.length > 0;
    this.plot.hidden = this.points.length === 0;
    this.canvas.setAttribute("aria-label", `${this.title}, ${this.points.length} points`);
    if (!this.points.length) return;
    const shown = COSTS[this.cost];
    const trials = this.trialPoints(this.points).flatMap((set) => set.data);
    const possible = this.points.filter((point) => point.rows[0].gate !== "fail");
    const needed = possible.length ? possible : this.points;
    const others = [...this.points, ...trials];
    const values = needed.map((point) => point.x);
    const logarithmic = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;
    const [low, high] = reach(values, others.map((point) => point.x), logarithmic);
    const pad = (high - low || high || 1) * 0.06;
    const [left, right] = logarithmic ? [low / 1.15, high * 1.15] : [Math.max(0, low - pad), high + pad];
    const source = report.metric.source === null ? [] : [report.metric.source];
    // With the intervals, so that differences within them look small.
    const ends = this.points.length > INTERVALS ? [] : needed.flatMap((point) => point.rows[0].accuracy.ends ?? []);
    const [bottom, top] = reach([...needed.map((point) => point.y), ...source, ...ends], others.map((point) => point.y), false);
    const span = top - bottom || Math.abs(top) * 0.1 || 0.1;
    const [under, over] = [bottom - span * 0.08, top + span * 0.08];
    // Points beyond the axes are at their edge, with an arrow.
    for (const point of this.points) {
      const [x, y] = [limited(point.x, [left, right]), limited(point.y, [under, over])];
      const arrow = y > point.y ? "↓" : y < point.y ? "↑" : x > point.x ? "←" : x < point.x ? "→" : "";
      if (arrow) Object.assign(point, { x, y, off: `${arrow} ${"↓↑".includes(arrow) ? point.rows[0].accuracy.text : point.rows[0][this.cost].text}` });
    }
    const text = { color: colour("text") };
    const grid = { color: colour("line") };
    this.chart = new Chart(this.canvas, {
      type: "scatter",
      data: { datasets: this.datasets(this.points, left, right) },
      plugins: [annotations(this)],
      options: {
        animation: false, maintainAspectRatio: false, responsive: true,
        interaction: { mode: "nearest", intersect: true },
        onClick: (event, hits) => this.go(this.point(hits[0])),
        onHover: (event, hits) => { this.canvas.style.cursor = this.point(hits[0])?.rows.length ? "pointer" : ""; },
        scales: {
          x: {
            type: logarithmic ? "logarithmic" : "linear",
            min: left, max: right,
            title: { display: true, text: shown.axis, ...text }, grid,
            ticks: { ...text, callback: shown.text, maxRotation: 0, autoSkipPadding: 12 },
            afterBuildTicks: (axis) => { axis.ticks = ticks(left, right, logarithmic, shown.bytes).map((value) => ({ value })); },
          },
          y: {
            min: under, max: over,
            afterBuildTicks: (axis) => { axis.ticks = even(axis.min, axis.max, 1).map((value) => ({ value })); },
            title: { display: true, text: report.metric.name, ...text }, grid,
            ticks: { ...text, callback: (value) => scoreText(value, span, report.metric.share) },
          },
        },
        plugins: {
          legend: { position: "bottom", onClick: () => {}, labels: { ...text, usePointStyle: true, boxHeight: 7, boxWidth: 12, generateLabels: legend } },
          tooltip: {
            filter: (item) => !item.dataset.silent,
            displayColors: false,
            callbacks: {
              title: (items) => items.slice(0, 1).flatMap((item) => (item.raw.trial
                ? [shorten(item.raw.trial.name)] : lines(item.raw).map(shorten))),
              label: (item) => this.describe(item.raw),
            },
          },
        },
      },
    });
  }

  missing(rows) {
    return rows.length ? `None of these results has both ${report.metric.name} and ${COSTS[this.cost].title}.` : "No result matches the filters.";
  }

  describe(point) {
    if (point.trial) return [`${point.trial.cells[0]}, drop ${point.trial.cells[1]} on the search data`];
    const row = point.rows[0];
    const gate = row.gate ? [`gates: ${words[row.gate]}`] : [];
    return [`${report.metric.name} ${row.accuracy.whole}`, `${COSTS[this.cost].title} ${row[this.cost].whole}`, ...gate];
  }

  point(hit) {
    return hit ? this.chart.data.datasets[hit.datasetIndex].data[hit.index] : undefined;
  }

  go(point) {
    if (point?.rows.length) this.choose(point.rows[0]);
  }

  // Show the tooltip of a point, as hovering does, and announce it to screen readers.
  look(at) {
    if (!this.chart) return;
    this.at = at;
    const active = [];
    if (at >= 0) {
      const point = this.points[at];
      this.chart.data.datasets.forEach((set, datasetIndex) => {
        const index = set.silent ? -1 : set.data.indexOf(point);
        if (index >= 0) active.push({ datasetIndex, index });
      });
      const place = this.chart.getDatasetMeta(active[0].datasetIndex).data[active[0].index];
      this.chart.tooltip.setActiveElements(active, { x: place.x, y: place.y });
      announce(`Point ${at + 1} of ${this.points.length}: ${lines(point).join(", ")}; ${this.describe(point).join("; ")}`);
    } else {
      this.chart.tooltip.setActiveElements([], { x: 0, y: 0 });
    }
    this.chart.setActiveElements(active);
    this.chart.update("none");
  }

  key(event) {
    const count = this.points?.length ?? 0;
    const next = {
      ArrowRight: Math.min(count - 1, this.at + 1), ArrowUp: Math.min(count - 1, this.at + 1),
      ArrowLeft: Math.max(0, this.at - 1), ArrowDown: Math.max(0, this.at - 1), Home: 0, End: count - 1, Escape: -1,
    }[event.key];
    if (event.key === "Enter" && this.at >= 0) this.go(this.points[this.at]);
    else if (next === undefined || !count) return;
    else this.look(next);
    event.preventDefault();
  }
}

// Accuracy against the size, and on the devices against the latency, or where none is known against their memories.
// Those of different devices are not comparable: one device at a time.
const fillFronts = (choose) => {
  const trials = make("input", { type: "checkbox", id: "trials" });
  const size = new Front({ cost: "size", choose, controls: report.searches.length && report.metric.source !== null ? labelled("search trials", trials) : "" });
  trials.addEventListener("change", () => { size.trials = trials.checked; size.show(size.rows); });
  let shownRows = [];
  const others = ["latency", "memory", "flash"].map((cost) => {
    const names = distinct(report.rows.filter((row) => row.accuracy && row[cost] && (cost === "latency" || !row.latency)).map((row) => row.device));
    const device = make("select", { id: `${cost}-device` }, names.map((name) => make("option", { value: name }, shorten(name))));
    const chart = new Front({ cost, choose, controls: names.length ? labelled("on", device) : "" });
    const draw = () => chart.show(shownRows.filter((row) => row.device === device.value));
    device.addEventListener("change", draw);
    return { names, device, chart, draw };
  });
  // Without any of the three, the chart of the latency says that it is unknown.
  const drawn = others.filter((one, at) => one.names.length || (at === 0 && others.every((other) => !other.names.length)));
  part("fronts").classList.toggle("three", drawn.length === 2);
  part("fronts").append(size.figure, ...drawn.map((one) => one.chart.figure), make("p", { class: "hint", id: "fronts-hint" },
    "Results on the Pareto front are not dominated by any other that passes its gates. Hollow: a gate failed or is undecided; an arrow leads to a point beyond the axes. "
    + "Bars are 95 % intervals. Click a point to go to its row; with the keyboard, focus a chart, select a point with the arrow keys and press Enter. "
    + "The table contains the same numbers."));
  return (rows) => {
    shownRows = rows;
    size.show(rows);
    for (const one of drawn) {
      if (chosen.device && one.names.includes(chosen.device)) one.device.value = chosen.device;
      one.draw();
    }
  };
};
