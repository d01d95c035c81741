// Two runs on the same text: their predictions after the selected token, and where they differ most.

const other = data.compare;

function drawCompared(root) {
  const names = [data.summary.title, other.title];
  const place = el("div");
  root.append(el("h3", {}, "The selected token"), place);
  view(place, ["token"], () => {
    const t = state.token;
    const known = t < ids.length - 1;
    const runs = [data, other];
    const of = (run) => {
      const total = run.next.logsumexp[t][run.next.temperatures.indexOf(1)];
      const guesses = run.next.ids[t]
        .slice(0, 5)
        .map((id, k) => [id, Math.exp(run.next.logits[t][k] - total)]);
      return el(
        "span",
        {},
        guesses.flatMap(([id, p]) => [tokenOf(id), ` ${fixed(p)}  `]),
      );
    };
    const rows = [
      ["most likely next tokens", ...runs.map(of)],
      ["entropy, nats", ...runs.map((run) => fixed(run.tokens.entropy[t]))],
    ];
    if (known) {
      rows.unshift(
        ["p of the actual next token", ...runs.map((run) => format(run.tokens.probability[t]))],
        ["rank of the actual next token", ...runs.map((run) => format(run.tokens.rank[t]))],
        ["loss, nats", ...runs.map((run) => fixed(run.tokens.nats[t]))],
      );
    }
    place.replaceChildren(
      table(["figure", ...names], rows, {
        caption: known
          ? `After ${placed(t)}; the actual next token is ‘${word(ids[t + 1])}’`
          : `After ${placed(t)}, the last token of the text`,
      }),
    );
  });
  const gain = data.tokens.nats.map((x, t) => x - other.tokens.nats[t]);
  const [worst] = largest(gain, 1);
  const [best] = largest(
    gain.map((x) => -x),
    1,
  );
  const jump = (t) =>
    el("button", { type: "button", class: "link", onclick: () => selectToken(t) }, placed(t));
  root.append(
    el(
      "p",
      { class: "said" },
      `This run is better by ${fixed(-gain[best])} nats after `,
      jump(best),
      `, the other run by ${fixed(gain[worst])} nats after `,
      jump(worst),
      ": the largest differences. The text below can be coloured by the difference.",
    ),
  );
}

function drawComparedCurves(root) {
  const points = ({ valid }) =>
    valid.step.map((step, i) => [step, valid.loss[i]]).filter(([, y]) => y !== null);
  const series = [
    { name: data.summary.title, points: points(data.summary.curves) },
    { name: other.title, points: points(other.summary.curves), second: true },
  ];
  if (series.some((one) => !one.points.length)) return;
  const place = el("div");
  root.append(
    el("h3", {}, "Validation loss"),
    figure([`Solid: ${data.summary.title}. Dashed: ${other.title}.`], place),
  );
  view(place, [], () => {
    const title = `Validation loss: ${series.map((one) => `${one.name} ends at ${format(one.points.at(-1)[1])}`).join(", ")}`;
    place.replaceChildren(lines(place, { title, series, xName: "step", yName: "nats per token" }));
  });
}
