// The table of all results, sorted by clicking a column title and reduced by the filters above it.

const chosen = { variant: "", format: "", device: "", status: "", text: "" };
const order = { column: -1, down: false };

const states = {
  ok: (row) => row.status === "ok",
  failed: (row) => row.status === "failed",
  skipped: (row) => row.status === "skipped",
  stopped: (row) => row.status === "stopped",
  absent: (row) => row.status === "absent",
  "gate passed": (row) => row.gate === "pass",
  "gate failed": (row) => row.gate === "fail",
  "gate undecided": (row) => row.gate === "undecided",
};

const matches = (row) =>
  ["variant", "format", "device"].every((key) => !chosen[key] || row[key] === chosen[key])
  && (!chosen.status || states[chosen.status](row))
  && chosen.text.toLowerCase().split(" ").every((word) => row.haystack.includes(word));

const judged = report.judged ?? report.gates.length > 0;
const several = report.devices.length > 1;
const columns = [
  { title: names.variant, of: (row) => row.variant },
  { title: names.format, of: (row) => row.format },
  ...(several ? [{ title: "device", of: (row) => row.device }] : []),
  { title: "status", of: (row) => row.status },
  ...(judged ? [{ title: "gates", of: (row) => row.gate }] : []),
  ...report.columns.map((column, at) => ({ title: column.title, number: true, of: (row) => row.cells[at]?.[1] ?? null })),
];

const named = (name) => make("span", { class: "clip", title: name }, name);

const rowOf = (row) => make("tr", { id: `row-${row.at}`, tabindex: "-1" },
  make("th", { scope: "row" }, make(row.link === "" ? "span" : "a", { href: row.link === "" ? null : row.link ?? `#artifact-${row.at}`, class: "clip", title: row.variant, "aria-label": row.link === "" ? null : `${address(row)}: details` }, row.variant || "–")),
  make("td", { "data-title": names.format }, named(row.format)),
  several ? make("td", { "data-title": "device" }, named(row.device)) : null,
  make("td", { "data-title": "status" }, state(row.status)),
  judged ? make("td", { "data-title": "gates" }, state(row.gate)) : null,
  row.cells.map((cell, at) => make("td", { class: cell ? "number" : "number none", "data-title": report.columns[at].title }, cell ? cell[0] : "–")));

const before = (one, other) => {
  const column = columns[order.column];
  if (!column) return one.at - other.at;
  const [a, b] = [column.of(one), column.of(other)];
  // Missing measurements come last in both directions.
  if (a === null || b === null) return (a === null) - (b === null) || one.at - other.at;
  const comparison = column.number ? a - b : a.localeCompare(b, undefined, { numeric: true });
  return (order.down ? -comparison : comparison) || one.at - other.at;
};

class ResultsTable {
  // shown: called with the rows that match the filters.
  constructor(shown) {
    this.shown = shown;
    this.heads = columns.map((column, at) => {
      const button = make("button", { type: "button" }, column.title);
      button.addEventListener("click", () => this.sort(at));
      return make("th", { scope: "col", class: column.number ? "number" : "", "aria-sort": "none" }, button);
    });
    this.body = make("tbody");
    this.count = make("span", { class: "count", id: "count" });
    for (const row of report.rows) {
      row.haystack = `${row.variant} ${row.format} ${row.device} ${row.status} ${row.reason}`.toLowerCase();
      row.element = rowOf(row);
    }
    part("results").append(this.filters(),
      scrolling("All results", make("table", {},
        make("caption", {}, `One row per ${names.variant}${several ? `, ${names.format} and device` : ` and ${names.format}`}. Click a name for details, or a column title to sort.`),
        make("thead", {}, make("tr", {}, this.heads)), this.body), "tall results"));
  }

  filters() {
    const form = make("div", { class: "filters", role: "search", "aria-label": "Filter the results" });
    this.fields = {};
    for (const key of ["variant", "format", "device", "status"]) {
      const known = key === "status" ? Object.keys(states).filter((name) => report.rows.some(states[name]))
        : distinct(report.rows.map((row) => row[key]));
      this.fields[key] = make("select", { id: `filter-${key}` }, make("option", { value: "" }, "all"),
        known.map((name) => make("option", { value: name }, name.length > 60 ? `${name.slice(0, 59)}…` : name)));
      form.append(labelled(names[key] ?? key, this.fields[key]));
    }
    this.fields.text = make("input", { type: "search", id: "filter-text", autocomplete: "off", spellcheck: "false" });
    form.append(labelled("text", this.fields.text));
    for (const [key, field] of Object.entries(this.fields)) {
      field.addEventListener("input", () => { chosen[key] = field.value; this.update(); });
    }
    const reset = make("button", { type: "button", id: "reset" }, "Reset");
    reset.addEventListener("click", () => this.reset());
    form.append(reset, this.count);
    return form;
  }

  reset() {
    for (const [key, field] of Object.entries(this.fields)) { field.value = ""; chosen[key] = ""; }
    order.column = -1;
    order.down = false;
    this.update();
  }

  // Cycle through ascending, descending and unsorted.
  sort(at) {
    if (order.column !== at) Object.assign(order, { column: at, down: false });
    else if (!order.down) order.down = true;
    else Object.assign(order, { column: -1, down: false });
    this.arrange();
    announce(order.column < 0 ? "Sorted as in the recipe" : `Sorted by ${columns[at].title}, ${order.down ? "descending" : "ascending"}`);
  }

  arrange() {
    this.heads.forEach((head, at) => head.setAttribute("aria-sort",
      at !== order.column ? "none" : order.down ? "descending" : "ascending"));
    const rows = report.rows.filter(matches).sort(before);
    this.body.replaceChildren(...(rows.length ? rows.map((row) => row.element)
      : [make("tr", {}, make("td", { colspan: columns.length }, "No result matches the filters."))]));
    return rows;
  }

  update() {
    const rows = this.arrange();
    const summary = `${rows.length} of ${report.rows.length} results`;
    this.count.textContent = summary;
    announce(summary);
    this.shown(rows.sort((one, other) => one.at - other.at));
  }

  // Scroll to the row of a result and focus it, resetting the filters if they hide it.
  go(row) {
    if (!row.element.isConnected) this.reset();
    for (const other of this.body.querySelectorAll(".found")) other.classList.remove("found");
    row.element.classList.add("found");
    row.element.focus({ preventScroll: true });
    row.element.scrollIntoView({ block: "center", inline: "nearest" });
    announce(`Row of ${address(row)}`);
  }
}
