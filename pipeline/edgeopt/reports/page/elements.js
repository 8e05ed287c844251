// Page elements. Report data are inserted only as text or as values of inert attributes, so that no name in
// them can become markup.

const report = JSON.parse(document.getElementById("data").textContent);
const part = (id) => document.getElementById(id);

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
};

const announce = (text) => { part("announcement").textContent = text; };

const words = { pass: "✓ pass", fail: "✗ fail", undecided: "? undecided", ok: "ok", failed: "✗ failed", skipped: "– skipped", broken: "✗ broken", unmeasured: "– unmeasured", absent: "– absent" };
const state = (status) => (status ? make("span", { class: `state is-${status}` }, words[status] ?? status) : "");

// What identifies a row; a page may give its two names another meaning.
const names = report.names ?? { variant: "variant", format: "format" };
const address = (row) => `${row.variant}${report.join ?? "."}${row.format} on ${row.device}`;

// A box that scrolls, so that the page never scrolls sideways, and below it the titles of the columns that are out of
// sight. On a narrow screen its rows are cards: the stylesheet puts the title of the column before each cell.
const scrolling = (caption, inner, extra = "") => {
  const box = make("div", { class: `scroll ${extra}`, role: "region", "aria-label": caption, tabindex: "0" }, inner);
  const cue = make("p", { class: "cue", hidden: true, "aria-hidden": "true" });
  const look = () => {
    const { left, right } = box.getBoundingClientRect();
    const beyond = (test) => [...box.querySelectorAll("thead th")].filter((head) => test(head.getBoundingClientRect())).map((head) => head.textContent.trim()).filter(Boolean);
    const sides = [["←", beyond((head) => head.width && head.left < left - 2 && head.right < left + head.width / 2)], ["→", beyond((head) => head.width && head.right > right + 2)]];
    const told = sides.filter(([, titles]) => titles.length).map(([arrow, titles]) => `${arrow} ${titles.slice(0, 6).join(", ")}${titles.length > 6 ? ` and ${titles.length - 6} more` : ""}`);
    cue.textContent = told.length ? `Scroll for ${told.join("   ")}` : "";
    cue.hidden = !told.length || box.scrollWidth <= box.clientWidth + 2;
    box.classList.toggle("more", !cue.hidden && sides[1][1].length > 0);
  };
  new ResizeObserver(look).observe(box);
  box.addEventListener("scroll", look, { passive: true });
  return make("div", { class: "tabled" }, box, cue);
};

// Columns: [title, kind], with the kind "number", "wide", "line" or none. Empty columns are omitted.
const table = (caption, columns, rows, extra = "") => {
  const used = columns.map((_, at) => at).filter((at) => rows.some((row) => ![null, undefined, ""].includes(row[at])));
  return scrolling(caption, make("table", {},
    make("caption", {}, caption),
    make("thead", {}, make("tr", {}, used.map((at) => make("th", { scope: "col", class: columns[at][1] }, columns[at][0])))),
    make("tbody", {}, rows.map((row) => make("tr", {}, used.map((at) => make("td", { class: `${columns[at][1] ?? ""} ${row[at] === null || row[at] === undefined ? "none" : ""}`, "data-title": columns[at][0] }, row[at] ?? "–")))))), extra);
};

const linked = (text, link) => (link ? make("a", { href: link }, text) : text);
const facts = (pairs) => make("dl", {}, pairs.map(([title, value, link]) => [make("dt", {}, title), make("dd", {}, linked(value, link))]));

const distinct = (values) => [...new Set(values)];

const labelled = (name, field) => make("span", { class: "field" }, make("label", { for: field.id }, name), field);

const drawing = (name, attributes, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

// A bar for a fraction of 0 to 1; negative ones have another colour.
const bar = (share) => drawing("svg", { viewBox: "0 0 100 10", class: `bar ${share < 0 ? "less" : ""}`, "aria-hidden": "true", preserveAspectRatio: "none" },
  drawing("rect", { width: 100 * Math.min(1, Math.abs(share)), height: 10 }));
