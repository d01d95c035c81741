// All heads at the selected token in one picture: a row per head, a column per token. Or a layer's heads as arcs.

const CELLS = [12, 18]; // pixels of a column, at least and at most
const LEAST_ARC = 0.05; // weights below it have no arc

/** Colours of a layer's heads, from the page's own. */
const HEAD_COLOURS = ["--accent", "--mark", "--green", "--violet", "--olive", "--rose"];

function drawAllHeads(root) {
  const [layers, heads] = [attention.layers, attention.heads];
  const all = layers * heads;
  const high = Math.max(3, Math.min(16, Math.floor(820 / all))); // all in one window
  const named = high >= 8; // each head has its name; else each layer, and a mark stands for a job
  const long = ids.slice(0, seenTokens).some((id) => [...word(id)].length > 1);
  const jobs = Math.max(0, ...attention.named.map(({ layer, head }) => jobOf(layer, head).length));
  const [top, left, between] = [long ? 76 : 20, named ? 40 + 6.5 * jobs : 66, named ? 7 : 4];
  let cell = CELLS[0];
  let width = 0;
  const height = top + all * high + (layers - 1) * between + 4;
  const canvas = el("canvas", { "aria-hidden": "true" });
  const frame = el(
    "div",
    {
      class: "all-heads",
      tabindex: 0,
      role: "application",
      "aria-roledescription": "matrix",
      "aria-label": "Weights of all heads at the selected token. Up and down: head. Left and right: key.",
    },
    canvas,
  );
  const readout = el("p", { class: "said", role: "status" });
  const arcs = el("div");
  const list = el(
    "select",
    { onchange: (event) => select({ arcs: event.target.value === "" ? null : Number(event.target.value) }) },
    el("option", { value: "" }, "none"),
    range0(layers).map((l) => el("option", { value: l }, `layer ${l}`)),
  );
  root.append(
    el("h3", { id: "all-heads" }, "All heads at this token"),
    el("div", { class: "scroll", role: "group", "aria-label": "All heads at this token" }, frame),
    legend("much", "weight 0", `1 (square root scale); a row is a head, a column is a token${named ? "" : "; a mark at the left: a head with a clear job"}`),
    readout,
    el("div", { class: "controls" }, el("label", {}, "Arcs of", list)),
    arcs,
  );
  const yOf = (l, h) => top + (l * heads + h) * high + l * between;
  const weight = (l, h, s) => weightsOf(l, h)[query()][s];
  const say = (l, h, s) => {
    const job = jobOf(l, h);
    readout.textContent = `Layer ${l}, head ${h}${job ? ` (${job})` : ""}: ${placed(query())} gives ${placed(s)} the weight ${fixed(weight(l, h, s), 3)}.`;
  };
  const paintAll = () => {
    const room = Math.floor((root.clientWidth - left - 2) / seenTokens);
    cell = Math.max(CELLS[0], Math.min(CELLS[1], room));
    width = left + seenTokens * cell + 2;
    const scale = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * scale, height * scale];
    canvas.style.width = `${width}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, marked] = ["--ink", "--soft", "--mark"].map((name) => resolved(style, name));
    const mono = getComputedStyle(document.querySelector("code, .token") ?? document.body).fontFamily;
    const colour = colours("much", 0, 1);
    const t = query();
    pen.textBaseline = "middle";
    for (const s of range0(seenTokens)) {
      pen.fillStyle = s === t ? marked : s > t ? soft : ink;
      pen.font = `${s === t ? "bold " : ""}12px ${mono}`;
      pen.save();
      pen.translate(left + (s + 0.5) * cell, top - 10);
      if (long) pen.rotate(-Math.PI / 2);
      pen.textAlign = long ? "left" : "center";
      pen.fillText(shortened(word(ids[s]), 9), 0, 0);
      pen.restore();
    }
    for (const l of range0(layers)) {
      for (const h of range0(heads)) {
        const y = yOf(l, h);
        const row = weightsOf(l, h)[t];
        for (let s = 0; s <= t; s++) {
          pen.fillStyle = `rgb(${colour(Math.sqrt(row[s])).join(",")})`;
          pen.fillRect(left + s * cell, y, cell - 1, high - 1);
        }
        const job = jobOf(l, h);
        pen.fillStyle = job ? marked : soft;
        pen.font = `11px ${mono}`;
        pen.textAlign = "right";
        if (named) pen.fillText(`${job} ${l}.${h}`.trim(), left - 5, y + high / 2);
        else if (job) pen.fillRect(left - 8, y, 6, high - 1);
      }
    }
    pen.fillStyle = soft;
    if (!named) for (const l of range0(layers)) pen.fillText(`layer ${l}`, left - 11, yOf(l, heads / 2));
    const [l, h, s] = [state.layer, state.head, keyOf()];
    pen.strokeStyle = ink;
    pen.strokeRect(left - 0.5, yOf(l, h) - 0.5, (t + 1) * cell, high);
    pen.strokeStyle = marked;
    pen.lineWidth = 2;
    pen.strokeRect(left + s * cell - 1, yOf(l, h) - 1, cell + 1, high + 1);
    say(l, h, s);
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const y = event.clientY - box.top - top;
    const l = Math.max(0, Math.min(layers - 1, Math.floor(y / (heads * high + between))));
    const h = Math.max(0, Math.min(heads - 1, Math.floor((y - l * (heads * high + between)) / high)));
    const s = Math.max(0, Math.min(query(), Math.floor((event.clientX - box.left - left) / cell)));
    return [l, h, s];
  };
  canvas.addEventListener("pointermove", (event) => say(...under(event)));
  canvas.addEventListener("pointerleave", () => say(state.layer, state.head, keyOf()));
  canvas.addEventListener("click", (event) => {
    const [layer, head, key] = under(event);
    select({ layer, head, key });
  });
  frame.addEventListener("keydown", (event) => {
    const move = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: 0, ArrowRight: 0 }[event.key];
    if (move === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (move) {
      const i = state.layer * heads + state.head + move;
      if (i >= 0 && i < all) select({ layer: Math.floor(i / heads), head: i % heads, key: null });
    } else {
      const s = keyOf() + (event.key === "ArrowLeft" ? -1 : 1);
      if (s >= 0 && s <= query()) select({ key: s });
    }
  });
  view(frame, ["token", "layer", "head", "key"], paintAll);
  view(arcs, ["token", "arcs"], () => {
    list.value = state.arcs ?? "";
    arcs.replaceChildren(...(state.arcs === null ? [] : drawArcs(state.arcs, root.clientWidth)));
  });
}

/** A custom property's colour as a canvas takes it: light-dark() is resolved by an element that uses it. */
function resolved(_, name) {
  const probe = el("span", { class: `ink${name}` });
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

/** The heads of a layer as arcs from the selected token to its keys; thicker is a larger weight. */
function drawArcs(layer, room) {
  const t = query();
  const long = ids.slice(0, seenTokens).some((id) => [...word(id)].length > 1);
  const wide = long ? 44 : Math.max(12, Math.min(17, Math.floor((room - 16) / seenTokens)));
  const [width, height] = [seenTokens * wide + 16, 190];
  const x = (s) => 8 + (s + 0.5) * wide;
  const base = height - 26;
  const picture = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": `Arcs of layer ${layer} from ${placed(t)}`,
    class: "arcs",
  });
  for (const s of range0(seenTokens)) {
    picture.append(
      svg("text", { class: s === t ? "name true" : "name", x: x(s), y: height - 8, "text-anchor": "middle" }, shortened(word(ids[s]), 6)),
    );
  }
  const found = [];
  for (const h of range0(attention.heads)) {
    weightsOf(layer, h)[t].forEach((w, s) => {
      if (w >= LEAST_ARC) found.push([w, h, s]);
    });
  }
  for (const [w, h, s] of found.sort((a, b) => a[0] - b[0])) {
    const tall = s === t ? 18 : 24 + (base - 34) * Math.sqrt((t - s) / Math.max(t, 1));
    const path =
      s === t
        ? `M${x(t)} ${base}v${-tall}`
        : `M${x(t)} ${base}Q${(x(t) + x(s)) / 2} ${base - 2 * tall + 24} ${x(s)} ${base}`;
    picture.append(
      svg(
        "path",
        { class: `arc head-${h % HEAD_COLOURS.length}`, d: path, "stroke-width": 1 + 6 * w, opacity: 0.35 + 0.65 * w },
        svg("title", {}, `head ${layer}.${h}: ${placed(s)} ${fixed(w, 3)}`),
      ),
    );
  }
  const names = range0(attention.heads).map((h) =>
    el("span", { class: `key head-${h % HEAD_COLOURS.length}` }, `head ${layer}.${h}${jobOf(layer, h) ? ` (${jobOf(layer, h)})` : ""}`),
  );
  const box = el("div", { class: "scroll", role: "group", "aria-label": `Arcs of layer ${layer}` }, picture);
  later(() => reach(box.parentNode ?? document));
  return [
    box,
    el("p", { class: "legend" }, names, `From ${placed(t)}; weights of ${LEAST_ARC} and more. Thicker: a larger weight.`),
  ];
}
