// What comes next and why: the next token's probabilities, the ledger of the residual stream, and the lens.

// --- next token --------------------------------------------------------------------------------------

/** log of the sum over the whole vocabulary of exp(logit / temperature), between the temperatures it was computed at. */
function logSum(t, temperature) {
  const { temperatures, logsumexp } = data.next;
  const at = temperatures.findIndex((x) => x >= temperature - 1e-9);
  return logsumexp[t][at];
}

function drawNext(root) {
  const { temperatures } = data.next;
  const said = el("p", { class: "said" });
  const now = el("output", {}, "1.0");
  const slider = el("input", {
    type: "range",
    min: 0,
    max: temperatures.length - 1,
    step: 1,
    value: temperatures.indexOf(1),
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
    now.textContent = s.toFixed(1);
    slider.setAttribute("aria-valuetext", s.toFixed(1));
    const where = inside < 0 ? rows.length - 1 : inside;
    if (truth === undefined) {
      said.textContent = `After ${quoted(t)} the text ends: this is what the model would go on with.`;
    } else {
      const { rank, nats, bits } = data.tokens;
      const means =
        s === 1
          ? `, a loss of ${format(nats[t], 2)} nats or ${format(bits[t], 2)} bits`
          : ` at temperature ${s.toFixed(1)}`;
      said.textContent =
        `After ${quoted(t)} comes ‘${word(truth)}’: the model's number ${format(rank[t])} of ${format(vocabSize)}, ` +
        `with p ${format(rows[where][2])}${means}.`;
    }
    const most = Math.max(...rows.map((row) => row[2]));
    place.replaceChildren(
      table(
        [["rank", "r"], "token", ["probability", "r"], "bar"],
        rows.map((row) => [...row, bar(row[2], 0, most)]),
        {
          caption: `The ${ten.length} most probable tokens after ${quoted(t)}${truth === undefined ? "" : "; the one that came is marked"}`,
          hidden: [3],
          dress: (tr, _, i) => {
            if (truth !== undefined && i === where) {
              tr.classList.add("true");
              tr.children[1].append(" ← came");
            }
          },
        },
      ),
    );
  });
}

// --- ledger ------------------------------------------------------------------------------------------

/** "0.1" is layer 0, head 1; names of entries as a reader says them. */
function entryName(name) {
  const [layer, what] = name.split(".");
  if (what === undefined) return { token: "token embedding", position: "position embedding" }[name] ?? name;
  if (what === "mlp") return `layer ${layer} MLP`;
  if (what === "heads") return `layer ${layer} heads`;
  if (what === "bias") return `layer ${layer} attention bias`;
  return `layer ${layer} head ${what}`;
}

/** Entries of the ledger at one token: heads of a layer together, or each for itself. */
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

function drawLedger(root) {
  const said = el("p", { class: "said" });
  const each = el("input", { type: "checkbox", onchange: (event) => select({ each: event.target.checked }) });
  each.checked = state.each = data.ledger.contribution_entries.length <= 40;
  const place = el("div");
  root.append(said, el("div", { class: "controls" }, el("label", {}, each, "each head for itself")), place);
  view(root, ["token", "each"], () => {
    const t = state.token;
    const rows = ledgerRows(t, state.each);
    const truth = ids[t + 1];
    const values = rows.map((row) => row.value ?? 0);
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
    const norms = Math.max(...rows.map((row) => row.norm ?? 0));
    const cells = rows.map((row) => [
      row.name,
      row.norm === null ? "–" : format(row.norm, 2),
      bar(row.norm ?? 0, 0, norms),
      row.value === null ? "–" : signed(row.value),
      row.value === null ? "" : bar(row.value, low, high),
    ]);
    const columns = [
      "written by",
      ["norm", "r"],
      ["norm, bar", "extra"],
      ["to the logit", "r"],
      "logit, bar",
    ];
    if (truth === undefined) {
      said.textContent = `At ${quoted(t)} the text ends: there is no true token whose logit could be taken apart; the norms are known.`;
    } else {
      const mlp = rows.filter((row) => row.key.endsWith(".mlp")).pop();
      const [best] = largest(values, 1);
      said.textContent =
        `At ${quoted(t)} the logit of the true next token ‘${word(truth)}’ is ${format(data.ledger.logit[t], 2)}. ` +
        `The most was added by ${rows[best].name}, ${signed(values[best], 2)}` +
        `${mlp ? `; the last MLP added ${signed(mlp.value, 2)}` : ""}.`;
      cells.push(["= logit", format(data.ledger.stream_norm[t], 2), "", format(data.ledger.logit[t]), ""]);
    }
    place.replaceChildren(
      table(columns, cells, {
        caption: `What was written to the residual stream at ${quoted(t)}${truth === undefined ? "" : `, and what each adds to the logit of ‘${word(truth)}’`}`,
        hidden: [2, 4],
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
      `The entries add up to the stream with an error of ${format(stream, 6)} and to the logits with an error of ` +
        `${format(logit, 6)}, the largest at any token.`,
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
    if (truth === undefined)
      said.textContent = `What each block would say comes after ${quoted(t)}, where the text ends.`;
    else {
      const jumps = rows.map((_, r) => (r ? trueP[r][t] - trueP[r - 1][t] : 0));
      const [r] = largest(jumps, 1);
      const step = jumps[r] > 0 ? `; the largest step up is ${rows[r]}, ${signed(jumps[r])}` : "";
      said.textContent =
        `p(‘${word(truth)}’) goes from ${format(trueP[0][t])} at the embedding to ` +
        `${format(trueP[rows.length - 1][t])} at the output${step}.`;
    }
    const width = data.lens.ids[0][t].length;
    const columns = [
      "after",
      ["p(true)", "r"],
      ["p(true), bar", "extra"],
      ...range0(width).map((k) => (k ? `guess ${k + 1}` : "first guess")),
    ];
    place.replaceChildren(
      table(
        columns,
        rows.map((name, r) => [
          r === rows.length - 1 ? `${name} = output` : name,
          truth === undefined ? "–" : format(trueP[r][t]),
          truth === undefined ? "" : bar(trueP[r][t], 0, 1),
          ...data.lens.ids[r][t].map((id, k) => {
            const cell = el(
              "span",
              { class: id === truth ? "guess true" : "guess" },
              tokenOf(id),
              el("span", { class: "number" }, fixed(p[r][t][k], 3)),
            );
            paint(cell, shade("much", p[r][t][k]));
            return cell;
          }),
        ]),
        {
          caption: `Were a block the last: the ${width} most probable tokens after ${quoted(t)}`,
          hidden: [2],
        },
      ),
    );
  });
}
