// The probe text as boxes, the most surprising tokens, and the bar with the selected token.

/** The choices to colour boxes by: name, numbers, and the meaning of the ends of the colour scale. */
const COLOURINGS = {
  loss: {
    name: "loss, in nats",
    ramp: "much",
    values: data.tokens.nats,
    low: "0: certain and right",
    high: (x) => `${format(x, 1)} nats: surprised`,
  },
  bits: {
    name: "loss, in bits",
    ramp: "much",
    values: data.tokens.bits,
    low: "0: certain and right",
    high: (x) => `${format(x, 1)} bits: surprised`,
  },
  rank: {
    name: "rank of the actual next token",
    ramp: "much",
    values: data.tokens.rank,
    scale: Math.log,
    low: "1: the most likely token",
    high: (x) => `rank ${format(x)}`,
  },
  entropy: {
    name: "entropy, in nats",
    ramp: "much",
    values: data.tokens.entropy,
    low: "0: certain",
    high: (x) => `${format(x, 1)} nats: uncertain`,
  },
  difference: {
    name: "loss minus bigram loss, in nats",
    ramp: "signed",
    values: data.tokens.difference,
    low: (x) => `${format(-x, 1)}: better than the bigram baseline`,
    high: (x) => `+${format(x, 1)}: worse`,
  },
};
if (data.compare) {
  COLOURINGS.compare = {
    name: "loss minus the other run's, in nats",
    ramp: "signed",
    values: data.tokens.nats.map((x, t) => x - data.compare.tokens.nats[t]),
    low: (x) => `${format(-x, 1)}: better than the other run`,
    high: (x) => `+${format(x, 1)}: worse`,
  };
}

function drawStrip(root) {
  const strip = el("div", {
    class: "strip",
    role: "listbox",
    "aria-label": "Tokens of the probe text",
    "aria-orientation": "horizontal",
  });
  const cells = ids.map((id) =>
    el("div", { class: "cell", role: "option" }, tokenOf(id), el("span", { class: "number" })),
  );
  cells.forEach((cell, t) => {
    strip.append(cell);
    if (data.vocabulary[ids[t]].text.includes("\n"))
      strip.append(el("span", { class: "break", "aria-hidden": "true" }));
  });
  roving(strip, cells, 0, (t) => selectToken(t));
  mark(cells, state.token); // before it is near the window: Tab reaches it at once
  const kinds = Object.entries(COLOURINGS).filter(([, one]) => one.values);
  const controls = el(
    "div",
    { class: "controls" },
    chooser(
      "Colour by",
      kinds.map(([key, one]) => [key, one.name]),
      state.colour,
      (colour) => select({ colour }),
    ),
  );
  const key = el("div");
  root.append(controls, strip, key);
  view(root, ["colour"], () => colourStrip(cells, key));
  view(strip, ["token"], () => {
    mark(cells, state.token);
    cells.forEach((cell, t) => cell.classList.toggle("came", t === state.token + 1));
  });
}

function colourStrip(cells, key) {
  const { ramp, values, scale = (x) => x, low, high } = COLOURINGS[state.colour];
  const known = values.filter((x) => x !== null && x !== undefined);
  const [least, most] = range(known);
  const far = ramp === "signed" ? Math.max(-least, most) : most;
  cells.forEach((cell, t) => {
    const x = values[t];
    const number = cell.querySelector(".number");
    cell.removeAttribute("style");
    if (x === null || x === undefined) {
      number.textContent = "–";
      return;
    }
    const at = ramp === "signed" ? (x / (far || 1) + 1) / 2 : scale(x) / (scale(far) || 1);
    paint(cell, shade(ramp, at));
    number.textContent =
      ramp === "signed" && x > 0 ? `+${fixed(x)}` : Number.isInteger(x) ? format(x) : fixed(x);
  });
  key.replaceChildren(
    legend(ramp, typeof low === "function" ? low(far) : low, high(far)),
    el("p", { class: "legend" }, "Framed: the selected token. Underlined: the next token."),
  );
}

/** The tokens with the highest loss, and the most likely token there. */
function drawSurprises(root) {
  const { nats } = data.tokens;
  const list = el("ol", { class: "surprises" });
  for (const t of largest(nats, 5)) {
    const [first] = data.next.ids[t];
    const p = Math.exp(data.next.logits[t][0] - logSum(t, 1));
    list.append(
      el(
        "li",
        {},
        el(
          "button",
          { type: "button", class: "link", onclick: () => selectToken(t) },
          `${quoted(t + 1)} after ${placed(t)}`,
        ),
        `: ${fixed(nats[t])} nats, rank ${format(data.tokens.rank[t])}; most likely was ‘${word(first)}’ with p ${chance(p)}`,
        data.tokens.bigram_nats ? ` (bigram: ${fixed(data.tokens.bigram_nats[t])} nats)` : "",
      ),
    );
  }
  root.append(el("h3", {}, "Most surprising tokens"), list);
}

/** The bar at the top of the window: the selected token, and buttons for the previous and next token. */
function drawSelection(root) {
  const what = el("span", { class: "what", role: "status" });
  const step = (by, sign, label) =>
    el(
      "button",
      {
        type: "button",
        class: "step",
        "aria-label": label,
        onclick: () => selectToken(Math.max(0, Math.min(ids.length - 1, state.token + by))),
      },
      sign,
    );
  const line = el("div", { class: "line", role: "listbox", "aria-label": "Select a token", "aria-orientation": "horizontal" });
  const small = ids.map((id) => el("span", { role: "option" }, shortened(word(id), 10)));
  line.append(...small);
  roving(line, small, 0, (t) => selectToken(t));
  mark(small, state.token);
  root.append(
    el("div", { class: "now" }, step(-1, "←", "Previous token"), what, step(1, "→", "Next token")),
    line,
  );
  const say = () => {
    const t = state.token;
    const known = t < ids.length - 1;
    mark(small, t);
    // Only the line scrolls, not the page.
    line.scrollLeft = small[t].offsetLeft - line.offsetLeft - line.clientWidth / 2;
    what.replaceChildren(
      el("span", { class: "unseen" }, "Selected: "),
      el("b", {}, "‘", tokenOf(ids[t]), "’"),
      ` at ${t}`,
      known ? " → " : ", the last token",
      known ? el("span", { class: "true" }, "‘", tokenOf(ids[t + 1]), "’") : "",
      known
        ? ` p ${chance(data.tokens.probability[t])}, rank ${format(data.tokens.rank[t])}, ${fixed(data.tokens.nats[t])} nats`
        : "",
    );
  };
  view(root, ["token"], say);
}
