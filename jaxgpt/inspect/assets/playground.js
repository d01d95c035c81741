// The script of the local page: it sends a prompt, shows the generated tokens, and opens the report's views for a
// selected token. `inspect` is the report's script as a function; it reads the payload in #data.

const about = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("prompt-form");
const [statusLine, written, inside] = ["status", "written", "inside"].map((id) =>
  document.getElementById(id),
);
const [go, stop] = [form.querySelector("button.main"), document.getElementById("stop")];
let running = null; // AbortController of the current generation
let looking = null; // AbortController of the current views
let prompt = []; // ids of the prompt's tokens that the model sees
let drawn = []; // the generated tokens: {id, text, hex, piece, p, rank, entropy}

function box(token, i) {
  const node = document.createElement("div");
  node.className = "cell";
  node.setAttribute("role", "option");
  node.setAttribute("aria-selected", "false");
  node.tabIndex = i ? -1 : 0;
  const [name, number] = [document.createElement("span"), document.createElement("span")];
  [name.className, number.className] = ["token", "number"];
  name.textContent = shownToken(token);
  number.textContent = `${token.p < 0.005 ? "<.01" : token.p.toFixed(2)} #${token.rank}`;
  node.append(name, number);
  surprise(node, token.p);
  node.addEventListener("click", () => look(i));
  node.addEventListener("keydown", (event) => {
    const to = {
      ArrowLeft: i - 1,
      ArrowUp: i - 1,
      ArrowRight: i + 1,
      ArrowDown: i + 1,
      Home: 0,
      End: drawn.length - 1,
    }[event.key];
    if (to !== undefined) focusOn(to);
    else if (event.key === "Enter" || event.key === " ") look(i);
    else return;
    event.preventDefault();
  });
  return node;
}

function boxes() {
  return [...written.querySelectorAll(".cell")];
}

function focusOn(i) {
  const all = boxes();
  if (!all[i]) return;
  all.forEach((node, j) => {
    node.tabIndex = j === i ? 0 : -1;
  });
  all[i].focus();
}

/** Colour a token by its surprisal -log p, up to 6 nats. */
function surprise(node, p) {
  paint(node, shade("much", -Math.log(Math.max(p, 1e-9)) / 6));
}

function say(text) {
  statusLine.textContent = text;
}

async function ask(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (answer.ok) return answer;
  let line = `The server answered ${answer.status}.`;
  try {
    line = (await answer.json()).error ?? line;
  } catch {
    /* not JSON: keep the status */
  }
  throw new Error(line);
}

/** The JSON objects of a streamed answer, one per line. */
async function* objects(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of done ? [...lines, rest] : lines) {
      if (line.trim()) yield JSON.parse(line);
    }
    if (done) return;
  }
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

async function generate(event) {
  event.preventDefault();
  running?.abort();
  const mine = (running = new AbortController());
  const settings = given();
  [prompt, drawn] = [[], []];
  const strip = document.createElement("div");
  strip.className = "strip";
  strip.setAttribute("role", "listbox");
  strip.setAttribute("aria-label", "Generated tokens");
  written.replaceChildren(strip);
  close();
  [go.disabled, stop.disabled] = [true, false];
  say("Generating …");
  const notes = [];
  try {
    const answer = await ask(
      "api/generate",
      { prompt: form.elements.prompt.value, ...settings },
      mine.signal,
    );
    for await (const one of objects(answer)) {
      if (one.error) throw new Error(one.error);
      if (one.prompt) prompt = one.prompt;
      if (one.note) notes.push(one.note);
      if (one.token) {
        drawn.push({ ...one.token, piece: one.piece, p: one.p, rank: one.rank, entropy: one.entropy });
        strip.append(box(drawn.at(-1), drawn.length - 1));
        if (one.token.text.includes("\n")) strip.append(lineEnd());
      }
      if (one.done)
        say(
          [...notes, `${one.tokens} tokens in ${one.seconds.toFixed(1)} s. Select one to look inside the model.`].join(
            " ",
          ),
        );
    }
  } catch (error) {
    say(error.name === "AbortError" ? `Stopped after ${drawn.length} tokens.` : error.message);
  }
  if (running === mine) [go.disabled, stop.disabled] = [false, true];
}

function lineEnd() {
  const node = document.createElement("span");
  node.className = "break";
  node.setAttribute("aria-hidden", "true");
  return node;
}

/** The ids up to a generated token, as many as the views can show. */
function idsUpTo(i) {
  const most = Math.min(about.context_length, 128);
  return [...prompt, ...drawn.slice(0, i + 1).map(({ id }) => id)].slice(-most);
}

function close() {
  looking?.abort();
  show(false);
  for (const node of inside.querySelectorAll(".view, .notice")) node.remove();
  document.getElementById("selection")?.remove();
}

/** Show or hide the views and the links to them. */
function show(shown) {
  inside.hidden = !shown;
  for (const link of document.querySelectorAll("#contents a")) {
    link.parentNode.hidden = !shown && inside.querySelector(link.hash) !== null;
  }
}

async function look(i) {
  boxes().forEach((node, j) => node.setAttribute("aria-selected", String(j === i)));
  focusOn(i);
  close();
  const mine = (looking = new AbortController());
  say(`Looking at ‘${shownToken(drawn[i])}’ …`);
  try {
    const answer = await ask("api/report", { ids: idsUpTo(i) }, mine.signal);
    const payload = await answer.json();
    if (mine.signal.aborted) return;
    document.getElementById("data").textContent = JSON.stringify(payload);
    show(true);
    for (const section of inside.querySelectorAll("section")) {
      const key = { probe: "tokens" }[section.id] ?? section.id;
      section.hidden = !(key === "positions" ? payload.positions?.end : payload[key]);
    }
    notice([...payload.cut, ...payload.missing]);
    // Select the token before it: the prediction there is the one that was sampled.
    inspect({ token: Math.max(0, payload.probe.ids.length - 2), stop: mine.signal });
    const { p, rank, entropy } = drawn[i];
    const again = payload.tokens.probability.at(-1);
    // During generation a long text is read through a window that may start elsewhere.
    const other =
      Math.abs(again - p) > 0.01 * p
        ? ` With only the last ${payload.probe.ids.length - 1} tokens before it, it has p ${format(again)}.`
        : "";
    say(
      `‘${shownToken(drawn[i])}’ had p ${format(p)}, rank ${format(rank)} of ${format(about.vocab_size)}; ` +
        `the entropy was ${fixed(entropy)} nats. The sections below show this prediction.${other}`,
    );
    inside.scrollIntoView({ block: "start" });
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
}

function notice(lines) {
  if (!lines.length) return;
  const [node, list] = [document.createElement("div"), document.createElement("ul")];
  node.className = "notice";
  node.setAttribute("role", "note");
  for (const line of lines) {
    const item = document.createElement("li");
    item.textContent = line;
    list.append(item);
  }
  node.append(list);
  inside.prepend(node);
}

document.addEventListener("themechange", () => boxes().forEach((node, i) => surprise(node, drawn[i].p)));
offerThemes();
show(false);
form.addEventListener("submit", generate);
stop.addEventListener("click", () => running?.abort());
form.elements.prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
