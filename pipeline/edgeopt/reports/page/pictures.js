// Decisions as drawings: over a picture of the sample, or as text. Coordinates are pixels of the sample.

const WORDS = { boxes: "box", points: "place", classes: "class", tokens: "token", numbers: "number" };
const hidden = (drawing) => drawing.count - drawing.rows.length;
const rest = (drawing) => (hidden(drawing) > 0 ? make("span", { class: "muted" }, ` and ${hidden(drawing)} more`) : null);

// What a screen reader reads instead of a drawing.
const described = (drawing) => {
  if (drawing.kind === "mask") return `classes ${drawing.classes.map(([label, , share]) => `${className(label)} ${share}`).join(", ")}`;
  if (drawing.kind === "difference") return `${drawing.share} of the pixels`;
  if (drawing.kind === "picture") return "image";
  const several = `${drawing.count} ${WORDS[drawing.kind]}${drawing.count === 1 ? "" : drawing.kind === "boxes" || drawing.kind === "classes" ? "es" : "s"}`;
  if (drawing.kind !== "boxes" || !drawing.count) return several;
  return `${several}: ${drawing.rows.map((row) => `${nameOf(row[4])} ${row[5]}${row[6] ? "" : " (no counterpart)"}`).join(", ")}`;
};
const className = (label) => (label < 0 ? "no class" : nameOf(label));

// The extent of a drawing without a picture of the sample.
const extent = (drawings) => {
  const sized = drawings.find((drawing) => drawing.size);
  if (sized) return sized.size;
  const places = drawings.flatMap((drawing) => (drawing.rows ?? []).filter(Boolean));
  const reach = (first, second) => Math.max(1, ...places.flatMap((row) => [row[first], row[second] ?? 0]).filter(Number.isFinite));
  return drawings.some((drawing) => drawing.kind === "boxes") ? [reach(0, 2), reach(1, 3)] : [reach(0, 0), reach(1, 1)];
};

// A box with its class above, below or inside it, where no other text is; otherwise the text is left out.
const boxOf = ([x1, y1, x2, y2, label, score, same], [width, height], unit, taken) => {
  const text = shortName(nameOf(label)) + (score ? ` ${score}` : "");
  const size = 11 * unit;
  const length = text.length * size * 0.6;
  const left = Math.max(unit, Math.min(x1, width - length));
  const free = (base) => base > size && base < height && !taken.some((one) => Math.abs(one.base - base) < size && left < one.left + one.length && one.left < left + length);
  const base = [y1 - 3 * unit, y2 + size, y1 + size + unit, y2 - 3 * unit].find(free);
  if (base !== undefined) taken.push({ base, left, length });
  return drawing("g", { class: same ? "same" : "other" },
    drawing("rect", { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1), class: "halo", "stroke-width": 4 * unit }),
    drawing("rect", { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1), "stroke-width": 2 * unit, "stroke-dasharray": same ? "none" : `${4 * unit} ${2.5 * unit}` }),
    ...(base === undefined ? [] : [drawing("text", { x: left, y: base, "font-size": size, "stroke-width": 2.5 * unit }, text)]),
    drawing("title", {}, text));
};
const shortName = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

// The same place of several drawings has the same colour.
const pointOf = (place, at, unit) => (place ? [drawing("circle", { cx: place[0], cy: place[1], r: 3.5 * unit, "stroke-width": 1.2 * unit, fill: `hsl(${(at * 137) % 360} 90% 62%)` },
  drawing("title", {}, `${at}: ${Number(place[0].toPrecision(4))}, ${Number(place[1].toPrecision(4))}`))] : []);

// One drawing over the picture of its sample, as an image of about 150 pixels on the longer side.
const overlay = (pane, [width, height], picture, alt) => {
  const unit = Math.max(width, height) / 150;
  const taken = [];
  const image = (href, name) => drawing("image", { href, width, height, preserveAspectRatio: "none", class: name });
  return drawing("svg", { viewBox: `0 0 ${width} ${height}`, class: "picture", role: "img", "aria-label": alt, preserveAspectRatio: "xMidYMid meet" },
    drawing("rect", { width, height, class: "ground" }),
    ...(picture && pane.kind !== "picture" ? [image(picture, pane.kind === "mask" || pane.kind === "difference" ? "dim" : "")] : []),
    ...(pane.uri ? [image(pane.uri, pane.kind === "picture" ? "" : "tint")] : []),
    ...(pane.kind === "boxes" ? pane.rows.map((row) => boxOf(row, [width, height], unit, taken)) : []),
    ...(pane.kind === "points" ? pane.rows.flatMap((place, at) => pointOf(place, at, unit)) : []));
};

const legendOf = (panes) => {
  const classes = new Map(panes.filter((pane) => pane.kind === "mask").flatMap((pane) => pane.classes.map(([label, ink]) => [label, ink])));
  return classes.size ? make("p", { class: "keys" }, [...classes].sort((a, b) => a[0] - b[0]).map(([label, ink]) => make("span", {},
    drawing("svg", { viewBox: "0 0 10 10", class: "key", "aria-hidden": "true" }, drawing("rect", { width: 10, height: 10, fill: ink || "none" })),
    shortName(className(label))))) : null;
};

// A decision as text; what the compared one does not have is marked.
const marked = (text, same) => (same ? text : make("mark", {}, text));
const written = (pane) => {
  if (pane.kind === "classes") {
    return [pane.rows.length ? pane.rows.map(([label, score, same], at) => [at ? ", " : "", marked(nameOf(label), same),
      score ? make("span", { class: "muted" }, `\u00a0${score.replace(" ", "\u00a0")}`) : ""]) : make("span", { class: "muted" }, "none"), rest(pane)];
  }
  if (pane.kind === "tokens") {
    // Characters form words; other tokens are separate.
    const names = pane.rows.map(([token, same]) => [token < 0 ? "·" : nameOf(token), same]);
    const gap = names.every(([name]) => name.length === 1) && report.labels.length ? "" : " ";
    return [make("code", {}, names.length ? names.map(([name, same], at) => [at ? gap : "", marked(name, same)]) : "(empty)"), rest(pane)];
  }
  if (pane.kind === "points") return [pane.rows.map((place) => (place ? `(${place.map((value) => Number(value.toPrecision(4))).join(", ")})` : "–")).join(" "), rest(pane)];
  return [make("code", {}, pane.rows.join("  ")), rest(pane)];
};

const DRAWN = ["boxes", "mask", "difference", "picture"];
const isDrawn = (pane, picture) => DRAWN.includes(pane.kind) || (pane.kind === "points" && Boolean(picture));

// A sample: its picture, and label, original and artifact side by side.
const changedSample = ({ sample, about, panes }) => {
  const picture = report.thumbnails[sample];
  const drawn = panes.filter((pane) => isDrawn(pane, picture));
  const texts = panes.filter((pane) => !isDrawn(pane, picture));
  const size = (drawn.some((pane) => pane.kind === "picture") ? null : report.image && [report.image[1], report.image[0]]) ?? extent(drawn);
  const alone = picture && (!drawn.length || drawn.some((pane) => pane.kind === "picture"));
  return make("li", { class: drawn.length ? "drawn" : "written" },
    make("p", { class: "about" }, make("b", {}, `sample ${sample}`), about ? ` ${about}` : ""),
    make("div", { class: "panes" },
      alone ? make("figure", {}, make("img", { src: picture, alt: `sample ${sample}`, class: "picture" }), drawn.length ? make("figcaption", {}, "input") : null) : null,
      drawn.map((pane) => make("figure", {}, overlay(pane, size, picture, `sample ${sample}, ${pane.title}: ${described(pane)}`),
        make("figcaption", {}, pane.title, pane.kind === "difference" ? ` (${pane.share})` : "", pane.count > (pane.rows?.length ?? pane.count) ? ` (${pane.rows.length} of ${pane.count})` : ""))),
      texts.length ? make("dl", {}, texts.map((pane) => [make("dt", {}, pane.title), make("dd", {}, written(pane))])) : null),
    legendOf(drawn));
};

const samplesOf = (found, row) => {
  if (!found.samples.length) return null;
  const kinds = new Set(found.samples.flatMap((one) => one.panes.map((pane) => pane.kind)));
  const hints = [kinds.has("boxes") ? "dashed boxes have no counterpart of the same class at an IoU of 0.5" : "",
    kinds.has("mask") ? "class 0 is left clear" : "", kinds.has("tokens") || kinds.has("classes") ? "marked: differs" : "",
    found.worse === null ? "" : "worse: farther from the label than before"].filter(Boolean);
  return make("div", {}, make("h4", {}, found.samples.length < found.changed ? `The ${found.samples.length} samples that changed most` : "Changed samples"), hints.length ? make("p", { class: "hint" }, `${hints.join("; ")}.`) : null,
    make("ul", { class: "gallery", "aria-label": `Samples that changed most on ${address(row)}` }, found.samples.map(changedSample)));
};
