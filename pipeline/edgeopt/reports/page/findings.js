// Findings on the samples, classes, layers and bytes of one artifact.

const percent = (part, whole) => (whole ? `${(100 * part / whole).toFixed(1)} %` : "–");
const signed = (number) => (number > 0 ? `+${number}` : number < 0 ? `−${-number}` : "0");
const count = (number) => number.toLocaleString("en");
const nameOf = (label) => report.labels[label] ?? String(label);

// Samples correct in the source model and wrong here.
const flips = (row) => {
  const { rows, frequent, count: all } = row.flips;
  const scope = rows.length < all ? `${rows.length} of ${all}` : `${all}`;
  return make("div", { class: "pair" },
    table(`Correct in the original model, wrong on ${address(row)}; by margin (${scope})`,
      [["sample", "number"], ["class"], ["prediction"], ["margin", "number"]],
      rows.map(([sample, label, answer, margin]) => [sample, nameOf(label), nameOf(answer), margin]), "tall"),
    frequent.length ? table("Most frequent confusions among them", [["class"], ["prediction"], ["samples", "number"]],
      frequent.map(([label, answer, number]) => [nameOf(label), nameOf(answer), number])) : null);
};

const classes = (row) => {
  const { rows, count: all } = row.classes;
  const scope = rows.length < all ? `, ${rows.length} of ${all}; report.json contains all` : "";
  const most = Math.max(...rows.map(([, n, before, after]) => Math.abs(after - before) / n)) || 1;
  return table(`Correct predictions per class, of the original model and of ${address(row)}${scope}`,
    [["class"], ["samples", "number"], ["before", "number"], ["after", "number"], ["change", "number"], ["", "graph"]],
    rows.map(([label, n, before, after]) => [nameOf(label), n, percent(before, n), percent(after, n), signed(after - before),
      after === before ? "" : bar((after - before) / n / most)]), "tall");
};

// A confusion matrix for few classes, otherwise a list.
const MATRIX = 16;
const changed = (before, after) => (before || after ? make("span", { class: after > before ? "more" : after < before ? "fewer" : "" },
  String(after), before === after ? "" : make("small", {}, ` ${signed(after - before)}`)) : make("span", { class: "muted" }, "·"));

const confusions = (row) => {
  const { rows, count: all } = row.confusions;
  const known = row.classes.count === row.classes.rows.length;
  const seen = distinct([...row.classes.rows.map(([label]) => label), ...rows.flatMap(([label, answer]) => [label, answer])]).sort((a, b) => a - b);
  if (known && rows.length === all && seen.length <= MATRIX) {
    const right = new Map(row.classes.rows.map(([label, , before, after]) => [label, [before, after]]));
    const wrong = new Map(rows.map(([label, answer, before, after]) => [`${label} ${answer}`, [before, after]]));
    const caption = "Confusion matrix, with the difference to the original model: classes in rows, predictions in columns";
    return scrolling(caption, make("table", { class: "matrix" },
      make("caption", {}, caption),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "class"), seen.map((label) => make("th", { scope: "col", class: "number" }, nameOf(label))))),
      make("tbody", {}, seen.map((label) => make("tr", {}, make("th", { scope: "row" }, nameOf(label)), seen.map((answer) => (label === answer
        ? make("td", { class: "number right" }, changed(...(right.get(label) ?? [0, 0])))
        : make("td", { class: "number wrong" }, changed(...(wrong.get(`${label} ${answer}`) ?? [0, 0]))))))))));
  }
  const scope = rows.length < all ? `, ${rows.length} of ${all}; report.json contains more` : "";
  return table(`Confusions, largest change first${scope}`,
    [["class"], ["prediction"], ["before", "number"], ["after", "number"], ["change", "number"]],
    rows.map(([label, answer, before, after]) => [nameOf(label), nameOf(answer), before, after, signed(after - before)]), "tall");
};

const sensitivity = (search) => {
  const most = Math.max(...search.layers.map(([, removed]) => removed), 0) || 1;
  return table(`Sensitivity of the layers of ${search.variant}.${search.format}: fraction of the error removed by raising each alone`,
    [["layer"], ["error removed", "number"], ["", "graph"], ["cost", "number"]],
    search.layers.map(([layer, removed, cost]) => [layer, `${(100 * removed).toFixed(1)} %`,
      bar(removed < 0 ? Math.max(-1, removed) : removed / most), `${cost < 0 ? "−" : "+"}${count(Math.abs(cost))} B`]), "tall");
};

const trials = (search) => table(
  `Search for ${search.variant}.${search.format}, evaluated on the search data`,
  [["trial"], ["size", "number"], ["drop", "number"], ["agreement", "number"], ["SNR", "number"], ["samples", "number"], [""],
    ["layers in higher precision", "wide"]],
  search.trials.map((trial) => [trial.name, ...trial.cells]), "tall");

const bytes = (file) => {
  const all = file.parts.reduce((sum, [, size]) => sum + size, 0) || 1;
  const weights = file.layers.reduce((most, [, , size]) => Math.max(most, size), 0) || 1;
  const scope = file.layers.length < file.count ? `, ${file.layers.length} of ${file.count}; report.json contains all` : "";
  return make("div", { class: "pair uneven" },
    table(`Size breakdown of ${file.variant}.${file.format}`, [["part"], ["bytes", "number"], ["share", "number"], ["", "graph"]],
      file.parts.map(([name, size]) => [name, count(size), percent(size, all), bar(size / all)])),
    file.layers.length ? table(`Weights by operator, largest first${scope}`,
      [["operator", "line"], ["bytes", "number"], ["", "graph"], ["MACs", "number"], ["kind"]],
      file.layers.map(([name, kind, size, macs]) => [make("span", { title: name }, name), count(size), bar(size / weights), macs === null ? "" : count(macs), kind]), "tall") : null);
};
