// Looking inside: the report's views of the prediction at a place of the text. And the focus, which stays in the window.

let looking = null; // AbortController of the current views

/** Scroll as little as possible until a part is in the window; the element with the focus stays there too. */
function reveal(part) {
  part.scrollIntoView({ block: "nearest" });
  const focused = document.activeElement;
  const { top, bottom } = focused.getBoundingClientRect();
  if (focused !== document.body && (top < 0 || bottom > innerHeight)) focused.scrollIntoView({ block: "nearest" });
}

/** Draw anew. If the focus was in `part` and what had it is gone, it goes to the first that `next` gives. */
function keepFocus(part, draw, next) {
  const had = part.contains(document.activeElement);
  draw();
  if (had && !part.contains(document.activeElement)) next()?.focus();
}

function close() {
  looking?.abort();
  asking?.abort();
  show(false);
  for (const node of inside.querySelectorAll(".view, .notice")) node.remove();
  document.getElementById("selection")?.remove();
  choices.replaceChildren();
}

/** Show or hide the views and the links to them. */
function show(shown) {
  inside.hidden = !shown;
  for (const link of document.querySelectorAll("#contents a")) {
    link.parentNode.hidden = !shown && inside.querySelector(link.hash) !== null;
  }
}

/** Look inside the text in the box, without writing: what may come after it. */
async function lookInside() {
  const prompt = form.elements.prompt.value;
  try {
    if (current()?.prompt !== prompt) await open(prompt);
    await choose(current().tokens.length, true);
  } catch (error) {
    say(error.message);
  }
}

/** Show the report's views of the prediction at a place of the text. */
async function look(i, scrolls) {
  looking?.abort();
  const mine = (looking = new AbortController());
  const { tokens } = current();
  const most = Math.min(about.context_length, 128);
  const ids = idsUpTo(Math.max(2, i + 1), most);
  const token = tokens[i];
  const name = token ? `‘${shownToken(token)}’` : "what comes next";
  if (ids.length < 2) {
    say("Looking inside needs a text of two tokens or more.");
    return;
  }
  say(`Looking at ${name} …`);
  try {
    // Select the token before it: the prediction there is the one that was drawn.
    const at = i === 0 ? 0 : ids.length - (token ? 2 : 1);
    const answer = await ask("api/look", { ids, at, temperature: given().temperature ?? 1 }, mine.signal);
    const payload = await answer.json();
    if (mine.signal.aborted) return;
    for (const node of inside.querySelectorAll(".view, .notice")) node.remove();
    document.getElementById("selection")?.remove();
    document.getElementById("data").textContent = JSON.stringify(payload);
    show(true);
    for (const section of inside.querySelectorAll("section")) {
      const key = { probe: "tokens", flow: "ledger" }[section.id] ?? section.id;
      section.hidden = !(key === "positions" ? payload.positions?.end : payload[key]);
    }
    notice([...payload.cut, ...payload.missing]);
    const rest = payload.rest ? ask("api/rest", { ids }, mine.signal).then((answer) => answer.json()) : null;
    inspect({ token: at, temperature: given().temperature, stop: mine.signal, rest });
    say(token ? predicted(token, payload) : "The sections below show what the model makes of the text, and what it predicts next.");
    if (scrolls) {
      const title = inside.querySelector("section:not([hidden]) h2");
      title.tabIndex = -1;
      title.focus({ preventScroll: true });
      inside.scrollIntoView({ block: "start" });
    }
  } catch (error) {
    if (error.name !== "AbortError") say(error.message);
  }
}

function predicted(token, payload) {
  const name = `‘${shownToken(token)}’`;
  if (token.p === undefined) return `${name} is the first token: the model does not predict it.`;
  const again = payload.tokens.probability.at(-1);
  // While it was written, a long text was read through a window that may start elsewhere, or with changes.
  const other =
    Math.abs(again - token.p) > 0.01 * token.p
      ? ` In the unchanged model, with the ${count(payload.probe.ids.length - 1, "token")} before it, it has p ${format(again)}.`
      : "";
  return (
    `${name} had p ${format(token.p)}, rank ${format(token.rank)} of ${format(about.vocab_size)}; ` +
    `the entropy was ${fixed(token.entropy)} nats. The sections below show this prediction.${other}`
  );
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
