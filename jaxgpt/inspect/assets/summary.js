// The loss curves, with the baselines for comparison.

function drawCurves(root) {
  const { train, valid } = data.summary.curves;
  const points = (curve) => curve.step.map((step, i) => [step, curve.loss[i]]).filter(([, y]) => y !== null);
  const series = [
    { name: "training batches", points: points(train) },
    { name: "validation", points: points(valid), second: true },
  ].filter((one) => one.points.length > 0);
  const loss = data.summary.measures.find((one) => one.name === "loss");
  const levels = ["uniform", "unigram", "bigram"]
    .filter((name) => loss?.[name] !== null)
    .map((name) => [name, loss[name]]);
  const place = el("div");
  root.append(
    figure(
      [
        el("b", {}, "Loss during training."),
        " Solid: training batches. Dashed: validation. Dotted: baselines without a network.",
      ],
      place,
    ),
  );
  view(place, [], () => {
    if (!series.length) {
      place.replaceChildren(el("p", { class: "empty" }, "The run folder has no losses by step."));
      return;
    }
    const title = `Loss by step: ${series.map((one) => `${one.name} from ${format(one.points[0][1])} to ${format(one.points.at(-1)[1])}`).join("; ")}`;
    place.replaceChildren(lines(place, { title, series, levels, xName: "step", yName: "nats per token" }));
  });
  root.append(
    tableBehind("Table: losses by step", () =>
      table(
        [
          ["step", "r"],
          ["training", "r"],
          ["validation", "r"],
        ],
        byStep(train, valid),
        { caption: "Loss by step, in nats per token" },
      ),
    ),
  );
}

function byStep(train, valid) {
  const found = new Map();
  train.step.forEach((step, i) => found.set(step, [train.loss[i], null]));
  valid.step.forEach((step, i) => found.set(step, [found.get(step)?.[0] ?? null, valid.loss[i]]));
  return [...found].sort((a, b) => a[0] - b[0]).map(([step, [a, b]]) => [format(step), format(a), format(b)]);
}
