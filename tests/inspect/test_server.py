"""The local page's endpoints on a real server: they return the model's numbers, and refuse foreign pages."""

import contextlib
import dataclasses
import http.client
import importlib.util
import json
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn

import jaxgpt
from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import tokenizers
from jaxgpt.data.id_files import Dataset, Split
from jaxgpt.inspect import playground, server
from jaxgpt.inspect.payload import payload
from jaxgpt.inspect.service import Service
from jaxgpt.inspect.subject import Subject, probe_of
from jaxgpt.model import generation
from jaxgpt.model.gpt import GPT
from jaxgpt.runs.load import Run
from tests.commands import execute
from tests.planted import induction_model

TOKEN = "secret"
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\u202e\0"
CHARACTERS = "".join(sorted({*"abcdefghijklmnopqrstuvwxyz \n&<>", *HOSTILE}))


@pytest.fixture(scope="module")
def service() -> Service:
    cfg, params = induction_model(len(CHARACTERS), 32)
    run = Run(
        config.Config(model=cfg), GPT(cfg), params, tokenizers.CharTokenizer(CHARACTERS), 7, Path("planted")
    )
    return Service(Subject(run, {"starts": []}, [], None, ("No text.",)))


@pytest.fixture(scope="module")
def port(service):
    """A server in a thread, on a free port."""
    listening = server.listen(0)
    number = listening.getsockname()[1]
    listener = uvicorn.Server(uvicorn.Config(server.make_app(service, number, TOKEN), log_level="critical"))
    thread = threading.Thread(target=lambda: listener.run(sockets=[listening]))
    thread.start()
    yield number
    listener.should_exit = True
    thread.join()


def ask(
    port: int, path: str, body=None, token: str = TOKEN, **headers
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one request. A body that is neither text nor bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        headers = {"Content-Type": "application/json"} | headers
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", f"/{token}{path}", body, headers)
        response = connection.getresponse()
        return response, response.read()


def lines(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


# --- what is streamed -----------------------------------------------------------------------------------


def test_the_stream_is_the_text_of_the_model_with_its_own_probabilities(service, port):
    run, settings = service.subject.run, {"max_new_tokens": 40, "temperature": 0.7, "top_k": 20, "seed": 3}
    response, content = ask(port, "/api/generate", {"prompt": "the king ", **settings})
    assert response.status == 200 and response.headers["Content-Type"].startswith("application/x-ndjson")
    start, *tokens, done = lines(content)
    assert start == {"prompt": run.tokenizer.encode("the king ").tolist()}
    ids = [line["token"]["id"] for line in tokens]
    expected = generation.generate_ids(
        run.model,
        run.params,
        [run.tokenizer.encode("the king ")],
        40,
        sampler=generation.Sampler(0.7, 20),
        seed=3,
    )
    np.testing.assert_array_equal(ids, np.concatenate([piece[0] for piece in expected]))
    assert "".join(line["piece"] for line in tokens) == run.tokenizer.decode(ids)
    assert done["done"] and done["tokens"] == 40 and done["seconds"] > 0
    # The first 20 without a cache, as far as the window has not moved.
    text = [*run.tokenizer.encode("the king "), *ids]
    logits_TV = jaxgpt.capture(run, text[:32]).logits_TV.astype(np.float64)
    p_TV = np.exp(logits_TV) / np.exp(logits_TV).sum(axis=-1, keepdims=True)
    for n in range(20):
        p_V = p_TV[8 + n]
        assert tokens[n]["p"] == pytest.approx(p_V[ids[n]], rel=1e-3, abs=1e-7)
        assert tokens[n]["rank"] == 1 + (logits_TV[8 + n] > logits_TV[8 + n][ids[n]] + 1e-5).sum()
        assert tokens[n]["entropy"] == pytest.approx(-(p_V * np.log(p_V)).sum(), rel=1e-3)


def test_two_tabs_at_once_get_what_each_would_alone(port):
    wanted = [{"prompt": "ab ", "max_new_tokens": 60, "seed": seed} for seed in (1, 2)]
    alone = [ask(port, "/api/generate", body)[1] for body in wanted]
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.setdefault(i, ask(port, "/api/generate", wanted[i])[1]))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lines(found[i])[:-1] for i in range(2)] == [lines(content)[:-1] for content in alone]
    assert lines(alone[0])[:-1] != lines(alone[1])[:-1]


def test_a_prompt_longer_than_the_context_is_continued_from_its_end(service, port):
    start, first, *_ = lines(ask(port, "/api/generate", {"prompt": "abcd" * 20, "max_new_tokens": 2})[1])
    seen = 80 - generation.window_start(80, 32)
    assert (
        first == {"note": f"The prompt has 80 tokens; the model sees only the last {seen}."}
        and 16 <= seen <= 32
    )
    assert start["prompt"] == service.subject.run.tokenizer.encode("abcd" * 20)[-seen:].tolist()


def test_generation_stops_when_nobody_listens_any_more(port, monkeypatch):
    made, stopped = [], threading.Event()

    def endless(*args, **settings):
        try:
            while True:
                made.append(1)
                time.sleep(0.01)
                one = np.ones((1, 1), np.int32)
                yield generation.Piece(one, generation.Scores(one / 2, one, one / 2))
        finally:
            stopped.set()

    monkeypatch.setattr(generation, "generate_pieces", endless)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"prompt": "a"})
    connection.request("POST", f"/{TOKEN}/api/generate", body, {"Content-Type": "application/json"})
    assert json.loads(connection.getresponse().fp.readline().strip() or b"1")  # it streams
    connection.close()
    assert stopped.wait(30)
    count = len(made)
    time.sleep(0.1)
    assert len(made) == count


def test_an_error_on_the_way_is_the_last_line(port, monkeypatch):
    def breaking(*args, **settings):
        one = np.ones((1, 1), np.int32)
        yield generation.Piece(one, generation.Scores(one / 2, one, one / 2))
        raise RuntimeError("the device is gone\nwith details")

    monkeypatch.setattr(generation, "generate_pieces", breaking)
    _, first, last = lines(ask(port, "/api/generate", {"prompt": "a"})[1])
    assert first["rank"] == 1 and last == {"error": "RuntimeError: the device is gone"}


def test_a_hostile_text_comes_back_unchanged_as_data(service, port):
    response, content = ask(port, "/api/report", {"text": HOSTILE[-30:]})
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    got = json.loads(content)
    assert got["probe"]["text"] == HOSTILE[-30:]
    response, content = ask(port, "/api/report.html", {"text": HOSTILE})
    assert response.status == 200 and b"<img src=x" not in content


def test_the_report_of_tokens_is_that_of_their_text(service, port):
    ids = service.subject.run.tokenizer.encode("love and love").tolist()
    own, got = (
        json.loads(ask(port, "/api/report", given)[1]) for given in ({"text": "love and love"}, {"ids": ids})
    )
    assert {key for key in own if own[key] != got[key]} <= {"generated"}
    for wrong in ([], [0], [0] * 33, [0, -1], [0, len(CHARACTERS)], [0, 1.0], [0, True], [0, "1"]):
        response, content = ask(port, "/api/report", {"ids": wrong})
        assert response.status == 400 and "give" in json.loads(content)["error"]


def test_the_report_of_a_text_is_the_commands(service, port):
    content = ask(port, "/api/report", {"text": "love and love"})[1]
    own = json.loads(json.dumps(payload(service.subject, probe_of(service.subject, "love and love"))))
    got = json.loads(content)
    assert {key for key in own if own[key] != got[key]} <= {"generated"}
    assert (
        ask(port, "/api/report.html", {"text": "love and love"})[0]
        .headers["Content-Type"]
        .startswith("text/html")
    )


def test_figures_computed_once_equal_figures_computed_again(service, monkeypatch):
    split = Split(np.random.default_rng(0).integers(0, len(CHARACTERS), 400))
    dataset = Dataset(split, split, service.subject.run.tokenizer, "random", "", "")
    one = Service(dataclasses.replace(service.subject, dataset=dataset, missing=()))
    one.report({"text": "love and"})
    second = one.report({"text": "king and"})
    own = payload(one.subject, probe_of(one.subject, "king and"))
    assert {key for key in own if own[key] != second[key]} <= {"generated", "vocabulary"}
    assert own["vocabulary"].items() <= second["vocabulary"].items()


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, status, words",
    [
        ({"prompt": "é"}, 400, "character 'é' (U+00E9) at position 0 is not one of"),
        ({"prompt": ""}, 400, "empty prompt"),
        ({"prompt": "\ud800"}, 400, "lone surrogate"),
        ({"prompt": "a", "max_new_tokens": 0}, 400, "max_new_tokens=0"),
        ({"prompt": "a", "max_new_tokens": 10**9}, 400, "give at most 10000"),
        ({"prompt": "a", "max_new_tokens": True}, 400, "max_new_tokens is of type bool: give an integer"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature=-1"),
        ({"prompt": "a", "top_p": "x"}, 400, "top_p is of type str: give an integer or a number or null"),
        ({"prompt": "a", "seed": -1}, 400, "seed=-1"),
        ({"prompt": ["a"]}, 400, "prompt is of type list: give text"),
        ({"promt": "a"}, 400, "unknown field 'promt': choose one of prompt"),
        (["a"], 400, "give a JSON object with prompt"),
        (b'{"prompt": ', 400, "not valid JSON"),
        (b"[" * 60_000, 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        ({"prompt": "a" * 1_000_000}, 413, "more than 65,536 bytes"),
    ],
)
def test_an_invalid_request_is_one_line(port, body, status, words):
    response, content = ask(port, "/api/generate", body)
    assert response.status == status, content
    (problem,) = lines(content)
    assert set(problem) == {"error"} and words in problem["error"] and "\n" not in problem["error"]


def test_a_large_body_without_a_length_is_not_read_to_its_end(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    with contextlib.closing(connection):
        connection.request(
            "POST", f"/{TOKEN}/api/generate", iter([b"a" * 30_000] * 3), headers, encode_chunked=True
        )
        assert connection.getresponse().status == 413


@pytest.mark.parametrize(
    "path", ["/", "/api/run", "/api/generate", "/api/report", "/api/report.html", "/nothing"]
)
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1.evil.example:80"},
     {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"}],
    ids=str,
)  # fmt: skip
def test_other_hosts_and_other_pages_get_nothing(port, path, headers):
    body = None if path in ("/", "/api/run") else {"prompt": "a", "text": "ab"}
    response, content = ask(port, path, body, **headers)
    assert response.status == 403 and set(json.loads(content)) == {"error"}


def test_other_users_of_the_machine_get_nothing(port):
    assert server.new_token() != server.new_token() and len(server.new_token()) >= 20
    for token in ("", "x", TOKEN[:-1], f"{TOKEN}x", "..", f"{TOKEN}/.."):
        for path in ("/", "/api/run", ""):
            response, content = ask(port, path, token=token)
            assert response.status in (403, 404) and "token" in content.decode() + "token" * (".." in token)
    for path in ("/", "/api/run", f"/{TOKEN}"):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", path)
            assert connection.getresponse().status == 403


def test_a_connection_that_asks_nothing_is_closed(service, monkeypatch):
    monkeypatch.setattr(server, "SECONDS_TO_ASK", 0.2)
    listening = server.listen(0)
    number = listening.getsockname()[1]
    settings = uvicorn.Config(
        server.make_app(service, number, TOKEN), log_level="critical", http=server._http_class()
    )
    listener = uvicorn.Server(settings)
    thread = threading.Thread(target=lambda: listener.run(sockets=[listening]))
    thread.start()
    silent = [socket.create_connection(("127.0.0.1", number), timeout=30) for _ in range(20)]
    own = f"Host: 127.0.0.1:{number}\r\n\r\n"
    complete = f"GET /{TOKEN}/api/run HTTP/1.1\r\n{own}".encode()
    body = (
        f"POST /{TOKEN}/api/generate HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n{own}"
    )
    for number_of_it, connection in enumerate(silent):
        if number_of_it % 4 == 1:  # the second request of a connection
            connection.sendall(complete)
            assert b"200 OK" in connection.recv(100_000)
        if number_of_it % 4 == 2:
            connection.sendall(body.encode() + b"{")
        elif number_of_it % 4 != 3:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
    assert ask(number, "/api/run")[0].status == 200
    for connection in silent:
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(100_000):  # to its end: closed by the server
                pass
        connection.close()
    listener.should_exit = True
    thread.join()


def test_the_own_page_is_answered_under_both_names(port):
    for name in ("127.0.0.1", "localhost"):
        own = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert ask(port, "/api/run", **own)[0].status == 200
    response, content = ask(port, "/api/run")
    about = json.loads(content)
    assert about["context_length"] == 32 and about["defaults"]["prompt"] == "\n" and about["step"] == 7
    for name, value in server.HEADERS.items():
        assert response.headers[name] == value
    assert "Access-Control-Allow-Origin" not in response.headers


def test_the_page_itself_is_the_playground(service, port):
    response, content = ask(port, "/")
    assert response.status == 200 and response.headers["Content-Type"].startswith("text/html")
    assert content.decode() == playground.render(service.about())


def test_other_paths_methods_and_content_types(port):
    assert ask(port, "/api/nothing")[0].status == 404
    assert ask(port, "/api/generate")[0].status == 405
    # What a form of another page could send without being asked for leave first.
    response, _ = ask(port, "/api/generate", b"prompt=a", Content_Type="application/x-www-form-urlencoded")
    assert response.status == 415


def test_it_listens_on_this_machine_alone_and_says_when_a_port_is_taken():
    with contextlib.closing(server.listen(0)) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UserError, match=r"can't listen on port \d+ \(.*in use\): give another --port"):
            server.listen(listening.getsockname()[1])
    with pytest.raises(UserError, match="--port=70000"):
        server.listen(70_000)


def test_a_missing_library_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert execute(monkeypatch, "serve --workdir run") == 2
    assert capsys.readouterr().err == (
        'error: the local page needs starlette and uvicorn: pip install "jaxgpt[serve]"\n'
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert execute(monkeypatch, "serve --workdir run --port 0") == 2
    assert "no run folder run" in capsys.readouterr().err
