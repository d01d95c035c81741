"""A page on this machine in which a run goes on with what one types, and shows how sure it is of every token.

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

import codecs
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgpt.config import UserError, first_line
from jaxgpt.data import prompts
from jaxgpt.inspect import page, playground
from jaxgpt.inspect.payload import Ground, ground, payload
from jaxgpt.inspect.plain import rounded, token_entry
from jaxgpt.inspect.subject import Subject, encode_written, probe_of, probe_of_ids
from jaxgpt.inspect.write import as_json
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler, window_start
from jaxgpt.model.parameters import count_params

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
BODY_BYTES = 65_536
MOST_TOKENS = 10_000
LARGE = 50_000_000  # parameters from which a screen would wait too long for as many tokens at once
DEFAULTS: dict[str, Any] = {
    "prompt": "\n", "max_new_tokens": 200, "temperature": 0.8, "top_k": None, "top_p": None, "seed": 0,
}  # fmt: skip
REPORT_DEFAULTS: dict[str, Any] = {"text": "", "text2": None, "ids": None}
TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "max_new_tokens": (int,), "temperature": (int, float), "top_k": (int, type(None)),
    "top_p": (int, float, type(None)), "seed": (int,), "text": (str,), "text2": (str, type(None)), "ids": (list, type(None)),
}  # fmt: skip
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """An answer with a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


def checked(given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """A request's fields with the defaults of those that it leaves out. Raises UserError with what is wrong."""
    if not isinstance(given, dict):
        raise UserError(f"give a JSON object with {', '.join(defaults)}")
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"unknown field {name[:40]!r}: choose among {', '.join(defaults)}")
        if not isinstance(value, TYPES[name]) or isinstance(value, bool):
            kinds = " or ".join(
                {str: "text", int: "a whole number", float: "a number", list: "a list"}.get(t, "null")
                for t in TYPES[name]
            )
            raise UserError(f"{name} is of type {type(value).__name__}: give {kinds}")
    return defaults | given


# --- what is answered, without the network --------------------------------------------------------------


class Playground:
    """A run in use: what stands behind each endpoint."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._reporting = threading.Lock()  # one at a time: a report takes all cores
        self._ground: Ground | None = None

    def about(self) -> dict[str, Any]:
        """The answer of /api/run."""
        run, cfg = self.subject.run, self.subject.cfg
        prompt = prompts.default(run.tokenizer, run.config.train.sample_prompt)
        return {
            "title": f"{run.workdir.name}, step {run.step:,}",
            "step": run.step,
            "workdir": str(run.workdir),
            "tokenizer": run.tokenizer.kind,
            "vocab_size": cfg.vocab_size,
            "num_params": count_params(run.params),
            "context_length": cfg.context_length,
            "limits": {"body_bytes": BODY_BYTES, "max_new_tokens": MOST_TOKENS},
            "defaults": DEFAULTS | {"prompt": prompt},
        }

    def generate(self, given: Any) -> Iterator[list[dict[str, Any]]]:
        """The objects of /api/generate in lists, as they come. Raises UserError at once where something is wrong."""
        settings = checked(given, DEFAULTS)
        if settings["max_new_tokens"] > MOST_TOKENS:
            raise UserError(f"max_new_tokens={settings['max_new_tokens']}: give at most {MOST_TOKENS}")
        run, T = self.subject.run, self.subject.cfg.context_length
        ids = encode_written(run.tokenizer, settings["prompt"])
        began = time.perf_counter()
        pieces = generation.generate_pieces(
            run.model, run.params, [ids[window_start(len(ids), T) :]], settings["max_new_tokens"],
            sampler=Sampler(settings["temperature"], settings["top_k"], settings["top_p"]),
            seed=settings["seed"], chunk=2 if count_params(run.params) > LARGE else generation.STREAM_TOKENS,
            scored=True,
        )  # fmt: skip
        first = next(pieces)  # here and not in the stream: what is wrong is known by now
        seen = {"prompt": ids[window_start(len(ids), T) :].tolist()}
        return self._lines([seen, *self._notes(ids)], first, pieces, began)

    def warm_up(self) -> None:
        """Compile what the first stream needs, so that nobody waits for it."""
        for _ in self.generate({"prompt": self.about()["defaults"]["prompt"]}):
            pass

    def _notes(self, ids: np.ndarray) -> list[dict[str, Any]]:
        notes, start = [], window_start(len(ids), self.subject.cfg.context_length)
        if start:
            notes.append(f"The prompt has {len(ids):,} tokens; the model sees the last {len(ids) - start}.")
        unk_id = getattr(self.subject.run.tokenizer, "unk_id", None)
        if unk_id is not None and (unknown := int((ids == unk_id).sum())):
            notes.append(f"{unknown} of the prompt's words are unknown to the tokenizer: it reads <unk>.")
        return [{"note": note} for note in notes]

    def _lines(
        self, notes: list[dict], first: generation.Piece, pieces: Iterator[generation.Piece], began: float
    ) -> Iterator[list[dict[str, Any]]]:
        tokenizer, count = self.subject.run.tokenizer, 0
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        lines, piece = notes, first
        with contextlib.closing(pieces):
            while piece is not None:
                for i, p, rank, entropy in zip(piece.ids[0], *(x[0] for x in piece.scores), strict=True):
                    token = {"id": int(i), **token_entry(tokenizer, int(i))}
                    text = decoder.decode(tokenizer.decode_bytes([int(i)]))
                    numbers = {"p": rounded(p), "rank": int(rank), "entropy": rounded(entropy)}
                    lines.append({"token": token, "piece": text, **numbers})
                    count += 1
                yield lines
                lines, piece = [], next(pieces, None)
        if rest := decoder.decode(b"", final=True):
            lines.append({"note": f"The text ends within a character: {rest}"})
        yield [*lines, {"done": True, "tokens": count, "seconds": round(time.perf_counter() - began, 3)}]

    def report(self, given: Any) -> dict[str, Any]:
        """The payload of /api/report. What holds for every text is found once."""
        settings = checked(given, REPORT_DEFAULTS)
        if settings["ids"] is None:
            probe = probe_of(self.subject, settings["text"])
        else:
            probe = probe_of_ids(self.subject, settings["ids"])
        other = None if settings["text2"] is None else probe_of(self.subject, settings["text2"])
        with self._reporting:
            known = self._ground or ground(self.subject, probe)
            if self.subject.dataset is not None:  # else heads are measured on the probe
                self._ground = known
            return payload(self.subject, probe, other, known=known)


# --- the network ----------------------------------------------------------------------------------------


def make_app(play: Playground, port: int) -> Starlette:
    """The endpoints as an ASGI application, for requests to 127.0.0.1 or localhost at this port."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def line(status: int, text: str) -> Response:
        return JSONResponse({"error": text.replace("\n", " ")}, status)

    async def run(_request: Request) -> Response:
        return JSONResponse(play.about())

    async def front(_request: Request) -> Response:
        return HTMLResponse(playground.render(play.about()))

    async def stream(request: Request) -> Response:
        lists = await run_in_threadpool(play.generate, await _body(request))
        return StreamingResponse(_encoded(lists), media_type="application/x-ndjson")

    def report(render: Callable[[dict], Response]) -> Callable:
        async def answer(request: Request) -> Response:
            given = await _body(request)
            return await run_in_threadpool(lambda: render(play.report(given)))

        return answer

    async def wrong(_request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            return line(error.status, str(error))
        return line(400, str(error))

    async def http_error(_request: Request, error: Any) -> Response:
        return line(error.status_code, str(error.detail))

    async def fault(_request: Request, error: Exception) -> Response:
        return line(500, f"{type(error).__name__}: {first_line(error)}")

    from starlette.exceptions import HTTPException

    as_page = report(lambda figures: HTMLResponse(page.render(figures)))
    as_figures = report(lambda figures: Response(as_json(figures), media_type="application/json"))
    app = Starlette(
        routes=[
            Route("/", front),
            Route("/api/run", run),
            Route("/api/generate", stream, methods=["POST"]),
            Route("/api/report", as_figures, methods=["POST"]),
            Route("/api/report.html", as_page, methods=["POST"]),
        ],
        exception_handlers={UserError: wrong, Refused: wrong, HTTPException: http_error, Exception: fault},
    )
    app.add_middleware(Guard, port=port)
    return app


class Guard:
    """Refuses requests of other hosts and other pages, and adds the headers that keep others out.

    A page elsewhere can make a browser send requests here; it can't choose their Host or Origin. A name that is made to
    point to 127.0.0.1 (DNS rebinding) comes with its own Host.
    """

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self._hosts = {f"{name}:{port}".encode() for name in (HOST, "localhost")}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if problem := self._problem(scope["headers"]):
            from starlette.responses import JSONResponse

            await JSONResponse({"error": problem}, 403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _problem(self, headers: list[tuple[bytes, bytes]]) -> str:
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "this Host is not served here: open the address that was printed"
        if any(origin.removeprefix(b"http://") not in self._hosts for origin in origins):
            return "requests of other pages are not answered"
        return ""


async def _body(request: Request) -> Any:
    """A request's JSON. Never more than BODY_BYTES of it are kept."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "give the content type application/json")
    too_large = Refused(413, f"the request has more than {BODY_BYTES:,} bytes: give a shorter text")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > BODY_BYTES:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > BODY_BYTES:
            raise too_large
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise Refused(400, "the request's body is no JSON") from None


async def _encoded(lists: Iterator[list[dict]]) -> AsyncIterator[bytes]:
    """The lines of a stream, each list as one part. Starlette cancels it where nobody listens any more."""
    from starlette.concurrency import run_in_threadpool

    try:
        while (lines := await _following(run_in_threadpool, lists)) is not None:
            yield b"".join(
                json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for line in lines
            )
    finally:
        lists.close()


async def _following(in_thread: Callable, lists: Iterator[list[dict]]) -> list[dict] | None:
    """The next list; None after the last. An error on the way is the stream's last line."""
    try:
        return await in_thread(next, lists, None)
    except Exception as error:
        return [{"error": f"{type(error).__name__}: {first_line(error)}"}]


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 takes any that is free. Raises UserError where it is taken."""
    if not 0 <= port < 65_536:
        raise UserError(f"--port={port}: give a number from 0 to 65535")
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise UserError(
            f"can't listen on port {port} ({error.strerror}): give another --port, or 0 for any"
        ) from None
    return listening


def serve(play: Playground, listening: socket.socket) -> None:
    """Answer requests until a signal comes."""
    import uvicorn

    app = make_app(play, listening.getsockname()[1])
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(settings).run(sockets=[listening])
