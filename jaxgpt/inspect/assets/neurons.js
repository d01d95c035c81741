// The neurons of the MLPs: those that fire most at the selected token, any one over the text, and the strongest of a layer.

const FIRST = 10; // neurons listed

/** A layer's stored activations: {neurons: their numbers, at(k, t)}. */
const firing = (data.firing?.layers ?? []).map(({ neurons, unit, values }) => {
  const bytes = Int8Array.from(atob(values), (c) => c.charCodeAt(0));
  return { neurons, at: (k, t) => bytes[k * ids.length + t] * unit };
});

function drawFiring(root) {
  const number = el("input", {
    type: "number",
    min: 0,
    max: data.firing.width - 1,
    "aria-label": "Neuron",
    onchange: (event) => event.target.value !== "" && select({ neuron: Number(event.target.value) }),
  });
  const layer = chooser(
    "Layer",
    firing.map((_, l) => [String(l), `layer ${l}`]),
    String(state.neurons),
    (l) => select({ neurons: Number(l), neuron: null }),
  );
  const place = el("div", { class: "pair" });
  root.append(
    el("h3", { id: "firing" }, "Neurons that fire most here"),
    el("div", { class: "controls" }, layer, el("label", {}, "Neuron", number)),
    place,
  );
  view(place, ["token", "neurons", "neuron"], () => {
    const [l, t] = [state.neurons, state.token];
    const { neurons, at } = firing[l];
    const values = neurons.map((_, k) => at(k, t));
    const first = largest(values, FIRST);
    const k = state.neuron === null ? first[0] : neurons.indexOf(state.neuron);
    const chosen = state.neuron ?? neurons[first[0]];
    layer.querySelector("select").value = String(l);
    number.value = chosen;
    const rows = first.map((i) => [
      el(
        "button",
        { type: "button", class: "link", onclick: () => select({ neuron: neurons[i] }) },
        `neuron ${neurons[i]}`,
      ),
      values[i],
      bar(Math.max(0, values[i]), 0, Math.max(...values, 1e-9)),
    ]);
    const strip = el("div", { class: "strip" });
    if (k >= 0) {
      const most = Math.max(...ids.map((_, s) => Math.abs(at(k, s)))) || 1;
      strip.append(
        ...ids.map((id, s) => {
          const cell = el("span", { class: s === t ? "cell chosen" : "cell" }, tokenOf(id), el("span", { class: "number" }, fixed(at(k, s), 1)));
          const negative = ids.some((_, u) => at(k, u) < -0.05 * most);
          paint(cell, negative ? shade("signed", (at(k, s) / most + 1) / 2) : shade("much", at(k, s) / most));
          cell.addEventListener("click", () => selectToken(s));
          return cell;
        }),
      );
    }
    place.replaceChildren(
      table(["neuron", ["activation", "r"], "bar"], rows, {
        caption: `Layer ${l} at ${placed(t)}`,
        hidden: [2],
        dress: (tr, _, i) => tr.classList.toggle("chosen", neurons[first[i]] === chosen),
      }),
      el(
        "div",
        { class: "about wide" },
        el("p", {}, el("b", {}, `Neuron ${chosen} of layer ${l}`), " over the text:"),
        k >= 0
          ? strip
          : el("p", { class: "empty" }, "This file has only the neurons that fire most at some token of the text; this one is not among them."),
      ),
    );
  });
}

function drawNeurons(root) {
  const { layers, tokens, on, activation } = data.neurons;
  const place = el("div");
  root.append(fold("Neurons with the largest output, and the texts where they fire most", place));
  view(place, ["neurons"], () => {
    const one = layers[state.neurons];
    const share = (n) => percent(n / one.width);
    place.replaceChildren(
      el(
        "p",
        { class: "said" },
        `Layer ${one.layer} has ${count(one.width, "neuron")} (${activation}). On average a neuron is above 0 at ` +
          `${percent(one.share)} of the tokens. ${one.dead ? `${count(one.dead, "neuron")} never fired here: dead.` : "Every neuron fired at some token: none is dead."}`,
      ),
      el(
        "div",
        { class: "row" },
        one.shown.map((neuron) =>
          table(
            [["value", "r"], `strongest contexts of neuron ${neuron.neuron}`],
            neuron.contexts.map((context) => [fixed(context.value), contextOf(context.ids, context.at)]),
            { caption: `Neuron ${neuron.neuron}: above 0 at ${percent(neuron.active)} of the tokens` },
          ),
        ),
      ),
      tableBehind("Table: how often neurons are above 0", () =>
        table(
          [["share of the tokens", "r"], ["neurons", "r"], ["share of them", "r"], "bar"],
          one.histogram.map((n, i) => [
            `${10 * i} to ${10 * i + 10} %`,
            format(n),
            share(n),
            bar(n, 0, Math.max(...one.histogram)),
          ]),
          { caption: `Layer ${one.layer}`, hidden: [3] },
        ),
      ),
    );
  });
  root.append(
    el(
      "p",
      { class: "note" },
      `Measured on ${count(tokens, "token")}: ${on}. The neurons with the largest output are shown.`,
    ),
  );
}
