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

import jax
import numpy as np
import pytest
import uvicorn

import jaxgpt
from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.data import prompts, tokenizers
from jaxgpt.data.id_files import Dataset, Split
from jaxgpt.inspect import analysis, attention, capture, page, playground, reading, server
from jaxgpt.inspect import service as service_module
from jaxgpt.inspect.interventions import Edit, edited_logits
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
    one = Service(Subject(run, {"starts": []}, [], None, ("No text.",)))
    one.warm_up()
    return one


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


def test_a_look_into_a_large_model_is_in_two_parts_that_are_those_of_a_report(service, port, monkeypatch):
    ids = service.subject.run.tokenizer.encode("love and love").tolist()
    small = json.loads(ask(port, "/api/look", {"ids": ids, "at": 3})[1])
    report = json.loads(ask(port, "/api/report", {"ids": ids})[1])
    assert {key for key in small if small[key] != report.get(key)} <= {"generated", "rest"} and not small[
        "rest"
    ]
    monkeypatch.setattr(service, "_large", True)
    quick, rest = (
        json.loads(ask(port, f"/api/{path}", given)[1])
        for path, given in (("look", {"ids": ids, "at": 3}), ("rest", {"ids": ids}))
    )
    changed = {key for key in quick if quick[key] != report.get(key)}
    assert changed <= {"generated", "rest", "lens", "embeddings", "vocabulary"} and quick["rest"]
    assert quick["embeddings"] == report["embeddings"] | {"neighbours": [], "scatter": None}
    for name in ("ids", "p", "true_p"):
        for row, complete in zip(quick["lens"][name], report["lens"][name], strict=True):
            assert row == [value if t == 3 else None for t, value in enumerate(complete)]
    assert (rest["lens"], rest["embeddings"]) == (report["lens"], report["embeddings"])
    assert quick["vocabulary"] | rest["vocabulary"] == report["vocabulary"]
    for at in (-1, len(ids)):
        response, content = ask(port, "/api/look", {"ids": ids, "at": at})
        assert response.status == 400 and "give a position from 0 to" in json.loads(content)["error"]


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


def without_text() -> Service:
    """Of a run whose own text is not here, and whose tokenizer knows English."""
    tokenizer = tokenizers.CharTokenizer("".join(sorted({*prompts.ENGLISH})))
    cfg, params = induction_model(tokenizer.vocab_size, 32)
    run = Run(config.Config(model=cfg), GPT(cfg), params, tokenizer, 7, Path("planted"))
    return Service(Subject(run, {"starts": []}, [], None, ("No text.",)))


def test_figures_of_a_run_without_a_text_are_computed_once_and_are_those_of_a_report(monkeypatch):
    one, measured = without_text(), []
    real = attention.head_figures
    monkeypatch.setattr(attention, "head_figures", lambda *given: measured.append(1) or real(*given))
    first, second = one.report({"text": "The boy, the"}), one.report({"text": "The sea, the sea"})
    assert len(measured) == 1
    assert first["attention"]["statistics"] == second["attention"]["statistics"]
    assert first["attention"]["statistics_on"] == attention.ENGLISH_IS
    named = {(of["layer"], of["head"]): of["kind"] for of in first["attention"]["named"]}
    assert named[0, 0] == "previous_token" and named[1, 0] == "induction"
    own = payload(one.subject, probe_of(one.subject, "The sea, the sea"))
    assert {key for key in own if own[key] != second[key]} <= {"generated"}


def test_without_a_text_prompts_are_english_and_a_large_model_starts_with_few_tokens(monkeypatch):
    found = without_text().about()
    assert len(found["examples"]) >= 3 and all(one in prompts.ENGLISH for one in found["examples"])
    assert found["defaults"]["max_new_tokens"] == service_module.DEFAULTS["max_new_tokens"]
    monkeypatch.setattr(service_module, "LARGE", 10)
    large = without_text()
    assert large.about()["defaults"]["max_new_tokens"] == service_module.FEW_TOKENS
    asked = {"prompt": "The boy", "max_new_tokens": 4}
    first = list(large.generate(asked))
    programs = generation.prefill._cache_size(), generation.decode._cache_size()
    for kind in service_module.KINDS:  # one program for all samplers: each would take long to compile
        list(large.generate(asked | kind))
    assert (generation.prefill._cache_size(), generation.decode._cache_size()) == programs
    small = list(without_text().generate(asked))
    assert [one["piece"] for part in first for one in part if "piece" in one] == [
        one["piece"] for part in small for one in part if "piece" in one
    ]


def test_a_look_while_the_page_gets_ready_does_not_wait_for_the_figures_of_the_run(monkeypatch):
    one, go_on = without_text(), threading.Event()
    real = attention.head_figures
    monkeypatch.setattr(attention, "head_figures", lambda *given: go_on.wait(60) and real(*given))
    preparing = threading.Thread(target=one.warm_up)
    preparing.start()
    looks: list[dict] = []
    looking = threading.Thread(target=lambda: looks.append(one.report({"text": "The boy, the"})))
    try:
        end = time.monotonic() + 60
        while "lengths" not in one.ready and time.monotonic() < end:
            time.sleep(0.05)
        looking.start()
        looking.join(30)
        assert looks, "the look waits"
    finally:
        go_on.set()
        preparing.join()
    assert {"heads", "embeddings"} <= set(looks[0]["pending"]) and looks[0]["missing"][-1].startswith("Still")
    page.render(looks[0])
    later, own = (
        one.report({"text": "The boy, the"}),
        payload(one.subject, probe_of(one.subject, "The boy, the")),
    )
    assert {key for key in own if own[key] != later[key]} <= {"generated"} and not later["pending"]


# --- answers at once, next tokens, edits ----------------------------------------------------------------


def test_no_length_and_no_setting_compiles_anew_once_the_page_is_ready(service, port):
    programs = (generation.prefill, generation.decode, capture._forward, reading._read)
    assert json.loads(ask(port, "/api/ready")[1]) == {
        "ready": ["write", "look", "lengths", "figures", "edits"]
    }
    before = [program._cache_size() for program in programs]
    off = [{"site": "heads", "layer": 1, "at": 0, "scale": 0}]
    settings = [
        {"temperature": 0.85},
        {"temperature": 0, "seed": 5},
        {"top_k": 3},
        {"top_p": 0.4, "top_k": 40},
        {"edits": off},
    ]
    for length, setting in zip((1, 7, 16, 17, 40), settings, strict=True):
        given = {"prompt": "ab the " * 6} | setting
        given["prompt"] = given["prompt"][:length]
        assert lines(ask(port, "/api/generate", given | {"max_new_tokens": 3 + length})[1])[-1]["done"]
        assert (
            ask(port, "/api/next", {"prompt": given["prompt"], "edits": given.get("edits", [])})[0].status
            == 200
        )
        if length > 1:
            assert ask(port, "/api/report", {"text": given["prompt"]})[0].status == 200
    assert [program._cache_size() for program in programs] == before


def test_a_text_given_as_ids_is_continued_as_if_it_had_not_stopped(service, port):
    long, start = ({"prompt": "the king ", "max_new_tokens": n, "seed": 3} for n in (20, 8))
    tokens = [line["token"]["id"] for line in lines(ask(port, "/api/generate", long)[1])[1:-1]]
    ids = [*lines(ask(port, "/api/generate", start)[1])[0]["prompt"], *tokens[:8]]
    rest = lines(ask(port, "/api/generate", {"ids": ids, "max_new_tokens": 12, "seed": 3})[1])
    assert [line["token"]["id"] for line in rest[1:-1]] == tokens[8:]


def test_next_tokens_and_the_scores_of_the_text_are_those_of_the_forward_pass(service, port):
    run, text = service.subject.run, "the king a"
    found = json.loads(ask(port, "/api/next", {"prompt": text})[1])
    p_TV = analysis.softmax(jaxgpt.capture(run, text).logits_TV)
    ids = run.tokenizer.encode(text)
    assert [token["id"] for token in found["tokens"]] == ids.tolist() and "p" not in found["tokens"][0]
    for t, token in enumerate(found["tokens"][1:]):
        assert token["p"] == pytest.approx(p_TV[t, ids[t + 1]], rel=1e-3, abs=1e-7)
        assert token["rank"] == 1 + (p_TV[t] > p_TV[t, ids[t + 1]] * (1 + 1e-5)).sum()
    assert [one["p"] for one in found["next"]] == pytest.approx(np.sort(p_TV[-1])[::-1][:12], rel=1e-3)
    assert "edited" not in found["next"][0]


def test_edits_of_a_request_are_those_made_by_hand(service, port):
    """Of next tokens, and of a generated text, whose window moves: heads, MLPs and neurons scaled, a direction added."""
    run = service.subject.run
    params = jax.tree.map(np.array, run.params)
    given = [
        {"site": "heads", "layer": 0, "at": 0, "scale": 0.5},
        {"site": "heads", "layer": 1, "at": 0, "scale": 0},
        {"site": "mlp", "layer": 0, "scale": 3},
        {"site": "neurons", "layer": 1, "at": 2, "scale": -1},
        {"site": "stream", "layer": 1, "from": "ab", "to": "k", "scale": 2.5},
    ]
    table = params["token_embedding"]["embedding"]
    a, b, k = run.tokenizer.encode("abk")
    direction_D = 2.5 * (table[k] - (table[a] + table[b]) / 2)
    edits = {("stream", 1): Edit(add=direction_D)}
    for block, head, scale in ((0, 0, 0.5), (1, 0, 0)):
        params[f"block_{block}"]["attention"]["out"]["kernel"][head] *= scale
    params["block_0"]["mlp"]["down"]["kernel"] *= 3
    params["block_1"]["mlp"]["down"]["kernel"][2] *= -1
    found = json.loads(ask(port, "/api/next", {"prompt": "the king a", "edits": given})[1])["next"]
    by_hand = edited_logits(run.model, params, run.tokenizer.encode("the king a")[None], edits)[0, -1]
    p_V, plain_V = (
        analysis.softmax(by_hand),
        analysis.softmax(jaxgpt.capture(run, "the king a").logits_TV[-1]),
    )
    for one in found:
        assert one["edited"] == pytest.approx(p_V[one["id"]], rel=1e-3, abs=1e-9)
        assert one["p"] == pytest.approx(plain_V[one["id"]], rel=1e-3, abs=1e-9)
    assert int(p_V.argmax()) in {one["id"] for one in found}
    body = {"prompt": "the king a", "edits": given, "max_new_tokens": 40, "temperature": 0}
    start, *tokens, _ = lines(ask(port, "/api/generate", body)[1])
    ids = [*start["prompt"], *(line["token"]["id"] for line in tokens)]
    program = jax.jit(lambda ids_1T: edited_logits(run.model, params, ids_1T, edits))
    for n, line in enumerate(tokens, start=10):
        window = ids[generation.window_start(n, 32) : n]
        padded_1T = np.zeros((1, 32), np.int32)
        padded_1T[0, : len(window)] = window
        p = analysis.softmax(program(padded_1T)[0, len(window) - 1])
        assert line["p"] == pytest.approx(p[ids[n]], rel=2e-3) and p[ids[n]] == pytest.approx(
            p.max(), rel=1e-4
        )


def test_prompts_to_start_with_are_starts_of_lines_of_the_validation_text(service):
    text = (
        "\n".join(f"king {word} and the queen of all" for word in ("love", "hate", "abcdefghijklmnop", "x"))
        * 30
    )
    ids = service.subject.run.tokenizer.encode(text)
    dataset = Dataset(Split(ids), Split(ids), service.subject.run.tokenizer, "text", "", "")
    found = Service(dataclasses.replace(service.subject, dataset=dataset)).examples()
    assert 3 <= len(set(found)) == len(found) <= 4 and all(
        len(one) <= 24 and f"\n{one}" in f"\n{text}" and one[-1] != " " for one in found
    )


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
        ({"ids": []}, 400, "empty prompt"),
        ({"ids": [0, 1000]}, 400, "invalid token ids: give integers from 0 to"),
        ({"ids": "a"}, 400, "ids is of type str: give a list or null"),
        ({"prompt": "a", "edits": None}, 400, "edits is of type NoneType: give a list"),
        (
            {"prompt": "a", "edits": [1]},
            400,
            "edit 1: give an object with site, one of heads, mlp, neurons, stream",
        ),
        (
            {"prompt": "a", "edits": [{"site": "mlp", "layer": 0}]},
            400,
            "edit 1: give site, layer, scale, and nothing else",
        ),
        (
            {"prompt": "a", "edits": [{"site": "mlp", "layer": 2, "scale": 0}]},
            400,
            "layer=2: give an integer from 0 to 1",
        ),
        (
            {"prompt": "a", "edits": [{"site": "heads", "layer": 0, "at": True, "scale": 0}]},
            400,
            "at=True: give an integer",
        ),
        (
            {"prompt": "a", "edits": [{"site": "mlp", "layer": 0, "scale": 1e9}]},
            400,
            "scale=1000000000.0: give a number from",
        ),
        (
            {"prompt": "a", "edits": [{"site": "stream", "layer": 0, "scale": 1, "from": "", "to": "a"}]},
            400,
            "from: give a text",
        ),
        (
            {"prompt": "a", "edits": [{"site": "stream", "layer": 0, "scale": 1, "from": "é", "to": "a"}]},
            400,
            "character 'é'",
        ),
        ({"prompt": "a", "edits": [{"site": "mlp", "layer": 0, "scale": 0}] * 33}, 400, "at most 32 edits"),
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
    "path",
    [
        "/",
        "/api/run",
        "/api/ready",
        "/api/next",
        "/api/generate",
        "/api/report",
        "/api/report.html",
        "/api/look",
        "/api/rest",
        "/nothing",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1"}, {"Host": "127.0.0.1.evil.example:80"},
     {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "https://127.0.0.1"}],
    ids=str,
)  # fmt: skip
def test_other_hosts_and_other_pages_get_nothing(port, path, headers):
    body = None if path in ("/", "/api/run", "/api/ready") else {"prompt": "a", "text": "ab"}
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
