// Draw all views. A section without numbers keeps the sentence that says why.
// `options`: {token: the token selected first, temperature: that of "The next token", stop: an AbortSignal that ends
// all views, rest: a promise of the parts that take long in a large model}.

const listening = { signal: options.stop };

/** Let Tab reach only the boxes that can scroll, and show that they can. */
function reach(root) {
  for (const box of root.querySelectorAll(".scroll")) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
    box.classList.toggle("more", scrolls);
  }
}

/** Mark the section a third down the window in the list of sections. */
function followReading() {
  const links = [...document.querySelectorAll("#contents a")];
  const seen = new Set();
  const watch = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target.id);
      const now = links.findLast((link) => seen.has(link.hash.slice(1)));
      for (const link of links) {
        if (link === now) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    },
    { rootMargin: "-33% 0px -66% 0px" },
  );
  for (const link of links) watch.observe(document.getElementById(link.hash.slice(1)));
  options.stop?.addEventListener("abort", () => watch.disconnect());
}

/** A finding's link leads to its evidence, and selects its head, token or word. */
function linkFindings() {
  for (const link of document.querySelectorAll("a[data-finding]")) {
    const { at, layer, head, statistic, position, id, centring } = data.summary.findings[link.dataset.finding];
    if (document.getElementById(at)) link.hash = at;
    link.addEventListener("click", () => {
      if (position !== undefined) selectToken(position);
      if (layer !== undefined) select({ layer, head, key: null, statistic });
      if (id !== undefined) select({ word: id, centring });
    });
  }
}

const FOLDED = ["contextual", "positions"];
const EARLY = 4; // tokens that are not selected at the start, as findings.EARLY

/** Fold the sections that few readers need at first. A link to one opens it. */
function foldSections() {
  for (const id of FOLDED) {
    const section = document.getElementById(id);
    if (!section) continue;
    const details = fold("Show", ...[...section.children].slice(2));
    section.append(details);
  }
  const open = () => {
    const section = document.getElementById(location.hash.slice(1).split("&")[0]);
    const details = section?.querySelector(":scope > details.fold");
    if (details) details.open = true;
  };
  addEventListener("hashchange", open, listening);
  open();
}

function begin() {
  // Fold the static tables, which are for readers without JavaScript.
  // Who wants no motion keeps the pictures of "Watch it learn", step by step.
  for (const details of document.querySelectorAll(".tables > details")) {
    details.open = still.matches && "still" in details.dataset;
  }
  // Start at the token with the highest loss, and at the head with the highest previous-token score.
  const { temperatures } = data.next;
  const asked = options.temperature ?? 1;
  const [nearest] = largest(
    temperatures.map((x) => -Math.abs(x - asked)),
    1,
  );
  state.temperature = temperatures[nearest];
  const { nats } = data.tokens;
  const first = Math.min(EARLY, nats.length - 1); // with little before them, the first tokens are no surprise
  state.token = options.token ?? largest(nats.map((x, t) => (t < first ? null : x)), 1)[0] ?? 0;
  const previous = data.attention.statistics.previous_token.value.flat();
  const [i] = largest(previous, 1);
  if (i !== undefined) [state.layer, state.head] = [Math.floor(i / attention.heads), i % attention.heads];

  const put = (section, ...draws) => {
    if (!document.getElementById(section)) return;
    for (const draw of draws) draw(place(section));
  };
  const bar = el("div", { id: "selection" });
  (document.getElementById("compare") ?? document.getElementById("probe")).before(bar);
  drawSelection(bar);
  if (learned) put("learning", drawLearning, drawEvents, drawLearnedCurves);
  put("summary", drawCurves);
  put("probe", drawStrip, drawSurprises);
  put("flow", drawFlow);
  put("next", drawNext);
  put("attention", drawAllHeads, drawHeads, drawRow, drawSteps);
  put("ledger", drawLedger);
  put("lens", drawLens);
  const putEmbeddings = () => put("embeddings", drawNeighbours, drawMap, drawMeanings, drawDrift);
  const wait = el("p", { class: "said" }, "The neighbours are being computed.");
  if (options.rest) put("embeddings", (root) => root.append(wait));
  else if (data.embeddings) putEmbeddings();
  if (data.compare) put("compare", drawCompared, drawComparedCurves);
  if (data.contextual) put("contextual", drawContexts);
  if (data.positions?.end) put("positions", drawPositions);
  if (data.firing) put("neurons", drawFiring);
  if (data.neurons) put("neurons", drawNeurons);
  if (!options.stop) foldSections();
  if (data.health) put("health", drawHealth);
  options.rest?.then(
    (rest) => {
      if (options.stop?.aborted) return;
      Object.assign(data.vocabulary, rest.vocabulary);
      Object.assign(data, { lens: rest.lens, embeddings: rest.embeddings });
      table0 = data.embeddings;
      wait.parentNode?.remove();
      putEmbeddings();
      redraw();
    },
    () => {}, // the look has ended, or the server: the next request says so
  );
  linkFindings();
  if (!options.stop) offerThemes(); // the local page has its own theme button
  document.addEventListener("themechange", redraw, listening);
  followReading();
  // A link's target moves until everything above it is drawn.
  document.addEventListener(
    "click",
    (event) => {
      if (event.target.closest('a[href^="#"]')) refresh(true);
    },
    { capture: true, ...listening },
  );
  addEventListener(
    "beforeprint",
    () => {
      for (const details of document.querySelectorAll("details.fold")) details.open = true;
      refresh(true);
    },
    listening,
  );
  let width = innerWidth;
  addEventListener(
    "resize",
    () => {
      if (innerWidth !== width) redraw();
      width = innerWidth;
    },
    listening,
  );
  document.addEventListener("toggle", (event) => reach(event.target.parentNode ?? document), {
    capture: true,
    ...listening,
  });
  options.stop?.addEventListener("abort", () => {
    watcher.disconnect();
    views.length = 0;
  });
  reach(document);
  if (!options.stop) {
    followAddress(); // the local page's address is its own
    view(bar, ["token", "layer", "head", "key", "at", "neurons", "neuron"], toAddress).near = true;
  }
  refresh();
  performance.mark("ready"); // for measuring the time to start
  document.documentElement.dataset.ready = "true";
  later(drawRest);
}

begin();
