// The health of a run: statistics of train.stats_every over the steps, and what is unusual in them.

const HEALTH = {
  gradient_norm: "Gradient norm",
  parameter_norm: "Parameter norm",
  update_ratio: "Update, relative to the parameters",
  residual_rms: "Root mean square of the residual stream",
  attention_max: "Largest attention score",
  dead: "Share of dead neurons",
  logsumexp: "Mean logsumexp of the logits",
};

function drawHealth(root) {
  const { steps, series, unusual } = data.health;
  root.append(
    unusual.length
      ? el("ul", {}, unusual.map((one) => el("li", {}, one.text)))
      : el("p", { class: "said" }, "Nothing is unusual by the rules of this page."),
  );
  const row = el("div", { class: "row" });
  root.append(row);
  view(row, [], () => {
    const boxes = Object.keys(HEALTH)
      .filter((kind) => series[kind])
      .map((kind) => [kind, el("figure")]);
    row.replaceChildren(...boxes.map(([, box]) => box));
    for (const [kind, box] of boxes) {
      const of = Object.entries(series[kind]);
      const strong = largest(
        of.map(([, values]) => values.at(-1)),
        2,
      );
      const picture = timeline(box, {
        title: `${HEALTH[kind]} of ${count(of.length, "part")}`,
        steps,
        series: of.map(([name, values], i) => ({
          name,
          label: shortened((name || "logits").replaceAll("_", " "), 13),
          values,
          strong: strong.includes(i) ? STRONG[strong.indexOf(i)] : undefined,
        })),
        marks: unusual.filter((one) => one.kind === kind).map((one) => one.step),
        height: 120,
      });
      box.append(el("figcaption", {}, el("b", {}, HEALTH[kind])), picture);
      picture.mark(steps.length - 1);
    }
  });
}
