// Attention: every head at a glance, and one of them in the three steps of the textbook.

const attention = data.attention;

/** How many tokens the tables of attention hold; a large model's may be cut (`data.cut` says so). */
const seenTokens = (() => {
  const triangle = (attention.scores ?? attention.weights)[0][0].length;
  return Math.round((Math.sqrt(8 * triangle + 1) - 1) / 2);
})();

/** Whether the mask lets query t see key s. */
function visibleKey(t, s) {
  return s <= t && (!attention.window || s > t - attention.window);
}

/** A head's scores as rows of queries, null where the mask hides the key; null where the file has none. */
function scoresOf(l, h) {
  if (!attention.scores) return null;
  return square(attention.scores[l][h], attention.score_unit, null);
}

function square(triangle, unit, hidden) {
  return range0(seenTokens).map((t) =>
    range0(seenTokens).map((s) => (visibleKey(t, s) ? triangle[(t * (t + 1)) / 2 + s] * unit : hidden)),
  );
}

/** The scores before the mask, as far as the file has them: null for those above the diagonal of a large model. */
function allScoresOf(l, h) {
  const [triangle, ahead] = [attention.scores[l][h], attention.ahead?.[l][h]];
  let i = 0;
  return range0(seenTokens).map((t) =>
    range0(seenTokens).map((s) => {
      if (s <= t) return triangle[(t * (t + 1)) / 2 + s] * attention.score_unit;
      return ahead ? ahead[i++] * attention.ahead_unit : null;
    }),
  );
}

const softmaxes = new Map();

/** A head's weights as rows of queries: the softmax of its scores, computed when first asked for. */
function weightsOf(l, h) {
  const name = `${l}.${h}`;
  if (!softmaxes.has(name)) {
    softmaxes.set(
      name,
      attention.scores
        ? scoresOf(l, h).map(softmax)
        : square(attention.weights[l][h], attention.weight_unit, 0),
    );
  }
  return softmaxes.get(name);
}

function softmax(row) {
  const most = Math.max(...row.filter((x) => x !== null));
  const e = row.map((x) => (x === null ? 0 : Math.exp(x - most)));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((x) => x / sum);
}

/** The key that is pointed at: the selected one, or the one with the most weight. */
function keyOf() {
  const row = weightsOf(state.layer, state.head)[query()];
  return state.key !== null && state.key < seenTokens ? state.key : largest(row, 1)[0];
}

/** The selected token as a query; the last one of the table where the table ends before it. */
function query() {
  return Math.min(state.token, seenTokens - 1);
}

/** What is measured of every head: its name, its values, and the same of models that were never trained. */
const HEAD_NUMBERS = [
  ["previous_token", "previous-token score", "the mean weight of the token just before"],
  [
    "induction",
    "induction score",
    "on random tokens that come twice, the mean weight a token gives to the one after its first occurrence " +
      "(prefix matching, Olsson et al. 2022)",
  ],
  ["relative_entropy", "entropy over uniform", "0: it looks at one token; 1: at all alike"],
  ["mean_distance", "mean distance", "how many tokens back it looks, weighted"],
]
  .map(([key, name, meaning]) => ({
    key,
    name,
    meaning,
    values: attention.statistics[key].value,
    ...attention.statistics[key],
  }))
  .filter(({ values }) => values.flat().some((x) => x !== null)); // a context of a few tokens has room for no repetition
for (const [kind, name, by] of [
  ["mean", "loss without it", "its mean"],
  ["zero", "loss without it (zero)", "zero"],
]) {
  const found = attention.ablation?.[kind];
  if (found) {
    HEAD_NUMBERS.push({
      key: kind,
      name,
      values: found.difference,
      errors: found.standard_error,
      signs: true,
      meaning: `how much the loss rises, in nats, when the head's output is replaced by ${by} (attention is not importance)`,
    });
  }
}

/** What the number means, which head has the most of it, and what untrained models have. */
function headSentences({ key, name, meaning, values, errors, low, high }) {
  const flat = values.flat();
  const [i] = largest(flat, 1);
  const where = `layer ${Math.floor(i / attention.heads)}, head ${i % attention.heads}`;
  const first = `${name[0].toUpperCase()}${name.slice(1)}: ${meaning}.`;
  if (errors) {
    const { loss, on } = attention.ablation;
    const error = errors.flat()[i];
    return [
      first,
      `Most is lost without ${where}: ${signed(flat[i])} (standard error ${format(error, 4)}) on a loss of ${format(loss)}.`,
      `Measured on ${on}.`,
    ];
  }
  const sentences = [
    first,
    `The largest is ${where} with ${format(flat[i])}.`,
    `Without training, heads have ${format(low)} to ${format(high)} (${attention.untrained_models} models with fresh parameters).`,
  ];
  if (key === "induction") {
    const { first: once, second: again } = attention.repeated;
    return [
      ...sentences,
      `On the second copy of the random tokens the loss is ${format(again, 2)}, on the first ${format(once, 2)}: ` +
        `it ${again < once - 0.1 ? "uses" : "does not see"} the repetition.`,
    ];
  }
  return [...sentences, `Measured on ${attention.statistics_on}.`];
}

function drawHeads(root) {
  const [layers, heads] = [attention.layers, attention.heads];
  const grid = el("table", { class: "heads", role: "grid", "aria-label": "Layers by heads" });
  grid.append(
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("td", {}),
        range0(heads).map((h) => el("th", { scope: "col" }, `head ${h}`)),
      ),
    ),
  );
  const items = [];
  const body = el("tbody");
  for (const l of range0(layers)) {
    const row = el("tr", {}, el("th", { scope: "row" }, `layer ${l}`));
    for (const h of range0(heads)) {
      const item = el(
        "td",
        { class: "head", role: "gridcell" },
        el("canvas", { "aria-hidden": "true" }),
        el("span", { class: "number" }),
      );
      items.push(item);
      row.append(item);
    }
    body.append(row);
  }
  grid.append(body);
  roving(grid, items, heads, (i) => select({ layer: Math.floor(i / heads), head: i % heads, key: null }));
  const names = HEAD_NUMBERS.map((one) => [one.key, one.name]);
  const about = el("div", { class: "beside" });
  const named = attention.named.flatMap(({ layer, head, kind, value }, i) => [
    i ? ", " : "",
    el(
      "button",
      { type: "button", class: "link", onclick: () => select({ layer, head, key: null }) },
      `layer ${layer}, head ${head}`,
    ),
    ` ${kind === "induction" ? "is an induction head" : "looks at the token before"} (${fixed(value)})`,
  ]);
  root.append(
    el(
      "p",
      { class: "said" },
      named.length
        ? ["Heads with most of their weight on one kind of place: ", ...named, "."]
        : "No head gives most of its weight to the token before, or to what followed a token's last occurrence.",
    ),
  );
  root.append(
    el(
      "div",
      { class: "controls" },
      chooser("The number below each", names, state.statistic, (statistic) => select({ statistic })),
    ),
    el("div", { class: "pair" }, el("div", { class: "scroll" }, grid), about),
  );
  view(root, ["statistic"], () => {
    const one = HEAD_NUMBERS.find(({ key }) => key === state.statistic);
    const colour = colours("much", 0, 1);
    const faint = (x) => colour(Math.sqrt(x)); // small weights are seen too
    const said = (l, h) => (one.signs ? signed : format)(one.values[l][h]);
    items.forEach((item, i) => {
      const [l, h] = [Math.floor(i / heads), i % heads];
      pixels(item.firstChild, weightsOf(l, h), faint);
      item.lastChild.textContent = said(l, h);
      item.setAttribute("aria-label", `layer ${l}, head ${h}: ${one.name} ${said(l, h)}`);
    });
    about.replaceChildren(...headSentences(one).map((text) => el("p", {}, text)));
  });
  view(grid, ["layer", "head"], () => mark(items, state.layer * heads + state.head));
}

/** The selected head's three tables, side by side. */
function drawSteps(root) {
  const readout = el("p", { class: "said", role: "status" });
  const row = el("div", { class: "row three" });
  root.append(row, readout);
  let frames = [];
  view(row, ["layer", "head"], () => {
    const steps = stepsOf(state.layer, state.head);
    frames = steps.map(({ title, values, colour, say }) =>
      matrix({
        title,
        values,
        colour,
        say,
        readout,
        chosen: () => [query(), keyOf()],
        choose: (t, s) => select({ token: t, key: s, word: null }),
      }),
    );
    row.replaceChildren(
      ...steps.map(({ title, text }, i) => figure([el("b", {}, title), ` ${text}`], frames[i])),
    );
  });
  view(readout, ["token", "key", "layer", "head"], () => frames.forEach((frame) => frame.mark()));
}

/** Scores, mask and softmax of a head: what each shows, and what it says of a cell. */
function stepsOf(l, h) {
  const weights = weightsOf(l, h);
  const name = (t, s) => `Query ${placed(t)}, key ${placed(s)}`;
  const last = {
    title: "3. Softmax.",
    text: "exp(score) over its row's sum: each row sums to 1.",
    values: weights,
    colour: colours("much", 0, 1),
    say: (t, s) => `${name(t, s)}: weight ${format(weights[t][s])}.`,
  };
  const scores = scoresOf(l, h);
  if (!scores) return [{ ...last, title: "Weights." }];
  const all = allScoresOf(l, h);
  const far = Math.max(...range(all.flat()).map(Math.abs));
  const colour = colours("signed", -far, far);
  const hidden = theme() === "dark" ? [84, 88, 94] : [176, 172, 164];
  const score = (t, s) =>
    all[t][s] === null
      ? "a score that the mask removes, which this file leaves out"
      : `score ${format(all[t][s], s > t ? 2 : 3)}`;
  return [
    {
      title: "1. Scores.",
      text: `q·k × ${format(attention.scale)}: how well each query matches each key. Blue: more than 0; orange: less.`,
      values: all,
      colour,
      say: (t, s) => `${name(t, s)}: ${score(t, s)}.`,
    },
    {
      title: "2. Mask.",
      text: "−∞ (grey) for the tokens that a query may not see; the other scores stay.",
      values: scores,
      colour: (x) => (x === null ? hidden : colour(x)),
      say: (t, s) => `${name(t, s)}: ${visibleKey(t, s) ? `score ${format(scores[t][s])} stays` : "−∞"}.`,
    },
    last,
  ];
}

/** The selected token's row of the softmax: what it looks at, in words, as boxes and as a table. */
function drawRow(root) {
  const said = el("p", { class: "said" });
  const strip = el("div", {
    class: "strip",
    role: "listbox",
    "aria-label": "Keys: what the selected token looks at",
  });
  const cells = ids
    .slice(0, seenTokens)
    .map((id) => el("div", { class: "cell", role: "option" }, tokenOf(id), el("span", { class: "number" })));
  strip.append(...cells);
  roving(strip, cells, 0, (s) => select({ key: s }));
  const behind = el("div");
  const masked = el("p", { class: "note" });
  root.append(said, strip, legend("much", "weight 0", "1"), masked, behind);
  view(root, ["token", "layer", "head"], () => {
    const [t, l, h] = [query(), state.layer, state.head];
    const weights = weightsOf(l, h)[t];
    const most = largest(weights, 3).filter((s) => weights[s] >= 0.005);
    const looks = most.map((s) => `${s === t ? "itself" : placed(s)} ${format(weights[s], 2)}`);
    said.textContent = `Layer ${l}, head ${h}: ${placed(t)} attends to ${looks.join(", ")}.`;
    cells.forEach((cell, s) => {
      const sees = visibleKey(t, s);
      if (sees) paint(cell, shade("much", weights[s]));
      else cell.removeAttribute("style");
      cell.classList.toggle("masked", !sees);
      cell.hidden = s > t;
      cell.lastChild.textContent = sees ? fixed(weights[s]) : "−∞";
    });
    const ahead = seenTokens - 1 - t;
    masked.textContent = ahead
      ? `After ${quoted(t)} stand ${count(ahead, "token")} that the mask hides: score −∞, weight 0.`
      : "It is the last token: nothing is masked.";
    behind.replaceChildren(
      tableBehind("Table: this row in three steps", () => {
        const scores = attention.scores ? allScoresOf(l, h)[t] : [];
        return table(
          [["at", "r"], "key", ["score", "r"], ["masked", "r"], ["weight", "r"]],
          cells.map((_, s) => [
            String(s),
            tokenOf(ids[s]),
            scores[s],
            visibleKey(t, s) ? scores[s] : -Infinity,
            weights[s],
          ]),
          { caption: `Layer ${l}, head ${h}, query ${placed(t)}` },
        );
      }),
    );
  });
  view(strip, ["token", "key"], () => mark(cells, keyOf()));
}
