// Other views of the model: one token in two contexts, the position table, the neurons of the MLPs.

// --- one token, two contexts -------------------------------------------------------------------------

function drawContexts(root) {
  const { id, texts, rows, cosine, others } = data.contextual;
  root.append(
    el(
      "p",
      { class: "said" },
      `‘${word(id)}’ in two texts: its vectors start as the same row (cosine ${fixed(cosine[0])}) and have cosine ` +
        `${fixed(cosine.at(-1))} after the last block. The mean cosine of different tokens is ${fixed(others.at(-1))} there.`,
    ),
  );
  texts.forEach(({ ids: text, position, source }, n) => {
    root.append(
      el(
        "p",
        { class: "context" },
        el("span", { class: "soft" }, `${n ? "second" : "first"} text (${source}): `),
        contextOf(text, position),
      ),
    );
  });
  const top = Math.max(...cosine.map(Math.abs), ...others.map(Math.abs));
  const low = Math.min(0, ...cosine, ...others);
  root.append(
    table(
      [
        "the vector after",
        ["the same token", "r"],
        "bar",
        ["two different tokens", "r"],
        "bar of different tokens",
      ],
      rows.map((name, r) => [
        name,
        fixed(cosine[r], 3),
        bar(cosine[r], low, top),
        fixed(others[r], 3),
        bar(others[r], low, top),
      ]),
      { caption: "Cosine between the two vectors, by layer", hidden: [2, 4] },
    ),
  );
}

/** A text as tokens, with one token marked. */
function contextOf(text, at) {
  return el(
    "span",
    { class: "text" },
    text.map((id, t) => el(t === at ? "mark" : "span", { class: "token" }, word(id))),
  );
}

// --- positions ---------------------------------------------------------------------------------------

function drawPositions(root) {
  const { shown, start, end } = data.positions;
  const square = (triangle) =>
    shown.map((_, a) =>
      shown.map((_, b) => triangle[(Math.max(a, b) * (Math.max(a, b) + 1)) / 2 + Math.min(a, b)]),
    );
  const readout = el("p", { class: "said", role: "status" });
  const row = el("div", { class: "row" });
  const both = [
    ["start", start],
    ["end", end],
  ]
    .filter(([, triangle]) => triangle)
    .map(([name, triangle]) => [name, square(triangle)]);
  let frames = [];
  const rowOf = (t) => largest(shown.map((p) => -Math.abs(p - t)), 1)[0];
  root.append(row, legend("signed", "cosine −1", "1"), readout);
  const neighbours = both.at(-1)[1];
  const next = shown.slice(1).map((_, i) => neighbours[i + 1][i]);
  const mean = next.reduce((a, b) => a + b, 0) / next.length;
  root.append(
    el(
      "p",
      { class: "note" },
      `At the end the mean cosine of adjacent shown positions is ${fixed(mean)}; that of the first and last position is ` +
        `${fixed(neighbours[shown.length - 1][0])}.`,
    ),
  );
  view(row, [], () => {
    frames = both.map(([name, values]) =>
      matrix({
        title: `Cosine between position vectors, ${when(name)}`,
        values,
        colour: colours("signed", -1, 1),
        readout,
        axes: ["position", "position"],
        chosen: () => [rowOf(state.token), state.column],
        choose: (row, column) => select({ column, token: Math.min(shown[row], ids.length - 1), key: null, word: null }),
        say: (a, b) =>
          `Positions ${shown[a]} and ${shown[b]}: cosine ${both.map(([name, values]) => `${format(values[a][b])} at ${when(name)}`).join(", ")}.`,
      }),
    );
    row.replaceChildren(...both.map(([name], i) => figure(el("b", {}, when(name)), frames[i])));
  });
  view(readout, ["token", "column"], () => frames.forEach((frame) => frame.mark()));
  root.append(
    tableBehind("Table: cosine by distance", () =>
      table(
        [
          ["position", "r"],
          ...both.flatMap(([name]) => [1, 2, 4, 8].map((d) => [`${d} later, ${when(name)}`, "r"])),
        ],
        shown.map((p, a) => [
          String(p),
          ...both.flatMap(([, values]) =>
            [1, 2, 4, 8].map((d) => (a + d < shown.length ? format(values[a + d][a]) : "–")),
          ),
        ]),
        { caption: "Cosine with the shown position 1, 2, 4 and 8 later" },
      ),
    ),
  );
}
