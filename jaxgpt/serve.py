"""Serve a local page that continues your text and shows the probability of every token.

    python -m jaxgpt.serve --workdir runs/char [--port 8000] [--step 1000]

Needs `pip install "jaxgpt[serve]"` (starlette and uvicorn). It listens on 127.0.0.1 alone, and answers only requests whose
Host, and Origin where there is one, are its own: no other page that is open in the browser can read or use it.

    GET  /                 the page: `report.playground.render(about)`, text/html
    GET  /api/run          {title, step, workdir, tokenizer, vocab_size, num_params, context_length, limits: {body_bytes,
                           max_new_tokens}, defaults: {prompt, max_new_tokens, temperature, top_k, top_p, seed}}
    POST /api/generate     {prompt, max_new_tokens, temperature, top_k, top_p, seed}: all but the prompt may be left out, top_k
                           and top_p may be null. Answers a stream of JSON objects, one a line (application/x-ndjson):
                             {"prompt": ids}                             the prompt's tokens that the model sees, first
                             {"note": a sentence}                        any number of them
                             {"token": {id, text, hex?}, "piece": text, "p": number, "rank": number, "entropy": nats}
                             {"done": true, "tokens": n, "seconds": s}   last
                           or, when something fails on the way, {"error": a line} last. `p` and `rank` are the model's own
                           (temperature 1, all tokens); the `piece`s, joined, are the text: a character that comes in several
                           tokens is in the last one's.
    POST /api/report       {text, text2?}: the payload of a report for this text (report.payload), application/json; or {ids}
                           of tokens instead of a text, which may be what no text has, such as an unknown word
    POST /api/report.html  the same as the page of a report, text/html

What is wrong with a request is one line, {"error": ...}: 400 for a mistake that the user can mend (a character that the
tokenizer lacks, no JSON), 403 for a foreign Host or Origin, 404, 405, 413 for a body of more than `body_bytes`, 415 for another
content type than application/json. Generation stops when the one who asked has gone.
"""

from __future__ import annotations

import importlib.util
import threading

from jaxgpt.common import cli
from jaxgpt.config import UserError


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    parser = cli.Parser("serve", description="A local page in which a run goes on with what one types.")
    parser.add_argument("--workdir", required=True, help="the run's folder")
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0: any that is free")
    parser.add_argument(
        "--step", type=cli.step, default=None, help="a saved step or 'best'; default: the newest"
    )
    args = parser.parse_args(argv)
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f'the local page needs {" and ".join(missing)}: pip install "jaxgpt[serve]"')
    cli.set_up_process()
    from jaxgpt.inspect.server import HOST, Playground, listen, serve
    from jaxgpt.inspect.subject import open_subject

    listening = listen(args.port)
    play = Playground(open_subject(args.workdir, args.step))
    print(
        f"{play.about()['title']}: http://{HOST}:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True
    )
    threading.Thread(target=play.warm_up, daemon=True).start()
    serve(play, listening)


if __name__ == "__main__":
    cli.run(main)
