"""The network part of the local page: HTTP endpoints on 127.0.0.1.

The server answers only requests whose Host, and Origin if present, are its own, so that no other page in the browser can
read or use it. Every path begins with a random token, which other users of the machine do not know: /TOKEN/api/run.

    GET  /                 the page: `playground.render(about)`, text/html
    GET  /api/run          {title, step, workdir, command, tokenizer, vocab_size, num_params, context_length, template, examples (prompts),
                           sites: {layers, and of each layer: heads, mlp, neurons, stream}, limits: {body_bytes, max_new_tokens},
                           defaults: {prompt, max_new_tokens, temperature, top_k, top_p, seed, ...}}
    GET  /api/ready        {ready: ["write", "look", "lengths", "figures", "edits"]}: what is compiled so far; the rest compiles when asked for
    POST /api/generate     {prompt, ids, max_new_tokens, temperature, top_k, top_p, seed, stop, stop_at_eot, edits}: all but the
                           prompt are optional; top_k, top_p and stop (a list of texts that end the text) may be null. `ids`
                           continues a text given as token ids instead. `edits` change activations, see steering.py. With `messages`
                           ([{role, content}, ...], for a run with data.template) instead of a prompt the model answers as the
                           assistant, to the end of its turn. The answer is a stream of JSON objects, one per line (application/x-ndjson):
                             {"prompt": ids}                             first: the prompt's tokens that the model sees
                             {"note": a sentence}                        any number
                             {"token": {id, text, hex?}, "piece": text, "p": number, "rank": number, "entropy": nats}
                             {"text": text}                              text that a possible stop held back
                             {"done": true, "tokens": n, "seconds": s}   last
                           or last {"error": a line} after a failure. `p` and `rank` are those of the model itself
                           (temperature 1, all tokens). The `piece`s, joined, are the text: a character made of several
                           tokens is in the piece of its last token.
    POST /api/next         {prompt or ids, edits}: the window of the text that the model sees and what may come next, in one
                           answer: {tokens: [{id, text, hex?, p, rank, entropy}] (the first without the numbers), entropy,
                           next: [{id, text, hex?, p, rank, edited (p with the edits)}], the most probable (with or without edits) first}
    POST /api/report       {text, text2?, temperature?}: the payload of a report for this text (`payload.payload`), application/json; or {ids}
                           instead of a text, which can include tokens that no text has, such as an unknown word
    POST /api/look         {ids, temperature?, at}: the same for the local page, with `rest`: whether parts that take long in a large
                           model are left out. The lens is then that of the position `at` alone, and null elsewhere
    POST /api/rest         {ids}: what a look left out: {lens, embeddings, vocabulary}
    POST /api/report.html  the same request; the answer is the report's page, text/html

An error is one line, {"error": ...}. Its status is 400 for an error that the user can fix (an unknown character, invalid
JSON), 403 for a foreign Host or Origin or another token, 404, 405, 413 for a body of more than `body_bytes`, 415 for a content type other than
application/json. Generation stops when the client disconnects.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxgpt.config import UserError, first_line
from jaxgpt.inspect import page, playground
from jaxgpt.inspect.service import BODY_BYTES, Service
from jaxgpt.inspect.write import as_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
MOST_CONNECTIONS = 64
SECONDS_TO_ASK = 10.0  # for a complete request, from the connection or the request's first byte on
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(service: Service, port: int, token: str) -> Starlette:
    """The ASGI application for requests to 127.0.0.1 or localhost at this port, with the token in their path."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    def line(status: int, text: str) -> Response:
        return JSONResponse({"error": text.replace("\n", " ")}, status)

    async def run(_request: Request) -> Response:
        return JSONResponse(service.about())

    async def front(_request: Request) -> Response:
        return HTMLResponse(playground.render(service.about()))

    async def ready(_request: Request) -> Response:
        return JSONResponse({"ready": service.ready})

    async def following(request: Request) -> Response:
        given = await _body(request)
        with service.asked():
            return JSONResponse(await run_in_threadpool(service.next, given))

    async def stream(request: Request) -> Response:
        given = await _body(request)
        with service.asked():
            lists = await run_in_threadpool(service.generate, given)
        return StreamingResponse(_encoded(service, lists), media_type="application/x-ndjson")

    def figures(compute: Callable[[Any], dict], render: Callable[[dict], Response]) -> Callable:
        async def answer(request: Request) -> Response:
            given = await _body(request)
            with service.asked():
                return await run_in_threadpool(lambda: render(compute(given)))

        return answer

    async def user_error(_request: Request, error: Exception) -> Response:
        return line(400, str(error))

    async def http_error(_request: Request, error: Any) -> Response:
        return line(error.status_code, str(error.detail))

    async def fault(_request: Request, error: Exception) -> Response:
        return line(500, f"{type(error).__name__}: {first_line(error)}")

    from starlette.exceptions import HTTPException

    def as_page(found: dict) -> Response:
        return HTMLResponse(page.render(found))

    def as_figures(found: dict) -> Response:
        return Response(as_json(found), media_type="application/json")

    app = Starlette(
        routes=[
            Route("/", front),
            Route("/api/run", run),
            Route("/api/ready", ready),
            Route("/api/next", following, methods=["POST"]),
            Route("/api/generate", stream, methods=["POST"]),
            Route("/api/report", figures(service.report, as_figures), methods=["POST"]),
            Route("/api/report.html", figures(service.report, as_page), methods=["POST"]),
            Route("/api/look", figures(service.look, as_figures), methods=["POST"]),
            Route("/api/rest", figures(service.rest, as_figures), methods=["POST"]),
        ],
        exception_handlers={UserError: user_error, HTTPException: http_error, Exception: fault},
    )
    app.add_middleware(Guard, port=port, token=token)
    return app


class Guard:
    """Refuses requests for other hosts or from other pages, and adds security headers.

    A foreign page can make a browser send requests here, but it can't choose their Host or Origin. A foreign name that
    resolves to 127.0.0.1 (DNS rebinding) arrives with its own Host. Another user of the machine can reach the port, and does
    not know the token.
    """

    def __init__(self, app: Any, port: int, token: str) -> None:
        self._app, self._token = app, token.encode()
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

        token, slash, rest = scope["path"].removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self._token)
        problem = self._problem(scope["headers"])
        if not problem and not (known and slash):
            problem = "unknown token: open the address that jaxgpt.serve printed"
        scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        if problem:
            from starlette.responses import JSONResponse

            await JSONResponse({"error": problem}, 403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _problem(self, headers: list[tuple[bytes, bytes]]) -> str:
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            return "unknown Host: open the address that jaxgpt.serve printed"
        if any(origin.removeprefix(b"http://") not in self._hosts for origin in origins):
            return "requests from other pages are refused: use the page of this server"
        return ""


async def _body(request: Request) -> Any:
    """A request's JSON. Reads at most BODY_BYTES."""
    from starlette.exceptions import HTTPException

    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "unsupported content type: send application/json")
    too_large = HTTPException(413, f"the request has more than {BODY_BYTES:,} bytes: give a shorter text")
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
        raise HTTPException(400, "the request's body is not valid JSON") from None


_LINE = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each token


async def _encoded(service: Service, lists: Iterator[list[dict]]) -> AsyncIterator[bytes]:
    """A stream of JSON lines, one chunk per list. Starlette cancels it when the client disconnects."""
    from starlette.concurrency import run_in_threadpool

    try:
        with service.asked():
            while (lines := await _next_list(run_in_threadpool, lists)) is not None:
                yield "".join(f"{_LINE(line)}\n" for line in lines).encode("utf-8", "replace")
    finally:
        lists.close()


async def _next_list(in_thread: Callable, lists: Iterator[list[dict]]) -> list[dict] | None:
    """The next list, or None after the last. An exception becomes the last line of the stream."""
    try:
        return await in_thread(next, lists, None)
    except Exception as error:
        return [{"error": f"{type(error).__name__}: {first_line(error)}"}]


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1; port 0 is any free port. Raises UserError if the port is in use."""
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
            f"can't listen on port {port} ({error.strerror}): give another --port, or 0 for any free port"
        ) from None
    return listening


def new_token() -> str:
    """A token for the address of a server."""
    return secrets.token_urlsafe(16)


def serve(service: Service, listening: socket.socket, token: str) -> None:
    """Answer requests until a signal arrives."""
    import uvicorn

    app = make_app(service, listening.getsockname()[1], token)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2, http=_http_class(),
        timeout_keep_alive=30, limit_concurrency=MOST_CONNECTIONS,
    )  # fmt: skip
    uvicorn.Server(settings).run(sockets=[listening])


def _http_class() -> Any:
    """uvicorn's protocol, which also closes a connection that does not complete a request in time, its body included."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._deadline: Any = self.loop.call_later(SECONDS_TO_ASK, self._close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def _watch(self) -> None:
            """Start the time of a request at its first byte, stop it at its last."""
            unread = self.conn.trailing_data[0]
            waits = self.conn.their_state is h11.SEND_BODY or (self.conn.their_state is h11.IDLE and unread)
            if not waits and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            elif waits and self._deadline is None:
                self._deadline = self.loop.call_later(SECONDS_TO_ASK, self._close)

        def _close(self) -> None:
            if not self.transport.is_closing():
                self.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

    return Protocol
