// The card of each device: which artifact to ship, why, and how to get it.

// A bar for the use of a memory: of its limit, or over it.
const gauge = (share) => drawing("svg", { viewBox: "0 0 100 10", class: `gauge ${share > 1 ? "over" : ""}`, "aria-hidden": "true", preserveAspectRatio: "none" },
  drawing("rect", { class: "whole", width: 100, height: 10 }), drawing("rect", { width: 100 * Math.min(1, share), height: 10 }));

const copyable = (text, id) => {
  // A line breaks between words only, not after the hyphens of an option.
  const code = make("code", { id }, text.split(" ").flatMap((word, at) => [at ? " " : "", make("span", { class: "word" }, word)]));
  const copy = make("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); announce("Copied"); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); announce("Selected: press Ctrl+C to copy"); }
  });
  return make("div", { class: "command" }, code, copy);
};

const cardOf = (card, at) => {
  const row = report.rows.find((one) => address(one) === `${card.artifact} on ${card.device}`);
  const mark = { ship: "✓ ", none: "✗ ", unjudged: "? " }[card.status];
  return make("article", { class: `card ship ${card.status}`, "aria-labelledby": `card-${at}` },
    make("h2", { id: `card-${at}` }, mark + card.headline),
    card.artifact ? make("p", { class: "pick" }, card.status === "none" ? "Nearest: " : "",
      make("b", {}, linked(card.path || card.artifact, card.link)), " ",
      row ? make("a", { href: `#artifact-${row.at}`, "aria-label": `${address(row)}: all of its details` }, "details") : null) : null,
    card.reason ? make("p", { class: card.status === "none" ? "is-fail" : "muted" }, card.reason) : null,
    card.lines.length ? make("dl", {}, card.lines.map(([title, text, share]) => [make("dt", {}, title), make("dd", {}, text, share === null ? null : gauge(share))])) : null,
    card.pull ? make("div", { class: "get" }, make("p", { class: "hint" }, "Once the run is published (edgeopt artifacts push RUN --channel stable):"), copyable(card.pull, `pull-${at}`)) : null);
};

const fillCards = () => {
  part("cards").hidden = report.cards.length === 0;
  part("cards").append(...report.cards.map(cardOf));
};
