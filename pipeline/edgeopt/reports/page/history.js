// One measurement of several artifacts over all runs. Colour encodes the variant, shape the format.

const shapes = ["circle", "rect", "triangle", "rectRot", "star", "crossRot"];
const dashes = [[], [6, 3], [2, 3]];
const MOST_LINES = 36;

const dayOf = (run) => run.started.slice(0, 10);
const timeOf = (run) => run.started.slice(0, 16).replace("T", " ");

class Line {
  // place: index of the plotted value in a point. breaks: whether two runs are not comparable.
  constructor({ id, title, place, text, breaks, choose }) {
    Object.assign(this, { place, text, breaks, choose });
    this.canvas = make("canvas", { id, role: "img", "aria-describedby": "charts-hint" });
    this.empty = make("p", { class: "empty", hidden: true });
    this.plot = make("div", { class: "plot" }, this.canvas);
    this.title = make("h2", {}, title);
    this.figure = make("figure", { class: "card" }, make("figcaption", {}, this.title), this.plot, this.empty);
  }

  // Points of one artifact, with a gap between two that are not comparable.
  points(view, artifact) {
    const points = [];
    let last = null;
    view.recipe.runs.forEach((run, x) => {
      const point = run.points.find((one) => one[0] === artifact && one[1] === view.device);
      if (!point || point[this.place] === null) return;
      if (last && this.breaks(last, { run, point })) points.push({ x: x - 0.5, y: NaN });
      points.push({ x, y: point[this.place], run });
      last = { run, point };
    });
    return points;
  }

  show(view) {
    this.view = view;
    this.chart?.destroy();
    this.chart = null;
    const formats = distinct(view.recipe.artifacts.map(([, format]) => format));
    const variants = distinct(view.recipe.artifacts.map(([variant]) => variant));
    const drawn = view.artifacts.map((at) => ({ at, data: this.points(view, at) })).filter((line) => line.data.length);
    this.plot.hidden = drawn.length === 0;
    this.empty.hidden = drawn.length > 0;
    this.empty.textContent = "No run has this measurement.";
    const values = drawn.flatMap((line) => line.data.map((point) => point.y)).filter(Number.isFinite);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const logarithmic = low > 0 && high / low > 8 && this.place !== 2;
    this.canvas.setAttribute("aria-label", `${this.title.textContent}: ${drawn.length} artifacts in ${view.recipe.runs.length} runs, from ${this.text(low, high - low)} to ${this.text(high, high - low)}`);
    if (!drawn.length) return;
    const span = high - low || Math.abs(high) * 0.1 || 0.1;
    const [bottom, top] = logarithmic ? [low / 1.15, high * 1.15] : [low - span * 0.08, high + span * 0.08];
    const ink = { color: colour("text") };
    const grid = { color: colour("line") };
    const last = Math.max(1, view.recipe.runs.length - 1);
    this.chart = new Chart(this.canvas, {
      type: "line",
      data: {
        datasets: drawn.slice(0, MOST_LINES).map(({ at, data }) => {
          const [variant, format] = view.recipe.artifacts[at];
          const index = formats.indexOf(format);
          const line = colour(`series-${variants.indexOf(variant) % 6}`);
          return {
            label: shorten(`${variant}.${format}`), data, borderColor: line, backgroundColor: line, borderWidth: 1.5,
            borderDash: dashes[Math.floor(variants.indexOf(variant) / 6) % dashes.length], pointStyle: shapes[index % shapes.length],
            radius: view.recipe.runs.length > 60 ? 2 : 4, hoverRadius: 7, hitRadius: 6, clip: 8, spanGaps: false,
          };
        }),
      },
      options: {
        animation: false, maintainAspectRatio: false, responsive: true, parsing: false,
        interaction: { mode: "nearest", intersect: true },
        onClick: (event, hits) => { if (hits[0]) this.choose(this.raw(hits[0]).run); },
        onHover: (event, hits) => { this.canvas.style.cursor = hits.length ? "pointer" : ""; },
        scales: {
          x: {
            type: "linear", min: -0.3, max: last + 0.3, grid,
            afterBuildTicks: (axis) => { axis.ticks = even(0, last, 1).filter(Number.isInteger).map((value) => ({ value })); },
            ticks: { ...ink, maxRotation: 0, autoSkipPadding: 14, callback: (value) => (view.recipe.runs[value] ? dayOf(view.recipe.runs[value]) : "") },
          },
          y: {
            type: logarithmic ? "logarithmic" : "linear", min: bottom, max: top, grid,
            afterBuildTicks: (axis) => { axis.ticks = ticks(bottom, top, logarithmic, this.place === 3).map((value) => ({ value })); },
            ticks: { ...ink, callback: (value) => this.text(value, span) },
          },
        },
        plugins: {
          // A longer legend would leave no room for the lines; the tooltip shows the names too.
          legend: { display: drawn.length <= 12, position: "bottom", onClick: () => {}, labels: { ...ink, usePointStyle: true, boxHeight: 7, boxWidth: 12 } },
          tooltip: {
            displayColors: false,
            callbacks: {
              title: (items) => items.slice(0, 1).map((item) => item.dataset.label),
              label: (item) => [`${this.text(item.raw.y, 0)}, ${timeOf(item.raw.run)}`, shorten(item.raw.run.folder), item.raw.run.headline],
            },
          },
        },
      },
    });
  }

  raw(hit) {
    return this.chart.data.datasets[hit.datasetIndex].data[hit.index];
  }
}
