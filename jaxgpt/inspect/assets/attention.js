// Attention: all heads as small pictures, and the selected head in three steps: scores, mask, softmax.

const attention = data.attention;

/** Number of tokens in the attention tables. A large model's tables may be cut (see `data.cut`). */
const seenTokens = (() => {
  const triangle = attention.scores ? attention.scores[0][0].length : attention.weights[0][0].length / 2;
  return Math.round((Math.sqrt(8 * triangle + 1) - 1) / 2);
})();

/** Whether the mask lets query t see key s. */
function visibleKey(t, s) {
  return s <= t && (!attention.window || s > t - attention.window);
}

/** A head's scores, one row per query; null for masked keys. Null if the file has no scores. */
function scoresOf(l, h) {
  if (!attention.scores) return null;
  return square(attention.scores[l][h], attention.score_unit, null);
}

function square(triangle, unit, hidden) {
  return range0(seenTokens).map((t) =>
    range0(seenTokens).map((s) => (visibleKey(t, s) ? triangle[(t * (t + 1)) / 2 + s] * unit : hidden)),
  );
}

/** A head's scores before the mask; null where the file leaves them out (above the diagonal of a large model). */
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

/** A head as a sentence names it. */
function headName(l, h) {
  return `layer ${l}, head ${h}`;
}

/** What a head with a clear job looks at, in a few words; "" for the others. */
function jobOf(l, h) {
  const found = attention.named.find(({ layer, head }) => layer === l && head === h);
  return found ? found.kind.replaceAll("_", " ") : "";
}

/** The numbers of 12 bits of a text in base64: two characters for each. */
function unpacked(text) {
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const value = new Map([...digits].map((c, i) => [c, i]));
  return range0(text.length / 2).map((i) => 64 * value.get(text[2 * i]) + value.get(text[2 * i + 1]));
}

const softmaxes = new Map();

/** A head's weights, one row per query. Computed at the first call. */
function weightsOf(l, h) {
  const name = `${l}.${h}`;
  if (!softmaxes.has(name)) {
    softmaxes.set(
      name,
      attention.scores
        ? scoresOf(l, h).map(softmax)
        : square(unpacked(attention.weights[l][h]), attention.weight_unit, 0),
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

/** The selected key, or by default the one with the largest weight. */
function keyOf() {
  const row = weightsOf(state.layer, state.head)[query()];
  return state.key !== null && state.key < seenTokens ? state.key : largest(row, 1)[0];
}

/** The selected token as a query, or the last token of a cut table. */
function query() {
  return Math.min(state.token, seenTokens - 1);
}

/** The statistics of the heads: name, meaning, values, and the values of untrained models. */
const HEAD_NUMBERS = [
  ["previous_token", "previous-token score", "the mean weight on the previous token"],
  [
    "induction",
    "induction score",
    "on a random sequence repeated once, the mean weight on the token after the previous occurrence " +
      "(prefix matching, Olsson et al. 2022)",
  ],
  ["relative_entropy", "relative entropy", "0: all weight on one token; 1: equal weights"],
  ["mean_distance", "mean distance", "the weighted mean number of tokens back"],
  [
    "copying",
    "copying score",
    "how high the head puts the token that it looks at most among the text's tokens, by what it adds to their logits (0 to 1)",
  ],
  ...Object.entries(attention.patterns).map(([key, what]) => [key, `weight on ${what}`, `the mean weight on ${what}`]),
]
  .map(([key, name, meaning]) => ({
    key,
    name,
    meaning,
    values: attention.statistics[key].value,
    ...attention.statistics[key],
  }))
  .filter(({ values }) => values.flat().some((x) => x !== null)); // a very short context can't hold a repeated sequence
for (const [kind, name, by] of [
  ["mean", "loss increase without it", "its mean"],
  ["zero", "loss increase without it (zero)", "zero"],
]) {
  const found = attention.ablation?.[kind];
  if (found) {
    HEAD_NUMBERS.push({
      key: kind,
      name,
      values: found.difference,
      errors: found.standard_error,
      signs: true,
      meaning: `the increase of the loss, in nats, when the head's output is replaced by ${by} (a strong attention pattern need not be important)`,
    });
  }
}

/** The meaning of a statistic, the head with the largest value, and the range of untrained models. */
function headSentences({ key, name, meaning, values, errors, low, high, share }) {
  const flat = values.flat();
  const [i] = largest(flat, 1);
  const where = headName(Math.floor(i / attention.heads), i % attention.heads);
  const first = `${name[0].toUpperCase()}${name.slice(1)}: ${meaning}.`;
  if (errors) {
    const { loss, on } = attention.ablation;
    const error = errors.flat()[i];
    return [
      first,
      `Removing ${where} hurts most: ${signed(flat[i])} (standard error ${format(error, 4)}) on a loss of ${format(loss)}.`,
      `Measured on ${on}.`,
    ];
  }
  const sentences = [
    first,
    `The largest value is ${fixed(flat[i], 3)}, of ${where}.`,
    `Untrained heads have ${fixed(low, 3)} to ${fixed(high, 3)} (${count(attention.untrained_models, "model")} with fresh parameters).`,
  ];
  if (key === "induction") {
    const { first: once, second: again } = attention.repeated;
    return [
      ...sentences,
      `The loss is ${format(once, 2)} on the first copy of the random sequence and ${format(again, 2)} on the second: ` +
        `the model ${again < once - 0.1 ? "uses" : "does not use"} the repetition.`,
    ];
  }
  if (typeof share === "number") sentences.push(`A head with equal weights has ${fixed(share, 3)}.`);
  return [...sentences, `Measured on ${attention.statistics_on}.`];
}

/** What heads with a general job look at, and what one and several such heads are called. */
const JOBS = {
  previous_token: ["the token before", " (a previous-token head)", " (previous-token heads)"],
  induction: ["what followed the same token earlier", " (an induction head)", " (induction heads)"],
};

const MOST_JOBS = 8; // sentences; more heads are listed by job
const MOST_LAYERS = 16; // rows of pictures; more scroll

/** The heads with a clear job: a sentence each, or if there are many a line for each job. */
function jobsOfHeads() {
  const button = ({ layer, head, kind }, name) =>
    el(
      "button",
      { type: "button", class: "link", onclick: () => select({ layer, head, key: null, statistic: kind }) },
      name,
    );
  const what = (kind, number) => {
    const [keys, one, many] = JOBS[kind] ?? [attention.patterns[kind], "", ""];
    return number === 1 ? `looks at ${keys}${one}` : `look at ${keys}${many}`;
  };
  const equal = (share) => (typeof share === "number" ? ` (equal weights: ${fixed(share)})` : "");
  if (attention.named.length <= MOST_JOBS)
    return attention.named.map((one) =>
      el("li", {}, button(one, headName(one.layer, one.head)), ` ${what(one.kind, 1)}: weight ${fixed(one.value)}${equal(one.share)}`),
    );
  const kinds = [...new Set(attention.named.map(({ kind }) => kind))];
  return kinds.map((kind) => {
    const own = attention.named.filter((one) => one.kind === kind).sort((a, b) => b.value - a.value);
    return el(
      "li",
      {},
      `${count(own.length, "head")} ${what(kind, own.length)}${equal(own[0].share)}: `,
      own.flatMap((one, i) => [i ? ", " : "", button(one, `${one.layer}.${one.head}`), ` ${fixed(one.value)}`]),
    );
  });
}

function drawHeads(root) {
  const [layers, heads] = [attention.layers, attention.heads];
  const grid = el("table", { id: "heads", class: "heads", role: "grid", "aria-label": "Layers by heads" });
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
        el("span", { class: "job" }, jobOf(l, h)),
      );
      items.push(item);
      row.append(item);
    }
    body.append(row);
  }
  grid.append(body);
  roving(grid, items, heads, (i) => select({ layer: Math.floor(i / heads), head: i % heads, key: null }));
  const names = HEAD_NUMBERS.map((one) => [one.key, one.name]);
  const about = el("div", { class: "about" });
  const frame = el("div", { class: layers > MOST_LAYERS ? "scroll tall" : "scroll" }, grid);
  const choice = chooser("Number shown", names, state.statistic, (statistic) => select({ statistic }));
  const jobs = jobsOfHeads();
  if (pending("heads")) root.append(el("p", { class: "said" }, "The heads are not measured yet."));
  else root.append(
    ...(jobs.length
      ? [el("h3", { id: "jobs" }, "Heads with a clear job"), el("ul", { class: "jobs" }, jobs)]
      : [
          el(
            "p",
            { class: "said" },
            "No head has a clear job: none puts most of its weight on one kind of token that this page tests for.",
          ),
        ]),
  );
  root.append(
    ...(names.length ? [el("div", { class: "controls" }, choice)] : []),
    el("div", { class: "pair" }, frame, about),
  );
  root.append(
    legend("much", "weight 0", "1 (square root scale); rows are queries, columns are keys"),
  );
  view(root, ["statistic"], () => {
    choice.querySelector("select").value = state.statistic;
    const one = HEAD_NUMBERS.find(({ key }) => key === state.statistic);
    const colour = colours("much", 0, 1);
    const faint = (x) => colour(Math.sqrt(x)); // the square root makes small weights visible
    const said = (l, h) => (one ? `${one.signs && one.values[l][h] > 0 ? "+" : ""}${fixed(one.values[l][h], 3)}` : "");
    items.forEach((item, i) => {
      const [l, h] = [Math.floor(i / heads), i % heads];
      pixels(item.firstChild, weightsOf(l, h), faint);
      item.querySelector(".number").textContent = said(l, h);
      item.setAttribute("aria-label", `${headName(l, h)}${one ? `: ${one.name} ${said(l, h)}` : ""}${jobOf(l, h) ? `; job: ${jobOf(l, h)}` : ""}`);
    });
    about.replaceChildren(...(one ? headSentences(one) : []).map((text) => el("p", {}, text)));
  });
  view(grid, ["layer", "head"], () => {
    const chosen = items[state.layer * heads + state.head];
    mark(items, state.layer * heads + state.head);
    const [box, own] = [frame.getBoundingClientRect(), chosen.getBoundingClientRect()];
    if (own.top < box.top || own.bottom > box.bottom) frame.scrollTop += own.top - box.top - box.height / 2; // not the page
  });
}

/** The selected head's scores, mask and softmax, next to each other. */
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
        axes: ["query", "key"],
        chosen: () => [query(), keyOf()],
        choose: (t, s) => select({ token: t, key: s, word: null }),
      }),
    );
    row.replaceChildren(
      ...steps.map(({ title, text, scale }, i) =>
        figure([el("b", {}, title), ` ${text}`], frames[i], legend(...scale)),
      ),
    );
  });
  view(readout, ["token", "key", "layer", "head"], () => frames.forEach((frame) => frame.mark()));
}

/** Title, caption, values, colours and the text of a cell for a head's scores, mask and softmax. */
function stepsOf(l, h) {
  const weights = weightsOf(l, h);
  const name = (t, s) => `Query ${placed(t)}, key ${placed(s)}`;
  const last = {
    title: "3. Softmax.",
    text: "exp(score) divided by the sum of its row: each row sums to 1.",
    values: weights,
    colour: colours("much", 0, 1),
    scale: ["much", "weight 0", "1"],
    say: (t, s) => `${name(t, s)}: weight ${fixed(weights[t][s], 3)}.`,
  };
  const scores = scoresOf(l, h);
  if (!scores) return [{ ...last, title: "Weights." }];
  const all = allScoresOf(l, h);
  const far = Math.max(...range(all.flat()).map(Math.abs));
  const colour = colours("signed", -far, far);
  const hidden = theme() === "dark" ? [84, 88, 94] : [176, 172, 164];
  const score = (t, s) =>
    all[t][s] === null
      ? "masked; the score is not in this file"
      : `score ${format(all[t][s], s > t ? 2 : 3)}`;
  return [
    {
      title: "1. Scores.",
      text: `q·k × ${format(attention.scale)}: how well each query matches each key.`,
      values: all,
      colour,
      scale: ["signed", `score ${fixed(-far, 1)}`, fixed(far, 1)],
      say: (t, s) => `${name(t, s)}: ${score(t, s)}.`,
    },
    {
      title: "2. Mask.",
      text: "−∞ (grey) at keys that the query may not see. The other scores are unchanged.",
      values: scores,
      colour: (x) => (x === null ? hidden : colour(x)),
      scale: ["signed", fixed(-far, 1), `${fixed(far, 1)}; grey: −∞`],
      say: (t, s) => `${name(t, s)}: ${visibleKey(t, s) ? `score ${format(scores[t][s])}, unchanged` : "−∞"}.`,
    },
    last,
  ];
}

/** The selected token's attention weights: as a sentence, as boxes and as a table. */
function drawRow(root) {
  const said = el("p", { class: "said" });
  const strip = el("div", {
    class: "strip",
    role: "listbox",
    "aria-label": "Keys: attention weights of the selected token",
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
      ? `The mask hides the ${count(ahead, "later token")}: score −∞, weight 0.`
      : "This is the last token: nothing is masked.";
    behind.replaceChildren(
      tableBehind("Table: scores, mask and weights of this token", () => {
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
