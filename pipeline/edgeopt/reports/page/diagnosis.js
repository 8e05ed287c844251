// A diagnosis: what it found, the graph coloured by the error, and the layers.

const { row, graph, layers } = report;
const most = Math.max(...layers.map((layer) => layer.share ?? 0)) || 1;
part("found").append(facts(report.facts),
  report.causes.length ? make("ol", {}, report.causes.map((cause) => make("li", {}, cause))) : make("p", {}, "No cause was found."),
  report.patch ? [make("h3", {}, "Change of the recipe"), make("pre", { class: "code", tabindex: "0", "aria-label": "Change of the recipe" }, report.patch)] : "",
  report.notes.length ? make("ul", {}, report.notes.map((note) => make("li", {}, note))) : "");
if (graph.length) {
  part("graph").hidden = false;
  part("graph").append(graphOf(row, { graph }));
}
part("layers").append(table(`Largest share of the error of the outputs first${layers.length < report.count ? `, ${layers.length} of ${report.count}` : ""}`,
  [["layer", "line"], ["operator"], ["share", "number"], ["", "graph"], ["alone", "number"], ["own", "number"], ["SNR", "number"], ["clipped", "number"], ["weight spread", "number"], ["outlier", "number"]],
  layers.map(({ share, cells: [name, operator, text, ...rest] }) => [make("span", { title: name }, name), operator, text, bar((share ?? 0) / most), ...rest]), "tall"));
themed(() => {});
announce("");
root.dataset.ready = Math.round(performance.now());
