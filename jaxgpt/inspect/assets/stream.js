// The next token's probabilities, the contributions to the residual stream, and the logit lens.

// --- next token --------------------------------------------------------------------------------------

/** log of the sum over the vocabulary of exp(logit / temperature). */
function logSum(t, temperature) {
  const { temperatures, logsumexp } = data.next;
  const at = temperatures.findIndex((x) => x >= temperature - 1e-9);
  return logsumexp[t][at];
}

/** A temperature with one decimal, or with all that it has. */
function degrees(x) {
  return Math.abs(x - Math.round(10 * x) / 10) < 1e-9 ? x.toFixed(1) : String(x);
}

function drawNext(root) {
  const { temperatures } = data.next;
  const said = el("p", { class: "said" });
  const now = el("output", {}, degrees(state.temperature));
  const slider = el("input", {
    type: "range",
    min: 0,
    max: temperatures.length - 1,
    step: 1,
    value: temperatures.indexOf(state.temperature),
    "aria-label": "Temperature",
    oninput: (event) => select({ temperature: temperatures[event.target.value] }),
  });
  const place = el("div");
  root.append(said, el("div", { class: "controls" }, el("label", {}, "Temperature", slider, now)), place);
  view(root, ["token", "temperature"], () => {
    const [t, s] = [state.token, state.temperature];
    const total = logSum(t, s);
    const p = (logit) => Math.exp(logit / s - total);
    const truth = ids[t + 1];
    const ten = data.next.ids[t].slice(0, 10);
    const rows = ten.map((id, k) => [String(k + 1), tokenOf(id), p(data.next.logits[t][k])]);
    const inside = ten.indexOf(truth);
    if (truth !== undefined && inside < 0) {
      rows.push([format(data.tokens.rank[t]), tokenOf(truth), p(data.next.true_logit[t])]);
    }
    now.textContent = degrees(s);
    slider.setAttribute("aria-valuetext", degrees(s));
    const where = inside < 0 ? rows.length - 1 : inside;
    if (truth === undefined) {
      said.textContent = `The text ends after ${quoted(t)}: these are the model's predictions for the next token.`;
    } else {
      const { rank, nats, bits } = data.tokens;
      const means =
        s === 1
          ? `, a loss of ${format(nats[t], 2)} nats or ${format(bits[t], 2)} bits`
          : ` at temperature ${degrees(s)}`;
      said.textContent =
        `The token after ${quoted(t)} is ‘${word(truth)}’: rank ${format(rank[t])} of ${format(vocabSize)}, ` +
        `p ${chance(rows[where][2])}${means}.`;
    }
    const most = Math.max(...rows.map((row) => row[2]));
    place.replaceChildren(
      table(
        [["rank", "r"], "token", ["probability", "r"], "bar"],
        rows.map(([rank, token, p]) => [rank, token, chance(p), bar(p, 0, most)]),
        {
          caption: `The ${ten.length} most probable tokens after ${quoted(t)}${truth === undefined ? "" : "; the actual next token is marked"}`,
          hidden: [3],
          dress: (tr, _, i) => {
            if (truth !== undefined && i === where) {
              tr.classList.add("true");
              tr.children[1].append(" ← actual");
            }
          },
        },
      ),
    );
  });
}

// --- ledger ------------------------------------------------------------------------------------------

/** The readable name of a ledger entry: "0.1" is layer 0, head 1. */
function entryName(name) {
  const [layer, what] = name.split(".");
  if (what === undefined) return { token: "token embedding", position: "position embedding" }[name] ?? name;
  if (what === "mlp") return `layer ${layer} MLP`;
  if (what === "heads") return `layer ${layer} heads`;
  if (what === "bias") return `layer ${layer} attention bias`;
  return `layer ${layer} head ${what}`;
}

/** The ledger's entries at one token. `each`: one row per head, else one row for all heads of a layer. */
function ledgerRows(t, each) {
  const { contribution_entries: names, contributions, norms, entries } = data.ledger;
  const known = t < ids.length - 1;
  const rows = [];
  names.forEach((name, n) => {
    const row = {
      name: entryName(name),
      key: name,
      value: known ? contributions[n][t] : null,
      norm: entries[n] === name ? norms[n][t] : null,
    };
    const [layer, what] = name.split(".");
    const part = what !== undefined && what !== "mlp";
    if (part && !each) {
      const before = rows[rows.length - 1];
      const sum = `layer ${layer} attention`;
      if (before?.name === sum) before.value = known ? before.value + row.value : null;
      else rows.push({ ...row, name: sum, key: `${layer}.attention`, norm: null });
    } else rows.push(row);
  });
  return rows;
}

/** A step of a waterfall: a bar from the sum before to the sum after. */
function stepBar(from, to, low, high) {
  const node = bar(to - from, low, high);
  node.firstChild.style.setProperty("--from", (Math.min(from, to) - low) / (high - low || 1));
  return node;
}

function drawLedger(root) {
  const said = el("p", { class: "said" });
  const each = el("input", { type: "checkbox", onchange: (event) => select({ each: event.target.checked }) });
  each.checked = state.each = data.ledger.contribution_entries.length <= 16;
  const place = el("div");
  root.append(said, el("div", { class: "controls" }, el("label", {}, each, "show each head")), place);
  view(root, ["token", "each"], () => {
    const t = state.token;
    const rows = ledgerRows(t, state.each);
    const truth = ids[t + 1];
    const values = rows.map((row) => row.value ?? 0);
    let sum = 0;
    const steps = values.map((value) => [sum, (sum += value)]);
    const ends = steps.flat();
    const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const norms = Math.max(...rows.map((row) => row.norm ?? 0));
    const cells = rows.map((row) => [
      row.name,
      row.norm === null ? "–" : fixed(row.norm),
      bar(row.norm ?? 0, 0, norms),
      row.value === null ? "–" : signed(row.value),
      row.value === null ? "" : stepBar(...steps[rows.indexOf(row)], low, high),
    ]);
    const columns = [
      "written by",
      ["norm", "r"],
      ["norm, bar", "extra"],
      ["adds to the logit", "r"],
      "the sum so far",
    ];
    if (truth === undefined) {
      said.textContent = `The text ends at ${quoted(t)}: there is no actual next token, so only the norms are shown.`;
    } else {
      const mlp = rows.filter((row) => row.key.endsWith(".mlp")).pop();
      const [best] = largest(values, 1);
      said.textContent =
        `At ${quoted(t)} the logit of the actual next token ‘${word(truth)}’ is ${format(data.ledger.logit[t], 2)}. ` +
        `The largest contribution is ${signed(values[best], 2)} by ${rows[best].name}` +
        `${mlp ? `; the last MLP contributes ${signed(mlp.value, 2)}` : ""}.`;
      cells.push(["= logit", fixed(data.ledger.stream_norm[t]), "", format(data.ledger.logit[t]), stepBar(0, data.ledger.logit[t], low, high)]);
    }
    place.replaceChildren(
      table(columns, cells, {
        caption: `Vectors added to the residual stream at ${quoted(t)}${truth === undefined ? "" : `, and their contributions to the logit of ‘${word(truth)}’`}`,
        hidden: [2],
        dress: (tr, row) => {
          if (row[0] === "= logit") tr.classList.add("sum");
        },
      }),
    );
  });
  const { stream, logit } = data.ledger.error;
  root.append(
    el(
      "p",
      { class: "note" },
      `Check: over all tokens, the sum of the entries differs from the stream by at most ${format(stream, 6)} and from the ` +
        `logits by at most ${format(logit, 6)}.`,
    ),
  );
}

// --- lens --------------------------------------------------------------------------------------------

function drawLens(root) {
  const said = el("p", { class: "said" });
  const place = el("div");
  root.append(said, place);
  view(root, ["token"], () => {
    const t = state.token;
    const { rows, true_p: trueP, p } = data.lens;
    const truth = ids[t + 1];
    if (data.lens.ids[0][t] === null) {
      said.textContent = `The guesses after each block at ${quoted(t)} are being computed.`;
      place.replaceChildren();
      return;
    }
    if (truth === undefined)
      said.textContent = `Predictions after each block for the token after ${quoted(t)}, where the text ends.`;
    else {
      const jumps = rows.map((_, r) => (r ? trueP[r][t] - trueP[r - 1][t] : 0));
      const [r] = largest(jumps, 1);
      const step = jumps[r] >= 0.0005 ? `; the largest increase is ${signed(jumps[r])} at ${rows[r]}` : "";
      said.textContent =
        `p(‘${word(truth)}’) is ${chance(trueP[0][t])} at the embedding and ` +
        `${chance(trueP[rows.length - 1][t])} at the output${step}.`;
    }
    const width = data.lens.ids[0][t].length;
    const columns = [
      "after",
      ["p(true)", "r"],
      ["p(true), bar", "extra"],
      `guesses, most likely first`,
    ];
    place.replaceChildren(
      table(
        columns,
        rows.map((name, r) => [
          r === rows.length - 1 ? `${name} = output` : name,
          truth === undefined ? "–" : chance(trueP[r][t]),
          truth === undefined ? "" : bar(trueP[r][t], 0, 1),
          el("span", { class: "guesses" }, data.lens.ids[r][t].map((id, k) => {
            const cell = el(
              "span",
              { class: id === truth ? "guess true" : "guess" },
              tokenOf(id),
              el("span", { class: "number" }, chance(p[r][t][k])),
            );
            paint(cell, shade("much", p[r][t][k]));
            return cell;
          })),
        ]),
        {
          caption: `The ${width} most probable tokens after ${quoted(t)}, read out after each block`,
          hidden: [2],
        },
      ),
    );
  });
}
