// Requests to the server of the local page, and what a stopped server is called. Uses no other file.

/** POST a request. Throws an Error with one line: the server's, or that it has stopped. */
async function ask(path, body, signal) {
  const answer = await reached(
    fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal,
    }),
  );
  if (answer.ok) return answer;
  let line = `The server answered ${answer.status}.`;
  try {
    line = (await answer.json()).error ?? line;
  } catch {
    /* not JSON: keep the status */
  }
  throw new Error(line);
}

/** The result of a request; a connection that fails means that the server has stopped. */
async function reached(request) {
  try {
    return await request;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(
      `The server has stopped. Start it again with “${about.command}” and open the address that it prints.`,
    );
  }
}

/** The JSON objects of a streamed answer, one per line. */
async function* objects(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    const lines = (rest + (value ?? "")).split("\n");
    rest = lines.pop();
    for (const line of done ? [...lines, rest] : lines) {
      if (line.trim()) yield JSON.parse(line);
    }
    if (done) return;
  }
}
