// Everything in its place. A section whose numbers the file lacks keeps the sentence that says why.
// `options`: {token: the one that is selected first, stop: an AbortSignal after which nothing follows any more}.

const listening = { signal: options.stop };

/** A box that scrolls is reached with Tab; one that has nothing to scroll is not in the way. */
function reach(root) {
  for (const box of root.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

/** The section that is being read, a third down the window, is marked in the list of sections. */
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

/** A finding's link selects what it is about. */
function linkFindings() {
  for (const link of document.querySelectorAll("a[data-finding]")) {
    const { layer, head, position, id } = data.summary.findings[link.dataset.finding];
    link.addEventListener("click", () => {
      if (layer !== undefined) select({ layer, head, key: null });
      if (position !== undefined) selectToken(position - 1); // where the model was about to meet it
      if (id !== undefined) select({ word: id });
    });
  }
}

function begin() {
  // The tables that a reader without a script sees are still there, folded.
  for (const details of document.querySelectorAll(".tables > details")) details.open = false;
  // What the model got most wrong is where there is most to see.
  state.token = options.token ?? largest(data.tokens.nats, 1)[0] ?? 0;
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
  put("summary", drawCurves);
  put("probe", drawStrip, drawSurprises);
  put("next", drawNext);
  put("attention", drawHeads, drawRow, drawSteps);
  put("ledger", drawLedger);
  put("lens", drawLens);
  if (data.embeddings) put("embeddings", drawNeighbours, drawMap, drawMeanings, drawDrift);
  if (data.compare) put("compare", drawCompared, drawComparedCurves);
  if (data.contextual) put("contextual", drawContexts);
  if (data.positions?.end) put("positions", drawPositions);
  if (data.neurons) put("neurons", drawNeurons);
  linkFindings();
  if (!options.stop) offerThemes(); // a page that shows views now and then has its own
  document.addEventListener("themechange", redraw, listening);
  followReading();
  // A link inside the page leads to a place that only stays where it is once all above it is drawn.
  document.addEventListener(
    "click",
    (event) => {
      if (event.target.closest('a[href^="#"]')) refresh(true);
    },
    { capture: true, ...listening },
  );
  addEventListener("beforeprint", () => refresh(true), listening);
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
  refresh();
  performance.mark("ready"); // for whoever measures how long it took
  document.documentElement.dataset.ready = "true";
  later(drawRest);
}

begin();
