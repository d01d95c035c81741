"""A sparse autoencoder recovers planted dictionaries; its command measures a run, and its page is safe."""

import json

import numpy as np
import pytest

import jaxgpt
from jaxgpt import sae as command
from jaxgpt.config import UserError
from jaxgpt.inspect import activation_files, sparse, subject


def planted(features: int, width: int, active: int, count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(features, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((count, features))
    for row in codes:
        row[rng.choice(features, active, replace=False)] = rng.uniform(1, 2, active)
    return directions, (codes @ directions + 0.7).astype(np.float32)


def test_a_planted_dictionary_is_recovered_and_a_random_one_is_not():
    directions, x = planted(24, 16, 2, 6_000)
    sae = sparse.fit(x[:5_000], 32, 2, steps=1_500, learning_rate=3e-3)
    best = (directions @ np.asarray(sae.decoder).T).max(axis=1)
    assert np.median(best) > 0.97 and (best > 0.9).mean() > 0.85
    found = sparse.quality(sae, x[5_000:], 2)
    assert found.explained > 0.9
    assert found.rates.sum() <= 2 + 1e-6 and found.dead == (found.rates == 0).sum()
    top = int(found.rates.argmax())
    codes = np.asarray(sparse.codes(sae, x[5_000:], 2))
    assert (codes > 0).sum(axis=1).max() <= 2
    assert (
        found.largest[top, 0] == pytest.approx(codes[:, top].max())
        and found.places[top, 0] == codes[:, top].argmax()
    )
    untrained = sparse.fit(x[:5_000], 32, 2, steps=1, learning_rate=1e-9)
    assert sparse.quality(untrained, x[5_000:], 2).explained < 0.5
    assert (directions @ np.asarray(untrained.decoder).T).max(axis=1).mean() < 0.75
    with pytest.raises(UserError, match="k from 1 to the number of features"):
        sparse.fit(x, 4, 5)


def test_a_reconstruction_that_is_the_activation_recovers_all_of_the_loss(plain_run):
    run = jaxgpt.load(plain_run / "run")
    model, params = subject.plain(run.config.model, run.params)
    tokens = np.asarray(run.tokenizer.encode((plain_run / "text.txt").read_text()[:64]), np.int32)
    width, far = 16, 1e3
    # The positive and the negative part of each number is a feature.
    both = np.concatenate([np.eye(width), -np.eye(width)]).astype(np.float32)
    exact = sparse.Sparse(both.T, np.zeros(32, np.float32), both, np.zeros(width, np.float32), np.float32(1))
    for site in ("block_0/after", "block_1/mlp_change"):
        ((_, _, (x,)),) = activation_files.forwarded(model, params, tokens, [site])
        found = sparse.spliced(model, params, tokens.reshape(-1, 16), site, x, exact, 32)
        assert found["recovered"] == pytest.approx(1.0, abs=1e-3) and found["mean"] != found["loss"]
        wrong = exact._replace(bias=np.linspace(-far, far, width, dtype=np.float32), decoder=0 * both)
        assert (
            sparse.spliced(model, params, tokens.reshape(-1, 16), site, x, wrong, 32)["reconstructed"]
            > found["loss"]
        )
    with pytest.raises(UserError, match="can't be replaced"):
        sparse.spliced(model, params, tokens.reshape(-1, 16), "block_0/attention/q", x, exact, 32)


def test_the_command_writes_its_numbers_and_a_page_with_hostile_tokens_escaped(plain_run, tmp_path, capsys):
    arguments = [
        "--workdir",
        str(plain_run / "run"),
        "--tokens",
        "2000",
        "--steps",
        "30",
        "--features",
        "24",
        "--active",
        "4",
    ]
    command.main([*arguments, "--at", "block_1/after", "--out", str(tmp_path / "sae")])
    stored = json.loads((tmp_path / "sae/sae.json").read_text())
    assert stored["features"] == 24 and stored["step"] == 24 and stored["explained"] > 0
    assert stored["shown"][0]["contexts"] and "share of the loss recovered" in capsys.readouterr().out
    hostile = [
        {"feature": 0, "rate": 0.5, "contexts": [["</code><script>alert(1)</script>", "<b>", "\u202e", 1.0]]}
    ]
    page = command.page_of(stored, hostile)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "\u202e" not in page
    for wrong in (["--at", "start"], ["--at", "block_9/after"], ["--at", "block_0/after", "--tokens", "10"]):
        with pytest.raises(UserError):
            command.main([*arguments, *wrong])
