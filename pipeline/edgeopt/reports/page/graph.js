// The graph of a file: its operators from inputs to outputs, coloured by what they take or lose.

const NODE = { width: 168, height: 36, lane: 12, gap: 14, pitch: 58, shades: 8 };

// Rows by the longest path from an input. A connection over several rows keeps a lane free in each of them.
const rowsOf = (nodes) => {
  const depth = [];
  nodes.forEach(([, , , , reads], at) => { depth[at] = reads.reduce((most, one) => Math.max(most, depth[one] + 1), 0); });
  const rows = Array.from({ length: Math.max(...depth) + 1 }, () => []);
  const items = nodes.map((_, at) => ({ at, depth: depth[at], width: NODE.width, parents: [], children: [] }));
  for (const item of items) rows[item.depth].push(item);
  nodes.forEach(([, , , , reads], at) => reads.forEach((one) => {
    let parent = items[one];
    for (let row = depth[one] + 1; row < depth[at]; row += 1) {
      const lane = { depth: row, width: NODE.lane, parents: [parent], children: [] };
      parent.children.push(lane);
      rows[row].push(lane);
      parent = lane;
    }
    parent.children.push(items[at]);
    items[at].parents.push(parent);
  }));
  return { items, rows };
};

// Places below their parents and above their children, as far as the others in the row allow.
const arrange = (rows) => {
  const place = (row, beside) => {
    const wish = (item) => (item[beside].length ? item[beside].reduce((sum, one) => sum + one.x, 0) / item[beside].length : item.x ?? 0);
    row.forEach((item) => { item.wish = wish(item); });
    row.sort((one, other) => one.wish - other.wish);
    let right = -Infinity;
    for (const item of row) {
      item.x = Math.max(item.wish, right + NODE.gap + item.width / 2);
      right = item.x + item.width / 2;
    }
    // What was pushed to the right is moved back, so that a row stays below the one before.
    const shift = row.reduce((sum, item) => sum + item.x - item.wish, 0) / row.length;
    for (const item of row) item.x -= shift;
  };
  rows.forEach((row) => place(row, "parents"));
  [...rows].reverse().forEach((row) => place(row, "children"));
  rows.forEach((row) => place(row, "parents"));
};

const fit = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);

const graphDrawing = (nodes, shade, about, label) => {
  const { items, rows } = rowsOf(nodes);
  arrange(rows);
  const all = rows.flat();
  const left = Math.min(...all.map((item) => item.x - item.width / 2)) - 4;
  const width = Math.max(...all.map((item) => item.x + item.width / 2)) - left + 4;
  const y = (item) => item.depth * NODE.pitch + 2;
  const edges = all.flatMap((item) => item.children.map((child) => {
    const [x1, y1, x2, y2] = [item.x - left, y(item) + (item.at === undefined ? NODE.height / 2 : NODE.height), child.x - left, y(child) + (child.at === undefined ? NODE.height / 2 : 0)];
    const middle = (y1 + y2) / 2;
    return drawing("path", { d: `M${x1.toFixed(1)} ${y1}C${x1.toFixed(1)} ${middle} ${x2.toFixed(1)} ${middle} ${x2.toFixed(1)} ${y2}`, class: "edge" });
  }));
  const boxes = items.map((item) => {
    const [name, kind] = nodes[item.at];
    return drawing("g", { transform: `translate(${(item.x - left - NODE.width / 2).toFixed(1)} ${y(item)})` },
      drawing("title", {}, about(item.at)),
      drawing("rect", { width: NODE.width, height: NODE.height, rx: 4, class: `node shade-${shade(item.at)}` }),
      drawing("text", { x: 8, y: 15, class: "kind" }, fit(kind, 22)),
      drawing("text", { x: 8, y: 29 }, fit(name, 24)));
  });
  return drawing("svg", { width, height: rows.length * NODE.pitch, viewBox: `0 0 ${width} ${rows.length * NODE.pitch}`, class: "network", role: "img", "aria-label": label }, ...edges, ...boxes);
};

// The ways to colour a graph that something is known for: title, a value per operator, and its text.
const coloursOf = (row, file) => {
  const ways = [];
  if (row.times) ways.push({ title: row.times.unit === "ms" ? "time" : row.times.unit, values: row.times.values, text: (value) => (row.times.unit === "ms" ? timeText(value) : `${count(value)} ${row.times.unit}`), rest: row.times.rest });
  if (row.errors) ways.push({ title: "error", values: row.errors, text: (value) => `${(100 * value).toFixed(1)} % of the error` });
  ways.push({ title: "bytes", values: file.graph.map(([, , size]) => size), text: sizeText });
  if (file.graph.some(([, , , macs]) => macs)) ways.push({ title: "MACs", values: file.graph.map(([, , , macs]) => macs), text: (value) => `${count(value)} MACs` });
  return ways;
};

const graphOf = (row, file) => {
  const ways = coloursOf(row, file);
  const choice = make("select", { id: `graph-${row.at}` }, ways.map((way, at) => make("option", { value: at }, way.title)));
  const box = make("div", { class: "scroll tall", role: "region", "aria-label": `Graph of ${address(row)}`, tabindex: "0" });
  const hint = make("p", { class: "hint" });
  const draw = () => {
    const way = ways[Number(choice.value)];
    const most = Math.max(...way.values.map((value) => value ?? 0)) || 1;
    const shade = (at) => Math.max(0, Math.min(NODE.shades - 1, Math.round(((way.values[at] ?? 0) / most) * (NODE.shades - 1))));
    const about = (at) => [file.graph[at].slice(0, 2).reverse().join(" "), ...ways.filter((one) => one.values[at] !== null).map((one) => `${one.title}: ${one.text(one.values[at])}`)].join("\n");
    const top = way.values.map((value, at) => [value ?? 0, at]).sort((one, other) => other[0] - one[0]).slice(0, 3).filter(([value]) => value > 0)
      .map(([value, at]) => `${file.graph[at][0]} (${way.text(value)})`).join(", ");
    box.replaceChildren(graphDrawing(file.graph, shade, about, `Graph of ${file.graph.length} operators, coloured by ${way.title}; the highest: ${top || "none"}`));
    hint.textContent = `Highest: ${top || "none"}.${way.rest ? ` Operators of the runtime that are not in the file: ${way.text(way.rest)}.` : ""} The tables contain the same numbers.`;
  };
  choice.addEventListener("change", draw);
  draw();
  return make("section", { class: "stack", "aria-label": `Graph of ${address(row)}` },
    make("div", { class: "titled" }, make("h3", {}, "Graph"), labelled("coloured by", choice)), box, hint);
};
