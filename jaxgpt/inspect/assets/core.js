// The base of all views: the payload, the selection, and functions that create elements.
// Text is only set as textContent or as an attribute's value, so a token can't become markup.

const data = JSON.parse(document.getElementById("data").textContent);

/** Whether a part of the payload is not computed yet. */
function pending(part) {
  return data.pending?.includes(part) ?? false;
}

// --- the page's tree ---------------------------------------------------------------------------------

/** A new container for a view in a section, before the section's static tables. */
function place(section) {
  const node = el("div", { class: "view" });
  const statics = document.querySelector(`#${section} > .tables`);
  statics.before(node);
  return node;
}

// --- tokens ------------------------------------------------------------------------------------------

/** A token as readable text; bytes that are not valid UTF-8 are shown as ⟨e2 80⟩. */
function word(id) {
  return shownToken(data.vocabulary[id]);
}

/** The indices of the k largest numbers, largest first. */
function largest(values, k) {
  return [...values.keys()]
    .filter((i) => values[i] !== null)
    .sort((a, b) => values[b] - values[a])
    .slice(0, k);
}

// --- the selection --------------------------------------------------------------------------------

const state = {
  token: 0,
  key: null,
  layer: 0,
  head: 0,
  statistic: "previous_token",
  colour: "loss",
  temperature: 1,
  each: true,
  word: null,
  centring: "raw",
  scaling: "own",
  column: 0,
  neurons: 0, // the layer whose neurons are shown
  neuron: null,
  arcs: null, // the layer whose arcs are shown
  at: Math.max(0, (data.learning?.steps.length ?? 1) - 1), // of the saved steps of training
  pattern: "previous_token",
};
const views = [];

/**
 * A part of the page that is redrawn when one of `needs` (names in `state`) changes. It is drawn when it comes near the
 * window, so that the page of a large model opens as fast as a small one's.
 */
function view(root, needs, draw) {
  const one = { root, needs, draw, near: false, due: true };
  views.push(one);
  watcher.observe(root);
  return one;
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      for (const one of views) {
        if (one.root === entry.target) one.near = entry.isIntersecting;
      }
    }
    refresh();
  },
  { rootMargin: "100px" },
);

/** Draw the due views near the window, or all due views (for printing). */
function refresh(all = false) {
  for (const one of views) {
    if (one.due && (one.near || all) && !folded(one)) {
      one.due = false;
      one.draw(one.root);
      reach(one.root);
    }
  }
}

/** A fold. The views in it are drawn when it opens, so that they know their width. */
function fold(title, ...content) {
  const details = el("details", { class: "fold" }, el("summary", {}, title), content);
  details.addEventListener("toggle", () => details.open && refresh());
  return details;
}

function folded(one) {
  return one.root.closest("details.fold:not([open])") !== null;
}

/** Draw the other views while the browser is idle, so that links lead to their final positions. */
function drawRest() {
  const one = views.find((one) => one.due && !folded(one));
  if (!one) return;
  one.due = false;
  one.draw(one.root);
  reach(one.root);
  later(drawRest);
}

function later(task) {
  if (window.requestIdleCallback) requestIdleCallback(task);
  else setTimeout(task, 50);
}

/** Change the selection and redraw the views that show it. */
function select(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  Object.assign(state, changes);
  for (const one of views) {
    if (one.needs.some((name) => changed.includes(name))) one.due = true;
  }
  refresh();
}

/** Select a token, and reset the key and the word to their defaults for it. */
function selectToken(t) {
  select({ token: t, key: null, word: null });
}

/** Redraw everything, after the colours or the width changed. */
function redraw() {
  for (const one of views) one.due = true;
  refresh();
}

// --- the probe ---------------------------------------------------------------------------------------

const ids = data.probe.ids;
const vocabSize = data.summary.vocab_size;

/** The token at a position of the probe, in quotes. */
function quoted(t) {
  return `‘${word(ids[t])}’`;
}

/** The quoted token with its position. */
function placed(t) {
  return `${quoted(t)} at ${t}`;
}

/** 0, 1, ..., n - 1. */
function range0(n) {
  return [...Array(n).keys()];
}
