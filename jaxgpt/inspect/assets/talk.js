// The conversation of the local page: it sends all turns so far, and shows the model's answer as it is written.

const talk = {
  form: document.getElementById("say"),
  list: document.getElementById("turns"),
  status: document.getElementById("talk-status"),
  turns: [], // {role, content}
  running: null, // AbortController of the current answer
};

function showTurn(role, content) {
  const [node, name, text] = ["p", "b", "span"].map((tag) => document.createElement(tag));
  node.className = "turn";
  name.textContent = role === "user" ? "You: " : "Model: ";
  text.className = "token";
  text.textContent = content;
  node.append(name, text);
  talk.list.append(node);
  return text;
}

async function send(event) {
  event.preventDefault();
  const said = talk.form.elements.said.value.trim();
  if (!said || talk.running) return;
  const mine = (talk.running = new AbortController());
  const messages = [...talk.turns, { role: "user", content: said }];
  const mineShown = showTurn("user", said);
  const answer = showTurn("assistant", "");
  talk.status.textContent = "The model answers …";
  try {
    const reply = await ask("api/generate", { messages, ...given() }, mine.signal);
    for await (const one of objects(reply)) {
      if (one.error) throw new Error(one.error);
      answer.textContent += one.piece ?? one.text ?? "";
      if (one.done) talk.status.textContent = `${count(one.tokens, "token")} in ${one.seconds.toFixed(1)} s.`;
    }
    talk.turns = [...messages, { role: "assistant", content: answer.textContent }];
    talk.form.elements.said.value = "";
    save();
  } catch (error) {
    if (error.name !== "AbortError") talk.status.textContent = error.message;
    for (const shown of [mineShown, answer]) shown.parentNode.remove();
  }
  if (talk.running === mine) talk.running = null;
}

function startAgain() {
  talk.running?.abort();
  talk.running = null;
  talk.turns = [];
  talk.list.replaceChildren();
  talk.status.textContent = "";
  save();
}

talk.form.addEventListener("submit", send);
document.getElementById("again").addEventListener("click", startAgain);
talk.form.elements.said.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    talk.form.requestSubmit();
  }
});

/** Show the turns that a reload kept. */
function keepTurns(turns) {
  talk.turns = turns;
  for (const { role, content } of turns) showTurn(role, content);
}
