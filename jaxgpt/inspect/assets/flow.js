// The way of the selected token through the model, with its real norms and guesses. Each part leads to its section.

const MOST_CARDS = 16; // blocks; the cards of more scroll

function drawFlow(root) {
  const place = el("div", { class: data.attention.layers > MOST_CARDS ? "flow tall" : "flow" });
  root.append(place);
  const { entries, norms } = data.ledger;
  view(place, ["token", "layer", "head"], () => {
    const { rows, ids: guesses, p } = data.lens;
    const t = state.token;
    const known = guesses[0][t] !== null; // of a large model the guesses of other tokens come later
    const norm = (name) => {
      const n = entries.indexOf(name);
      return n < 0 ? null : norms[n][t];
    };
    const most = Math.max(...entries.map((_, n) => norms[n][t]));
    const to = (section, changes, ...content) =>
      el("a", { href: `#${section}`, onclick: () => select(changes) }, content);
    const part = (section, changes, name, value) =>
      to(section, changes, el("span", {}, name), value === null ? "" : bar(value, 0, most), value === null ? "" : el("b", {}, value >= 1000 ? format(value) : fixed(value)));
    const guess = (r) =>
      to(
        r === rows.length - 1 ? "next" : "lens",
        {},
        el("span", { class: "soft" }, "guess"),
        known ? [" ‘", tokenOf(guesses[r][t][0]), "’ ", el("b", {}, chance(p[r][t][0]))] : " …",
      );
    const card = (title, ...content) => el("div", { class: "card" }, el("h3", {}, title), content);
    const blocks = range0(data.attention.layers).map((l) => {
      const ofHeads = range0(data.attention.heads)
        .map((h) => [h, norm(`${l}.${h}`)])
        .filter(([, value]) => value !== null);
      const squares = ofHeads.map(([h, value]) => {
        const chosen = state.layer === l && state.head === h;
        const square = el(
          "a",
          {
            href: "#attention",
            class: chosen ? "square chosen" : "square",
            "aria-label": `layer ${l}, head ${h}, norm ${fixed(value)}`,
            title: `head ${l}.${h}: norm ${fixed(value)}${jobOf(l, h) ? `, ${jobOf(l, h)}` : ""}`,
            onclick: () => select({ layer: l, head: h, key: null }),
          },
          String(h),
        );
        paint(square, shade("much", Math.sqrt(value / most)));
        return square;
      });
      return card(
        `block ${l}`,
        squares.length
          ? el("p", { class: "squares" }, el("span", { class: "soft" }, "heads "), squares)
          : part("attention", { layer: l }, "heads", norm(`${l}.heads`)),
        part("neurons", { neurons: l }, "MLP", norm(`${l}.mlp`)),
        guess(l + 1),
      );
    });
    const truth = ids[t + 1];
    place.replaceChildren(
      card(
        ["token ‘", tokenOf(ids[t]), "’"],
        part("embeddings", {}, "vector", norm("token")),
        norm("position") === null ? "" : part("positions", {}, "position", norm("position")),
        guess(0),
      ),
      ...blocks,
      card(
        "next token",
        range0(known ? Math.min(3, guesses.at(-1)[t].length) : 0).map((k) =>
          to("next", {}, "‘", tokenOf(guesses.at(-1)[t][k]), "’ ", el("b", {}, chance(p.at(-1)[t][k]))),
        ),
        truth === undefined
          ? ""
          : el("span", { class: "true" }, "actual ‘", tokenOf(truth), `’ ${chance(data.tokens.probability[t])}`),
      ),
    );
  });
}
