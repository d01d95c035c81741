// "Watch it learn": one slider over the saved steps moves a map of the tokens, what the model writes, and every curve.

const learned = data.learning;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** A sample's text: lines stay lines, and what can't be seen is written out. */
function visibleLines(text) {
  return text
    .split("\n")
    .map((line) => (line ? visible(line).replaceAll(SIGNS[" "], " ") : ""))
    .join("\n");
}

/** The events up to a step, the latest last. */
function eventsUntil(step) {
  return learned.events.filter((one) => one.to <= step);
}

function drawLearning(root) {
  const { steps, loss, levels } = learned;
  const last = steps.length - 1;
  const pair = levels.bigram === null ? "" : ` (A table of token pairs, the bigram, has ${fixed(levels.bigram)}.)`;
  const now = el("output", { class: "step-now" });
  const slider = el("input", {
    type: "range",
    min: 0,
    max: last,
    step: 1,
    value: state.at,
    "aria-label": "Step of training",
    oninput: (event) => {
      stop();
      select({ at: Number(event.target.value) });
    },
  });
  const button = el("button", { type: "button", class: "main", id: "play" }, "▶ Play");
  const map = el("figure", { class: "token-map" });
  const sample = el("pre", { class: "sample", tabindex: 0, "aria-label": "What the model writes at this step" });
  const sampleName = el("figcaption");
  const curve = el("figure");
  const curveName = el("figcaption", { class: "loss-now" });
  const news = el("p", { class: "said news", role: "status" });
  root.append(
    el(
      "p",
      { class: "story" },
      `At step ${format(steps[0])} it wrote `,
      el("code", {}, shortened(visible(learned.samples[0].trim()), 24)),
      ", with a loss of ",
      el("b", {}, fixed(loss[0])),
      ` nats per token. At step ${format(steps[last])} the loss is `,
      el("b", {}, fixed(loss[last])),
      `, and it writes the text below.${pair}`,
    ),
    el("div", { class: "controls time" }, button, slider, now),
    news,
    el("div", { class: "learn" }, map, el("div", {}, el("figure", {}, sampleName, sample), curve)),
  );

  let picture = null;
  view(map, [], () => {
    map.replaceChildren();
    if (learned.map) {
      picture = tokenMap(map);
      picture.move(state.at);
    }
  });
  let losses = null;
  view(curve, [], () => {
    losses = timeline(curve, {
      title: `Loss by step, from ${fixed(loss[0])} to ${fixed(loss[last])}`,
      steps,
      series: [{ name: "loss", values: loss, strong: "one", label: `model ${fixed(loss[last])}` }],
      levels: Object.entries(levels).filter(([name, y]) => y !== null && name !== "uniform"),
      marks: learned.events.map((one) => one.to),
      height: 140,
    });
    curve.replaceChildren(curveName, losses);
    losses.mark(state.at);
  });
  view(root, ["at"], () => {
    const i = state.at;
    slider.value = i;
    slider.setAttribute("aria-valuetext", `step ${format(steps[i])}`);
    now.textContent = `step ${format(steps[i])}`;
    curveName.replaceChildren(el("b", {}, "Loss"), ` at step ${format(steps[i])}: ${fixed(loss[i])} nats per token (steps on a log scale)`);
    sample.textContent = visibleLines(learned.samples[i]);
    const known = learned.words[i];
    sampleName.replaceChildren(
      el("b", {}, "What it writes"),
      ` at step ${format(steps[i])}${known === null ? "" : `: ${percent(known)} of its words are in the training text`}`,
    );
    const latest = eventsUntil(steps[i]).at(-1);
    news.textContent = latest?.text ?? (learned.events.length ? "Nothing is learned yet." : "Nothing changed enough to be named.");
    losses?.mark(i);
    if (!playing) picture?.move(i);
  });

  // --- playing: the letters move from step to step ------------------------------------------------
  let playing = 0;
  const stop = () => {
    cancelAnimationFrame(playing);
    playing = 0;
    button.textContent = "▶ Play";
    picture?.move(state.at);
  };
  const play = () => {
    if (playing) {
      stop();
      return;
    }
    const from = state.at === last ? 0 : state.at;
    const start = performance.now();
    button.textContent = "❚❚ Pause";
    const frame = (time) => {
      // The first frame may have started before the click.
      const at = Math.min(last, from + Math.max(0, time - start) / 600);
      if (Math.floor(at) !== state.at) select({ at: Math.floor(at) });
      picture?.move(still.matches ? Math.floor(at) : at);
      if (at < last) playing = requestAnimationFrame(frame);
      else stop();
    };
    select({ at: from });
    playing = requestAnimationFrame(frame);
  };
  button.addEventListener("click", play);
  options.stop?.addEventListener("abort", stop);
}

/** The map of the tokens; `move(at)` shows a step, or the way between two. */
function tokenMap(root) {
  const { ids: shown, xy, kinds, kind } = learned.map;
  const width = Math.max(240, Math.min(root.clientWidth || 380, 420));
  const height = Math.min(width, 340);
  // The frame holds the last step's tokens, with one scale for both axes. What is farther out earlier stands at the edge.
  const frame = [0, 1].map((d) => range(xy.at(-1).map((at) => at[d])));
  const scale = Math.min(...[width, height].map((size, d) => (size - 44) / (frame[d][1] - frame[d][0] || 1)));
  const place = (x, d, size) => {
    const at = size / 2 + (d ? -1 : 1) * scale * (x - (frame[d][0] + frame[d][1]) / 2);
    return Math.max(10, Math.min(size - 10, at));
  };
  const names = shown.map((id, p) =>
    svg(
      "text",
      { class: `name kind-${kinds[kind[p]].replaceAll(" ", "-")}`, "text-anchor": "middle" },
      shortened(word(id), 12),
      svg("title", {}, `${word(id)}: ${kinds[kind[p]]}`),
    ),
  );
  names.forEach((name, p) => name.addEventListener("click", () => select({ word: shown[p] })));
  const picture = svg(
    "svg",
    {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `Map of ${count(shown.length, "token")}: ${kinds.join(", ")}`,
    },
    svg("rect", { class: "axis", x: 0.5, y: 0.5, width: width - 1, height: height - 1 }),
    names,
  );
  const move = (at) => {
    const [i, part] = [Math.floor(at), at - Math.floor(at)];
    const [one, two] = [xy[i], xy[Math.min(i + 1, xy.length - 1)]];
    names.forEach((name, p) => {
      const [x, y] = [0, 1].map((d) => one[p][d] + part * (two[p][d] - one[p][d]));
      name.setAttribute("transform", `translate(${place(x, 0, width).toFixed(1)} ${(place(y, 1, height) + 4).toFixed(1)})`);
    });
  };
  root.append(
    el("figcaption", {}, el("b", {}, "Its tokens"), ": near means similar"),
    picture,
    el(
      "p",
      { class: "legend" },
      kinds.map((name) => el("span", { class: `key kind-${name.replaceAll(" ", "-")}` }, name)),
    ),
  );
  return { move };
}

function shortened(text, most) {
  const letters = [...text];
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

// --- what happened when, and the other curves --------------------------------------------------------

function drawEvents(root) {
  const { events, steps } = learned;
  if (!events.length) return;
  const items = events.map((one) =>
    el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          class: "link when",
          onclick: () =>
            select({
              at: steps.indexOf(one.to),
              ...(one.layer === undefined ? {} : { layer: one.layer, head: one.head, key: null, pattern: one.pattern }),
            }),
        },
        `step ${format(one.to)}`,
      ),
      ` ${one.text}`,
    ),
  );
  root.append(el("h3", { id: "events" }, "What happened when"), el("ol", { class: "events" }, items));
  view(root, ["at"], () => items.forEach((item, i) => item.classList.toggle("done", events[i].to <= steps[state.at])));
}

const STRONG = ["one", "two", "three", "four", "five"];

function drawLearnedCurves(root) {
  const { steps, patterns, parts, moved, late, by_position: byPosition, positions } = learned;
  const chosen = learned.events.filter((one) => one.kind === "head");
  const offered = Object.keys(patterns).filter(
    (name) => ["previous_token", "induction"].includes(name) || chosen.some((one) => one.pattern === name),
  );
  const boxes = range0(4).map(() => el("figure"));
  const choice = chooser(
    "Head score",
    offered.map((name) => [name, name.replaceAll("_", " ")]),
    state.pattern,
    (pattern) => select({ pattern }),
  );
  root.append(el("h3", {}, "More curves"), el("div", { class: "controls" }, choice), el("div", { class: "row wide" }, boxes));
  let pictures = [];
  view(root, ["pattern"], () => {
    choice.querySelector("select").value = state.pattern;
    const { scores, high } = patterns[state.pattern];
    const flat = scores[0].flatMap((row, l) => row.map((_, h) => [l, h]));
    const strong = largest(
      flat.map(([l, h]) => scores.at(-1)[l][h]),
      3,
    ).filter((i) => scores.at(-1)[flat[i][0]][flat[i][1]] > high);
    const curves = [
      [
        [el("b", {}, `Weight of every head: ${state.pattern.replaceAll("_", " ")}.`), " Each line is a head."],
        flat.map(([l, h], i) => ({
          name: `${l}.${h}`,
          label: `head ${l}.${h}`,
          values: scores.map((at) => at[l][h]),
          strong: strong.includes(i) ? STRONG[strong.indexOf(i)] : undefined,
        })),
      ],
      [
        [
          el("b", {}, "Use of the context."),
          learned.levels.bigram === null
            ? " Loss of the last quarter of a window less that of the first."
            : " Loss late in a window less that early, each less the bigram's.",
        ],
        [{ name: "late less early", values: late, strong: "one" }],
      ],
      [
        [el("b", {}, "How far each part moved"), " from its start, relative to its norm."],
        parts.map((name, n) => ({
          name,
          label: shortened(name, 12),
          values: moved.map((row) => row[n]),
          strong: largest(moved.at(-1), 3).includes(n) ? STRONG[largest(moved.at(-1), 3).indexOf(n)] : undefined,
        })),
      ],
    ];
    pictures = curves.map(([, series], n) =>
      timeline(boxes[n], { title: series.map((one) => one.name).join(", "), steps, series, low: n === 1 ? null : 0 }),
    );
    curves.forEach(([caption], n) => boxes[n].replaceChildren(el("figcaption", {}, caption), pictures[n]));
    pictures.forEach((picture) => picture.mark(state.at));
  });
  view(boxes[3], ["at"], () => {
    pictures.forEach((picture) => picture.mark(state.at));
    const points = (i) => byPosition[i].map((y, p) => [p + 1, y]);
    boxes[3].replaceChildren(
      el(
        "figcaption",
        {},
        el("b", {}, "Loss by position"),
        ` in the window, at step ${format(steps[state.at])} (solid) and at the end (dashed).`,
      ),
      lines(boxes[3], {
        title: `Loss by position, ${positions.length} groups of positions`,
        series: [
          { name: "now", points: points(state.at) },
          { name: "end", points: points(steps.length - 1), second: true },
        ],
        xName: positions.at(-1).includes("to") ? "group of positions" : "position",
        yName: "nats per token",
        height: 170,
      }),
    );
  });
  root.append(
    tableBehind("Table: every step", () =>
      table(
        [
          ["step", "r"],
          ["loss", "r"],
          ["words in the training text", "r"],
          ["late less early", "r"],
          ...chosen.map((one) => [`head ${one.layer}.${one.head}: ${one.pattern.replaceAll("_", " ")}`, "r"]),
          "it writes",
        ],
        steps.map((step, i) => [
          format(step),
          learned.loss[i],
          percent(learned.words[i]),
          late[i],
          ...chosen.map((one) => patterns[one.pattern].scores[i][one.layer][one.head]),
          el("span", { class: "token" }, shortened(visible(learned.samples[i]), 60)),
        ]),
        { caption: `Measured on ${learned.on}` },
      ),
    ),
    el(
      "p",
      { class: "note" },
      `Measured on ${learned.on}.`,
      learned.map
        ? ` The map has the same two axes at every step: they hold ${percent(learned.map.variance.at(-1))} of the variance of these ` +
            `tokens at the end and ${percent(learned.map.variance[0])} at first.`
        : "",
    ),
  );
}
