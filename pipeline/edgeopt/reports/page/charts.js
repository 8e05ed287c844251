// The two Pareto charts. They show the results that the table shows; shape and colour both encode the format.

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

const lines = (point) => {
  const shown = point.rows.slice(0, 4).map(address);
  return point.rows.length > 4 ? [...shown, `and ${point.rows.length - 4} more`] : shown;
};
class Front {
  // cost: "size" or "latency". choose: called with the row of a selected point.
  constructor({ id, title, cost, unit, choose, controls }) {
    Object.assign(this, { cost, choose, title, at: -1, trials: false });
    this.axis = unit;
    this.canvas = make("canvas", {
      id, tabindex: "0", role: "application", "aria-roledescription": "chart", "aria-describedby": "fronts-hint",
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
        hoverBackgroundColor: ink, hoverBorderColor: colour("text"), radius: strokes ? 7 : 6, hoverRadius: 9, hitRadius: 8, order: 1,
      };
    }).filter((set) => set.data.length);
    const best = front(points);
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
    const places = [...this.points, ...this.trialPoints(this.points).flatMap((set) => set.data)];
    const [low, high] = [Math.min(...places.map((point) => point.x)), Math.max(...places.map((point) => point.x))];
    const logarithmic = low > 0 && high / low > 8;
    const pad = (high - low || high || 1) * 0.06;
    const [left, right] = logarithmic ? [low / 1.15, high * 1.15] : [Math.max(0, low - pad), high + pad];
    const heights = [...places.map((point) => point.y), ...(report.metric.source === null ? [] : [report.metric.source])];
    const [bottom, top] = [Math.min(...heights), Math.max(...heights)];
    const span = top - bottom || Math.abs(top) * 0.1 || 0.1;
    const text = { color: colour("text") };
    const grid = { color: colour("line") };
    this.chart = new Chart(this.canvas, {
      type: "scatter",
      data: { datasets: this.datasets(this.points, left, right) },
      options: {
        animation: false, maintainAspectRatio: false, responsive: true,
        interaction: { mode: "nearest", intersect: true },
        onClick: (event, hits) => this.go(this.point(hits[0])),
        onHover: (event, hits) => { this.canvas.style.cursor = this.point(hits[0])?.rows.length ? "pointer" : ""; },
        scales: {
          x: {
            type: logarithmic ? "logarithmic" : "linear",
            min: left, max: right,
            title: { display: true, text: this.axis, ...text }, grid,
            ticks: { ...text, callback: (value) => (this.cost === "size" ? sizeText(value) : timeText(value)), maxRotation: 0, autoSkipPadding: 12 },
            afterBuildTicks: (axis) => { axis.ticks = ticks(left, right, logarithmic, this.cost === "size").map((value) => ({ value })); },
          },
          y: {
            min: bottom - span * 0.08, max: top + span * 0.08,
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
    return rows.length ? `None of these results has both ${report.metric.name} and ${this.cost}.` : "No result matches the filters.";
  }

  describe(point) {
    if (point.trial) return [`${point.trial.cells[0]}, drop ${point.trial.cells[1]} on the search data`];
    const row = point.rows[0];
    const gate = row.gate ? [`gates: ${words[row.gate]}`] : [];
    return [`${report.metric.name} ${row.accuracy.whole}`, `${this.cost} ${row[this.cost].whole}`, ...gate];
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
