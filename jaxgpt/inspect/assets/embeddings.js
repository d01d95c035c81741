// The token embeddings at the start and end of training: neighbours, a map, tests of meaning, drift.

let table0 = data.embeddings; // of a large model it comes later, see start.js

/** The index of the word whose neighbours are shown: the chosen word, or the selected token. */
function chosenWord() {
  const known = table0.neighbours.map((one) => one.id);
  return Math.max(0, known.indexOf(state.word ?? ids[state.token]));
}

function when(name) {
  if (name === "start" && table0.start === table0.end) return "untrained"; // an imported model
  return name === "start" ? `step ${format(table0.start)}` : `step ${format(table0.end)}`;
}

function drawNeighbours(root) {
  const list = el(
    "select",
    { onchange: (event) => select({ word: table0.neighbours[event.target.value].id }) },
    table0.neighbours.map((one, i) => el("option", { value: i }, word(one.id))),
  );
  const kind = chooser(
    "by",
    [
      ["raw", "cosine"],
      ["centred", "cosine of centred rows (mean subtracted)"],
    ],
    "raw",
    (centring) => select({ centring }),
  );
  const said = el("p", { class: "said" });
  const place = el("div", { class: "row" });
  root.append(
    el("h3", { id: "neighbours" }, "Neighbours"),
    el("div", { class: "controls" }, el("label", {}, "Nearest to", list), kind),
    said,
    place,
  );
  view(root, ["token", "word", "centring"], () => {
    const i = chosenWord();
    const one = table0.neighbours[i];
    list.value = i;
    kind.querySelector("select").value = state.centring;
    const lists = ["start", "end"].map((name) => one[name][state.centring]);
    const [before, after] = lists.map((pairs) => pairs.map(([id]) => id));
    const stayed = after.filter((id) => before.includes(id));
    const wanted = state.word ?? ids[state.token];
    const instead =
      wanted === one.id
        ? ""
        : `This file has no neighbours of ‘${word(wanted)}’; those of ‘${word(one.id)}’ are shown. `;
    const before0 = stayed.length
      ? `${stayed.length} of these were already nearest at the start: ${stayed.map((id) => `‘${word(id)}’`).join(", ")}`
      : "none of these was at the start";
    said.textContent = `${instead}The table shows the ${after.length} nearest tokens to ‘${word(one.id)}’; ${before0}.`;
    place.replaceChildren(
      ...["start", "end"].map((name, side) => {
        const others = side ? before : after;
        const top = Math.max(0.01, ...lists.flat().map(([, score]) => score));
        return table(
          ["token", ["cosine", "r"], "bar", ["count in the text", "r"], "change"],
          lists[side].map(([id, score]) => [
            tokenOf(id),
            fixed(score, 3),
            bar(Math.max(score, 0), 0, top),
            format(data.vocabulary[id].count),
            others.includes(id) ? "kept" : side ? "new" : "lost",
          ]),
          { caption: `${when(name)}${side ? "" : ` (${table0.start_is})`}`, hidden: [2] },
        );
      }),
    );
  });
  const changed = [...table0.neighbours].sort((a, b) => a.kept - b.kept);
  root.append(
    tableBehind("Table: every token's neighbours", () =>
      table(
        ["token", ["kept", "r"], when("start"), when("end")],
        changed.map((one) => [tokenOf(one.id), percent(one.kept), near(one.start.raw), near(one.end.raw)]),
        { caption: "Nearest tokens by cosine, and the share of those at the start that are kept at the end" },
      ),
    ),
  );
}

function near(pairs) {
  return el(
    "span",
    {},
    pairs.slice(0, 5).flatMap(([id, score]) => [tokenOf(id), ` ${format(score, 2)}  `]),
  );
}

function drawMap(root) {
  const { scatter: map } = table0;
  if (!map) return;
  const place = el("div", { class: "row wide" });
  const mapNote = el(
    "p",
    { class: "note" },
    `Both maps have the same axes: ${map.axes}. Two axes show only part of the ${format(table0.width)} dimensions, so ` +
      "tokens that are close here need not be close in the table. Click a token to select it.",
  );
  root.append(
    el("h3", {}, "Map of the embeddings"),
    mapNote,
    el(
      "div",
      { class: "controls" },
      chooser(
        "Scale",
        [
          ["own", "each map fills its frame"],
          ["same", "the same for both"],
        ],
        state.scaling,
        (scaling) => select({ scaling }),
      ),
    ),
    place,
  );
  const around = (points) => [...range(points.map(([x]) => x)), ...range(points.map(([, y]) => y))];
  let pictures = [];
  view(place, ["scaling"], () => {
    const both = around([...map.start, ...map.end]);
    const boxes = ["start", "end"].map(() => el("figure"));
    place.replaceChildren(...boxes); // add them first, so that they have a width
    pictures = ["start", "end"].map((name, side) => {
      const share = map.variance[name];
      const picture = scatter(boxes[side], {
        title: `Map of ${count(map.ids.length, "token")} at ${when(name)}`,
        frame: state.scaling === "own" ? around(map[name]) : both,
        points: map.ids.map((id, i) => ({ x: map[name][i][0], y: map[name][i][1], name: id })),
        choose: (i) => select({ word: map.ids[i] }),
      });
      boxes[side].append(
        el(
          "figcaption",
          {},
          el("b", {}, when(name)),
          `: the axes explain ${percent(share[0])} and ${percent(share[1])} of the variance`,
        ),
        picture,
      );
      return picture;
    });
    showChosen();
  });
  const showChosen = () => {
    const place = map.ids.indexOf(state.word ?? ids[state.token]);
    pictures.forEach((picture) => picture.mark(place));
  };
  view(mapNote, ["token", "word"], showChosen);
  root.append(
    tableBehind("Table: the maps' coordinates", () =>
      table(
        [
          "token",
          ["start, first axis", "r"],
          ["second axis", "r"],
          ["end, first axis", "r"],
          ["second axis", "r"],
        ],
        map.ids.map((id, i) => [
          tokenOf(id),
          ...map.start[i].map((x) => format(x)),
          ...map.end[i].map((x) => format(x)),
        ]),
        { caption: "Coordinates on the two axes" },
      ),
    ),
  );
}

function interval({ auc, low, high }) {
  return auc === null ? "–" : `${fixed(auc)} [${fixed(low)}, ${fixed(high)}]`;
}

function drawMeanings(root) {
  const { pairs, analogies, analogy_families: families } = table0;
  root.append(el("h3", { id: "meanings" }, "Do the vectors know something about the tokens?"));
  if (!pairs.length && !analogies.length) {
    const why = pending("embeddings") ? "The tests are not computed yet." : "The vocabulary has none of the words of the tests.";
    root.append(el("p", { class: "empty" }, why));
    return;
  }
  if (pairs.length) {
    root.append(
      el(
        "p",
        { class: "note" },
        "AUC: how often a related pair has a higher cosine than a random pair. Chance is 0.5. In brackets: 95 % interval, which should contain 0.5 at the start.",
      ),
      table(
        ["related", "what", ["pairs", "r"], [when("start"), "r"], [when("end"), "r"], "above chance"],
        pairs.map((one) => [
          one.name,
          one.what,
          format(one.count),
          interval(one.start),
          interval(one.end),
          one.end.low > 0.5 ? "yes" : one.end.high < 0.5 ? "below" : "no",
        ]),
        { caption: "Related against random pairs (AUC)" },
      ),
    );
  }
  if (analogies.length) {
    const [candidates] = analogies.map((one) => one.candidates);
    root.append(
      el(
        "p",
        { class: "note" },
        `a − b + c: the rank of the right answer among ${format(candidates)} tokens. By chance its rank is 1 in one of ` +
          `${format(candidates)} questions. Excluding a, b and c is usual and easier; both results are shown.`,
      ),
      table(
        [
          "question",
          "answer",
          [`rank at ${when("start")}`, "r"],
          [`at ${when("end")}`, "r"],
          ["with a, b, c included", "r"],
          "nearest at the end",
          "result",
        ],
        analogies.map((one) => {
          const [a, b, c] = one.question.map(word);
          return [
            `${a} − ${b} + ${c}`,
            tokenOf(one.answer),
            format(one.start.aside.rank),
            format(one.end.aside.rank),
            format(one.end.all.rank),
            near(one.end.aside.top.slice(0, 3)),
            one.found ? "found" : "failed",
          ];
        }),
        { caption: "Analogies" },
      ),
    );
  }
  if (families?.length) {
    root.append(
      table(
        [
          "family",
          ["questions", "r"],
          ["right at the start", "r"],
          ["right at the end", "r"],
          ["with a, b, c included", "r"],
          ["chance", "r"],
        ],
        families.map((one) => [
          one.name,
          format(one.questions),
          percent(one.start.aside.value),
          percent(one.end.aside.value),
          percent(one.end.all),
          percent(one.chance),
        ]),
        { caption: "All questions of each family" },
      ),
    );
  }
}

function drawDrift(root) {
  const { drift } = table0;
  if (pending("embeddings")) return;
  const outer = root;
  root = el("div");
  outer.append(fold("Drift during training: how far the vectors moved, step by step", root));
  if (!drift) {
    root.append(
      el("p", { class: "empty" }, "The run saved no table of step 0 to compare with."),
    );
    return;
  }
  const place = el("div", { class: "row wide" });
  root.append(place);
  view(place, [], () => {
    const boxes = [el("figure"), el("figure")];
    place.replaceChildren(...boxes);
    const curve = (name, values, second = false) => ({
      name,
      second,
      points: drift.steps.map((step, i) => [step, values[i]]),
    });
    boxes[0].append(
      el(
        "figcaption",
        {},
        el("b", {}, "Cosine to step 0."),
        " Solid: mean of all rows. Dashed: 10th percentile.",
      ),
      lines(boxes[0], {
        title: `Mean cosine to step 0: ${format(drift.cosine.mean.at(-1))} at the end`,
        log: true,
        xName: "step (log-spaced)",
        yName: "cosine",
        height: 220,
        series: [curve("mean", drift.cosine.mean), curve("p10", drift.cosine.p10, true)],
      }),
    );
    boxes[1].append(
      el(
        "figcaption",
        {},
        el("b", {}, "Neighbours kept."),
        ` Share of each row's ${drift.k} nearest that it also has at the end (solid), at the start (dashed).`,
      ),
      lines(boxes[1], {
        title: "Share of neighbours shared with the end and with the start, by step",
        log: true,
        xName: "step (log-spaced)",
        yName: "share",
        height: 220,
        series: [curve("end", drift.kept_end), curve("start", drift.kept_start, true)],
      }),
    );
  });
  const listing = (pairs) =>
    el(
      "span",
      {},
      pairs.flatMap(([id, cosine]) => [tokenOf(id), ` ${format(cosine, 2)}  `]),
    );
  root.append(
    el("p", { class: "said" }, "Moved most (cosine to the row at the start): ", listing(drift.moved_most)),
    el(
      "p",
      { class: "said" },
      "Moved least: ",
      listing(drift.moved_least),
      drift.still ? `; ${count(drift.still, "row")} never moved` : "",
    ),
    tableBehind("Table: drift by step", () =>
      table(
        [
          ["step", "r"],
          ["mean cosine to step 0", "r"],
          ["10th percentile", "r"],
          ["90th", "r"],
          ["mean distance", "r"],
          ["neighbours shared with the start", "r"],
          ["with the end", "r"],
        ],
        drift.steps.map((step, i) => [
          format(step),
          ...[
            drift.cosine.mean,
            drift.cosine.p10,
            drift.cosine.p90,
            drift.distance,
            drift.kept_start,
            drift.kept_end,
          ].map((values) => format(values[i])),
        ]),
        { caption: `Drift of the token table (neighbours of ${count(drift.followed, "row")})` },
      ),
    ),
  );
}
