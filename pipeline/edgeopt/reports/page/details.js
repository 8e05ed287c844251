// What is known of each artifact on each device. A part is made when it is opened: a large report has
// hundreds of them.

const within = (row) => {
  const search = report.searches.find((one) => one.variant === row.variant && one.format === row.format);
  const measured = row.measurements.length ? table(`Measurements of ${address(row)}`,
    [["measurement"], ["value", "number"], ["95 % interval", "number"], ["n", "number"]], row.measurements) : null;
  return [
    row.reason ? make("p", {}, state(row.status), " ", row.reason) : null,
    row.notes.length ? make("ul", {}, row.notes.map((note) => make("li", {}, note))) : null,
    row.facts.length ? facts(row.facts) : null,
    make("div", { class: "pair" }, hops(row), measured),
    search ? trials(search) : null,
    row.layers ? layers(row) : null,
    row.flips ? flips(row) : null,
    make("p", {}, make("a", { href: `#row-${row.at}` }, "Back to its row")),
  ];
};

const hops = (row) => (row.hops.length ? table(
  `What each step did to the outputs of ${address(row)}`,
  [["step"], ["to"], ["SNR", "number"], ["largest error", "number"], ["agreement", "number"], [""]],
  row.hops.map((hop) => [hop.stage, hop.produced, hop.snr, hop.error, hop.agreement,
    hop.status === "ok" ? (hop.lossless ? "keeps outputs" : "") : make("span", {}, state(hop.status), hop.reason ? `: ${hop.reason}` : "")])) : null);

const trials = (search) => table(
  `What was tried for ${search.variant}.${search.format}, judged on the data that the search may use`,
  [["trial"], ["size", "number"], ["drop", "number"], ["agreement", "number"], ["SNR", "number"], ["samples", "number"], [""],
    ["layers in higher precision", "wide"]],
  search.trials.map((trial) => [trial.name, ...trial.cells]), "tall");

const layers = (row) => {
  const { titles, rows, count } = row.layers;
  const kinds = titles.map((_, at) => (rows.some((cells) => typeof cells[at] === "number") ? "number" : ""));
  const told = rows.length < count ? `, ${rows.length} of ${count}; report.json has all` : "";
  return table(`Operators of ${address(row)}${told}`, titles.map((title, at) => [title, kinds[at]]), rows, "tall");
};

const flips = (row) => {
  const { rows, often, count } = row.flips;
  const told = rows.length < count ? `${rows.length} of ${count}` : `${count}`;
  return make("div", { class: "pair" },
    table(`Samples lost on ${address(row)}, the most certain mistakes first (${told})`,
      [["sample", "number"], ["label", "number"], ["answer", "number"], ["margin", "number"]], rows, "tall"),
    often.length ? table("Classes taken for another, of the samples lost", [["label", "number"], ["answer", "number"], ["samples", "number"]], often) : null);
};

const summaryOf = (row) => {
  const told = [row.accuracy && `${report.metric.name} ${row.accuracy.text}`, row.size && row.size.text,
    row.latency && `${row.latency.text}${row.estimated ? " estimated" : ""}`];
  return make("summary", {}, make("b", {}, `${row.variant} · ${row.format}`), state(row.status), " ", state(row.gate), " ",
    make("span", { class: "muted" }, told.filter(Boolean).join(" · ")));
};

const detailsOf = (row) => {
  const inside = make("div", { class: "inside" });
  const details = make("details", { id: `artifact-${row.at}` }, summaryOf(row), inside);
  const fill = () => { if (!inside.firstChild) inside.append(...within(row).filter(Boolean)); };
  details.addEventListener("toggle", () => { if (details.open) fill(); });
  row.open = () => { fill(); details.open = true; details.querySelector("summary").focus(); };
  return details;
};

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
    list,
    device.found.length ? make("details", {}, make("summary", {}, "What was found on it"), make("div", { class: "inside" }, facts(device.found)))
      : make("p", { class: "muted" }, "Nothing is known of its environment."));
};
