// What every view stands on: the numbers, what is selected, and how text gets into the page.
// Text is only ever set as textContent or as an attribute's value, so a token can't become markup.

const data = JSON.parse(document.getElementById("data").textContent);

// --- the page's tree ---------------------------------------------------------------------------------

/** An element with attributes and children; a string among them becomes text. `on...` adds a listener. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** What stands in a section's place for views; the section itself is there without a script too. */
function place(section) {
  const node = el("div", { class: "view" });
  const statics = document.querySelector(`#${section} > .tables`);
  statics.before(node);
  return node;
}

// --- tokens ------------------------------------------------------------------------------------------

/** A token of the vocabulary as people see it; bytes that are no whole character are shown as bytes, ⟨e2 80⟩. */
function word(id) {
  return shownToken(data.vocabulary[id]);
}

/** The places of the k largest of some numbers, the largest first. */
function largest(values, k) {
  return [...values.keys()]
    .filter((i) => values[i] !== null)
    .sort((a, b) => values[b] - values[a])
    .slice(0, k);
}

// --- what is selected --------------------------------------------------------------------------------

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
  scaling: "same",
  row: 1,
  column: 0,
  neurons: 0,
};
const views = [];

/**
 * A part of the page that is drawn anew when one of `needs` (names in `state`) changes. It is drawn when it comes near
 * the window, not before: a large model opens as fast as a small one.
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

/** Draw what is due and near; `all` draws what is far too (for a printer). */
function refresh(all = false) {
  for (const one of views) {
    if (one.due && (one.near || all)) {
      one.due = false;
      one.draw(one.root);
    }
  }
}

/** Draw what is far while nobody waits, one view at a time: then links lead to where things will stay. */
function drawRest() {
  const one = views.find(({ due }) => due);
  if (!one) return;
  one.due = false;
  one.draw(one.root);
  later(drawRest);
}

function later(task) {
  if (window.requestIdleCallback) requestIdleCallback(task);
  else setTimeout(task, 50);
}

/** Select something; every view that shows it follows. */
function select(changes) {
  const changed = Object.keys(changes).filter((name) => state[name] !== changes[name]);
  Object.assign(state, changes);
  for (const one of views) {
    if (one.needs.some((name) => changed.includes(name))) one.due = true;
  }
  refresh();
}

/** Select a token: the key that it looks at, and the word whose neighbours are shown, are its own again. */
function selectToken(t) {
  select({ token: t, key: null, word: null });
}

/** Everything is drawn anew: its colours or its room have changed. */
function redraw() {
  for (const one of views) one.due = true;
  refresh();
}

// --- the probe ---------------------------------------------------------------------------------------

const ids = data.probe.ids;
const vocabSize = data.summary.vocab_size;

/** The token at a place of the probe, for a sentence. */
function quoted(t) {
  return `‘${word(ids[t])}’`;
}

/** The same with its place, where a token may stand several times. */
function placed(t) {
  return `${quoted(t)} at ${t}`;
}

/** A word with a number: "1 token", "3 tokens". */
function count(n, what) {
  return `${format(n)} ${what}${n === 1 ? "" : "s"}`;
}

/** 0, 1, ..., n - 1. */
function range0(n) {
  return [...Array(n).keys()];
}
