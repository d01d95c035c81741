// The script of the local page: texts as boxes, what may come next, other ways on as tabs, and the report's views for a
// selected token. `inspect` is the report's script as a function; it reads the payload in #data.

const about = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("prompt-form");
const [statusLine, written, choices, tabs, inside] = ["status", "written", "choices", "tabs", "inside"].map((id) =>
  document.getElementById(id),
);
const [go, more, see, stop] = [
  form.querySelector("button.main"),
  ...["more", "see", "stop"].map((id) => document.getElementById(id)),
];
const MOST_TEXTS = 20;
const KEPT = `jaxgpt ${location.pathname}`; // in sessionStorage: a reload keeps everything
let texts = []; // {name, label, prompt, tokens, chosen, branches}; a token is {id, text, hex, p, rank, entropy, made}
let at = -1; // the text in sight
let running = null; // AbortController of the current generation
let asking = null; // AbortController of the current choices

function current() {
  return texts[at];
}

function say(text) {
  statusLine.textContent = text;
}

/** The settings of the form, without empty ones that have a default. */
function given() {
  const settings = {};
  for (const input of form.querySelectorAll("input")) {
    settings[input.name] = input.value === "" ? null : Number(input.value);
  }
  for (const name of ["max_new_tokens", "temperature", "seed"]) {
    if (settings[name] === null) delete settings[name];
  }
  return settings;
}

// --- what a reload keeps --------------------------------------------------------------------------------

function save() {
  const fields = Object.fromEntries(
    [...form.querySelectorAll("input, textarea")].map((input) => [input.name, input.value]),
  );
  const edited = document.getElementById("edited").checked;
  const turns = typeof talk === "undefined" ? [] : talk.turns;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ texts, at, fields, edits, edited, turns }));
  } catch {
    /* no room, or not allowed: a reload starts anew */
  }
}

/** What was saved, or null. */
function restore() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT));
    if (!kept) return null;
    for (const [name, value] of Object.entries(kept.fields)) form.elements[name].value = value;
    [texts, at, edits] = [kept.texts, kept.at, kept.edits];
    document.getElementById("edited").checked = kept.edited;
    return kept;
  } catch {
    return null;
  }
}

// --- boxes ----------------------------------------------------------------------------------------------

function box(token, i) {
  const node = el(
    "div",
    {
      class: token.made ? "cell made" : "cell given",
      role: "option",
      "aria-selected": "false",
      tabindex: -1,
      onclick: () => choose(i),
      onkeydown: (event) => boxKey(event, i),
    },
    el("span", { class: "token" }, shownToken(token)),
    el(
      "span",
      { class: "number" },
      token.p === undefined ? "–" : `${token.p < 0.005 ? "<.01" : token.p.toFixed(2)} #${token.rank}`,
    ),
  );
  if (token.p !== undefined) surprise(node, token.p);
  return node;
}

/** The box after the last token: what may come next. */
function endBox() {
  const n = current().tokens.length;
  return el(
    "div",
    {
      class: "cell end",
      role: "option",
      "aria-selected": "false",
      tabindex: -1,
      onclick: () => choose(n),
      onkeydown: (event) => boxKey(event, n),
    },
    el("span", { class: "token" }, "…"),
    el("span", { class: "number" }, "next"),
  );
}

function boxKey(event, i) {
  const last = current().tokens.length;
  const to = {
    ArrowLeft: i - 1,
    ArrowUp: i - 1,
    ArrowRight: i + 1,
    ArrowDown: i + 1,
    Home: 0,
    End: last,
  }[event.key];
  if (to !== undefined) focusOn(to);
  else if (event.key === "Enter" || event.key === " ") choose(i);
  else return;
  event.preventDefault();
}

function boxes() {
  return [...written.querySelectorAll(".cell")];
}

/** Let Tab reach a box. */
function reachable(i) {
  boxes().forEach((node, j) => {
    node.tabIndex = j === i ? 0 : -1;
  });
}

/** Scroll the boxes, and not the page, to a box. */
function scrollTo(i) {
  const { top } = boxes()[i].getBoundingClientRect();
  const frame = written.getBoundingClientRect();
  if (top < frame.top || top > frame.bottom - 60) written.scrollTop += top - frame.top - 6;
}

function focusOn(i) {
  const node = boxes()[i];
  if (!node) return;
  reachable(i);
  node.focus();
}

/** Colour a token by its surprisal -log p, up to 6 nats. */
function surprise(node, p) {
  paint(node, shade("much", -Math.log(Math.max(p, 1e-9)) / 6));
}

/** Add the box of a token, before the box at the end. */
function addBox(token, i) {
  const end = written.querySelector(".cell.end");
  end.before(box(token, i));
  if (token.text.includes("\n")) end.before(el("span", { class: "break", "aria-hidden": "true" }));
}

function drawText() {
  const text = current();
  if (!text) return;
  written.replaceChildren(
    el("div", { class: "strip", role: "listbox", "aria-label": "Tokens of the text", "aria-orientation": "horizontal" }, endBox()),
  );
  text.tokens.forEach(addBox);
  endsHere();
  reachable(0);
  drawTabs();
}

/** The box at the end has the number of tokens as its place. */
function endsHere() {
  const old = written.querySelector(".cell.end");
  const focused = old === document.activeElement;
  const fresh = endBox();
  old.replaceWith(fresh);
  if (focused) fresh.focus();
}

function drawTabs() {
  tabs.hidden = texts.length < 2;
  tabs.replaceChildren(
    ...texts.map((text, i) =>
      el(
        "button",
        { type: "button", class: "tab", "aria-pressed": String(i === at), onclick: () => openText(i) },
        `${text.name}: `,
        el("span", { class: "token" }, text.label),
      ),
    ),
    el("button", { type: "button", class: "link", onclick: forget }, "Close this text"),
  );
}

function openText(i) {
  running?.abort();
  at = i;
  close();
  form.elements.prompt.value = current().prompt;
  keepFocus(tabs, drawText, () => tabs.querySelector("[aria-pressed=true]") ?? boxes()[0]);
  say("");
  const { chosen } = current();
  if (chosen !== null) choose(chosen, false);
  save();
}

function forget() {
  texts.splice(at, 1);
  openText(Math.min(at, texts.length - 1));
}

/** Show a new text. */
function add(text) {
  texts.push({ chosen: null, branches: 0, ...text });
  if (texts.length > MOST_TEXTS) texts.shift();
  at = texts.length - 1;
  close();
  drawText();
}

// --- writing --------------------------------------------------------------------------------------------

/** Read a prompt into a new text. */
async function open(prompt, signal) {
  const answer = await ask("api/next", { prompt }, signal);
  const { tokens } = await answer.json();
  const first = prompt.trim().split("\n")[0].slice(0, 18);
  const name = String(1 + Math.max(0, ...texts.map((one) => parseInt(one.name, 10))));
  add({ name, label: first || "the model’s own", prompt, tokens });
}

/** Let the model write on from the end of the present text, with `prompt` from a prompt that was just read. */
async function write(prepare, prompt) {
  running?.abort();
  const mine = (running = new AbortController());
  const pressed = [go, more, see].find((button) => button === document.activeElement);
  stop.disabled = false;
  if (pressed) stop.focus({ preventScroll: true }); // a disabled button loses the focus
  [go, more, see].forEach((button) => {
    button.disabled = true;
  });
  close();
  say("Writing …");
  const notes = [];
  let made = 0;
  try {
    if (prepare) await prepare(mine.signal);
    const text = current();
    const from = prompt === undefined ? { ids: idsUpTo(text.tokens.length, 8000) } : { prompt };
    const answer = await ask("api/generate", { ...from, ...given(), edits: editsForWriting() }, mine.signal);
    for await (const one of objects(answer)) {
      if (one.error) throw new Error(one.error);
      if (one.note) notes.push(one.note);
      if (one.token) {
        made += 1;
        text.tokens.push({ ...one.token, p: one.p, rank: one.rank, entropy: one.entropy, made: true });
        addBox(text.tokens.at(-1), text.tokens.length - 1);
        if (made === 1) scrollTo(text.tokens.length - 1);
      }
      if (one.done)
        say(
          [
            ...notes,
            `${count(one.tokens, "token")} in ${one.seconds.toFixed(1)} s. Select one to see what else could have come, and to look inside the model.`,
          ].join(" "),
        );
    }
  } catch (error) {
    if (running === mine || error.name !== "AbortError")
      say(error.name === "AbortError" ? `Stopped after ${count(made, "token")}.` : error.message);
  }
  if (running === mine) {
    running = null;
    [go, more, see].forEach((button) => {
      button.disabled = false;
    });
    if (document.activeElement === stop) (pressed ?? go).focus({ preventScroll: true });
    stop.disabled = true;
    if (current()) endsHere();
    save();
  }
}

function generate(event) {
  event.preventDefault();
  const prompt = form.elements.prompt.value;
  write((signal) => open(prompt, signal), prompt);
}

/** Ids before a token's place, at most so many. */
function idsUpTo(i, most) {
  return current()
    .tokens.slice(0, i)
    .map(({ id }) => id)
    .slice(-most);
}

/** Another token at a place: a new text, which the model continues. At the end of a text it is the text's next token. */
function branch(i, token) {
  const from = current();
  const next = { ...token, made: true };
  if (i === from.tokens.length) {
    from.tokens.push(next);
    from.chosen = null;
    drawText();
  } else {
    from.branches += 1;
    add({
      name: `${from.name}.${from.branches}`,
      label: `${shownToken(token)} at ${i}`,
      prompt: from.prompt,
      tokens: [...from.tokens.slice(0, i), next],
    });
  }
  focusOn(i); // the button that was pressed is gone
  write();
}

// --- what may come next ---------------------------------------------------------------------------------

async function choose(i, scrolls = false) {
  const text = current();
  text.chosen = i;
  boxes().forEach((node, j) => node.setAttribute("aria-selected", String(j === i)));
  reachable(i);
  save();
  await showChoices(i);
  if (!running) await look(i, scrolls);
}

/** The most probable tokens at a place of the text, as buttons; with edits also their probability with them. */
async function showChoices(i) {
  asking?.abort();
  const mine = (asking = new AbortController());
  if (i === 0) {
    choices.replaceChildren(el("p", { class: "soft" }, "Nothing comes before the first token: the model does not predict it."));
    return;
  }
  try {
    const answer = await ask("api/next", { ids: idsUpTo(i, 8000), edits }, mine.signal);
    const found = await answer.json();
    if (mine.signal.aborted) return;
    drawChoices(i, found);
    reveal(choices);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
}

function drawChoices(i, { next, entropy }) {
  const { tokens } = current();
  const changed = edits.length > 0;
  const most = Math.max(...next.map(({ p, edited }) => Math.max(p, edited ?? 0)));
  const shown = (p) => [p < 0.0005 ? "<0.001" : p.toFixed(3), meter(p / most)];
  const rows = next.map((one) => {
    const isIt = tokens[i]?.id === one.id;
    const button = el(
      "button",
      {
        type: "button",
        class: "choice",
        disabled: isIt,
        onclick: () => branch(i, { ...one, entropy }),
        "aria-label": isIt ? null : `Continue with ${shownToken(one)}`,
      },
      el("span", { class: "token" }, shownToken(one)),
    );
    return el(
      "tr",
      { class: isIt ? "true" : null },
      el("th", { scope: "row" }, button, isIt ? " ← in the text" : ""),
      [one.p, ...(changed ? [one.edited] : [])].map((p) => el("td", { class: "meters" }, ...shown(p))),
    );
  });
  const before = `‘${shownToken(tokens[i - 1])}’`;
  const head = ["token", "probability", ...(changed ? ["with the changes"] : [])];
  const fresh = [
    el("h3", {}, i === tokens.length ? `What may come next, after ${before}` : `What else could have come after ${before}`),
    el("p", { class: "soft" }, "Click a token: the model continues from there."),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows),
      ),
    ),
  ];
  keepFocus(choices, () => choices.replaceChildren(...fresh), () => choices.querySelector("button:enabled"));
}

/** A bar for a share from 0 to 1. */
function meter(share) {
  const inner = el("i");
  inner.style.setProperty("--from", 0);
  inner.style.setProperty("--length", share);
  return el("span", { class: "bar", "aria-hidden": "true" }, inner);
}

// --- the start ------------------------------------------------------------------------------------------

/** Say that programs are still compiled, until they are. */
async function untilReady() {
  const line = document.getElementById("ready");
  for (let tries = 0; tries < 600; tries++) {
    try {
      const { ready } = await (await fetch("api/ready")).json();
      if (ready.includes("edits")) break;
      line.textContent = ready.includes("figures")
        ? "Getting ready for changes of the model: the first answers with them may take some seconds."
        : ready.includes("look")
          ? "Getting ready for texts of other lengths: the first of each may take some seconds."
          : "Getting ready: the first answers may take some seconds.";
    } catch {
      break;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  line.textContent = "";
}

document.addEventListener("themechange", () =>
  boxes().forEach((node, i) => {
    const p = current().tokens[i]?.p;
    if (p !== undefined) surprise(node, p);
  }),
);
offerThemes();
show(false);
form.addEventListener("submit", generate);
form.addEventListener("change", save);
more.addEventListener("click", () => current() && write());
see.addEventListener("click", lookInside);
stop.addEventListener("click", () => running?.abort());
form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
for (const button of document.querySelectorAll(".example"))
  button.addEventListener("click", () => {
    form.elements.prompt.value = button.dataset.prompt;
    form.requestSubmit();
  });
const kept = restore();
showFields();
drawEdits();
if (typeof talk !== "undefined") keepTurns(kept?.turns ?? []);
if (current()) {
  openText(at);
} else {
  // A text of the model's own, from the default prompt.
  form.requestSubmit();
}
untilReady();
