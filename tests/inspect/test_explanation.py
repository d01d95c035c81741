"""`python -m jaxgpt.explain` prints the numbers of the capture; wrong input gets one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import jaxgpt
from jaxgpt import explain
from jaxgpt.config import UserError
from jaxgpt.inspect import analysis, explained, explanation
from jaxgpt.inspect.capture import Capture, capture
from tests.commands import execute

TOY = str(Path(__file__).parents[2] / "configs" / "toy.py")
SENTENCE = "I love AI"


@pytest.fixture(scope="module")
def toy() -> tuple[explained.Explained, Capture]:
    subject = explained.untrained(TOY, {}, SENTENCE)
    return subject, capture(subject.cfg, subject.params, explained.ids_of(subject, SENTENCE))


@pytest.fixture(scope="module")
def lines(toy) -> list[str]:
    return list(explanation.explain(*toy, 0, 1, 8))


def numbers_after(lines: list[str], words: str, count: int) -> np.ndarray:
    """The numbers of the first `count` rows of the table below the line with these words."""
    start = next(n for n, line in enumerate(lines) if words in line) + 1
    number = r"(?:-?\d+\.\d{3}|-?inf)"
    rows = [line for line in lines[start : start + count + 1] if re.search(rf"{number}$", line)]
    return np.array([[float(x) for x in re.findall(rf"(?<=\s){number}", row)] for row in rows[:count]])


@pytest.mark.parametrize(
    "words, expected",
    [
        ("2. Token embeddings", lambda seen: seen.token_rows_TE),
        ("3. Position embeddings", lambda seen: seen.position_vectors_TD),
        ("the sum is the residual stream", lambda seen: seen.start_TD),
        ("4. Layer 0 reads", lambda seen: seen.layers[0].attention_input_TD),
        ("q = norm", lambda seen: seen.layers[0].q_THK[:, 1]),
        ("k = norm", lambda seen: seen.layers[0].k_SHK[:, 1]),
        ("v = norm", lambda seen: seen.layers[0].v_SHK[:, 1]),
        ("6. Scores", lambda seen: seen.layers[0].scores_HTS[1]),
        ("7. Causal mask", lambda seen: np.where(np.tri(5) > 0, seen.layers[0].scores_HTS[1], -np.inf)),
        ("softmax: exp(score)", lambda seen: seen.layers[0].weights_HTS[1]),
        ("8. Weighted sum", lambda seen: seen.layers[0].heads_THK[:, 1]),
        ("head 0's output", lambda seen: seen.layers[0].head_changes_HTD[0]),
        ("head 1's output", lambda seen: seen.layers[0].head_changes_HTD[1]),
        ("all heads' outputs", lambda seen: seen.layers[0].between_TD),
        ("9. MLP", lambda seen: seen.layers[0].mlp_input_TD),
        ("neurons: ", lambda seen: seen.layers[0].hidden_TF),
        ("times W_down", lambda seen: seen.layers[0].mlp_change_TD),
        ("the stream after layer 0", lambda seen: seen.layers[0].after_TD),
        ("10. After the last", lambda seen: seen.features_TD),
        ("logits of the vocabulary", lambda seen: seen.logits_TV),
        ("11. Softmax", lambda seen: analysis.softmax(seen.logits_TV)),
    ],
)
def test_printed_numbers_are_those_of_the_capture(toy, lines, words, expected):
    values = expected(toy[1])
    printed = numbers_after(lines, words, len(values))
    assert printed.shape == values.shape
    np.testing.assert_allclose(printed, values, atol=5.01e-4)


def test_the_loss_of_each_next_token_is_printed(toy, lines):
    start = next(n for n, line in enumerate(lines) if line.startswith("   after ")) + 1
    printed = [re.findall(r"(?<=\s)\d+\.\d{3}", line)[:3] for line in lines[start : start + 4]]
    nats = toy[1].losses
    expected = np.stack([np.exp(-nats), nats, nats / np.log(2)], axis=1)
    np.testing.assert_allclose(np.array(printed, float), expected, atol=5.01e-4)
    assert f"mean loss {nats.mean():.3f} nats" in "\n".join(lines)


def test_tokens_ids_and_a_score_by_hand_are_printed(toy, lines):
    seen = toy[1]
    (ids,) = [line for line in lines if line.startswith("   id ")]
    assert [int(x) for x in ids.split()[1:]] == seen.tokens_T.tolist()
    (score,) = [line for line in lines if line.startswith("   'love' with 'I': ")]
    assert score.endswith(f"= {seen.layers[0].scores_HTS[1, 2, 0]:.3f}")
    a, b, c, d, scale = (float(x) for x in re.findall(r"-?\d+\.\d{3}", score)[:5])
    assert (a * b + c * d) * scale == pytest.approx(seen.layers[0].scores_HTS[1, 2, 0], abs=5e-3)
    assert any("difference 0" in line for line in lines)


def test_the_toy_fits_a_screen_of_100_columns(lines):
    assert max(map(len, lines)) <= 100


def test_large_arrays_are_cut_where_it_is_seen_and_their_shapes_are_given(toy):
    lines = list(explanation.explain(*toy, 0, 0, 3))
    start = next(n for n, line in enumerate(lines) if "neurons: " in line)
    assert "[5, 8]" in lines[start]
    assert all(line.endswith(" ...") for line in lines[start + 1 : start + 4])
    assert lines[start + 4] == "   ... (5 rows)"


def test_json_has_the_same_numbers_uncut(toy, capsys):
    def refuse(word: str):
        raise ValueError(f"{word} is no JSON")

    explain.main(["--config", TOY, "--text", SENTENCE, "--head", "1", "--width", "2", "--json"])
    out = json.loads(capsys.readouterr().out, parse_constant=refuse)
    seen = toy[1]
    assert out["tokens"] == ["I", " ", "love", " ", "AI"] and out["ids"] == seen.tokens_T.tolist()
    for name, values in {
        "token_rows": seen.token_rows_TE,
        "weights": seen.layers[0].weights_HTS[1],
        "head_changes": seen.layers[0].head_changes_HTD,
        "logits": seen.logits_TV,
    }.items():
        np.testing.assert_allclose(out[name], values, rtol=1e-6)
    np.testing.assert_allclose(out["losses"]["nats"], seen.losses, rtol=1e-6)
    assert out["masked_scores"][0][1:] == [None] * 4
    assert out["ledger"]["error"] < 1e-5 and out["ledger"]["entries"][:2] == ["token", "position"]


def test_a_run_with_rotary_positions_and_a_head_of_its_own_is_explained(tmp_path):
    """Every difference from the toy is explained: rotary positions, untied head, soft caps, dtype."""
    overrides = {
        "model.position": "rotary", "model.tie_embeddings": "false", "model.qk_norm": "true", "model.num_layers": "2",
        "model.norm": "rmsnorm_plain", "model.use_bias": "false", "model.num_kv_heads": "1", "data.tokenizer": "char",
        "model.embedding_residual": "true", "model.attention_softcap": "5.0", "model.logit_softcap": "9.0", "model.dtype": "bfloat16",
    }  # fmt: skip
    subject = explained.untrained(TOY, overrides, SENTENCE)
    seen = capture(subject.cfg, subject.params, explained.ids_of(subject, SENTENCE))
    text = "\n".join(explanation.explain(subject, seen, 1, 1, 8))
    for words in ("nothing is added (queries", "rotated by position", "W_head", "4. Layer 1 reads the stream x = 1.000 x + 0.000 embedding [9, 4]",
                  "soft-capped to +-5", "soft-capped to +-9", "logit, before the cap", "shown in float32", "rmsnorm_plain of x [9, 4]"):  # fmt: skip
        assert words in text, words
    assert " + b" not in text


def test_a_trained_run_is_explained(here, monkeypatch, capsys):
    assert execute(monkeypatch, "explain --workdir run --text 'the king' --head 1 --step 10") == 0
    out = capsys.readouterr().out
    run = jaxgpt.load("run", step=10)
    loss = capture(run.config.model, run.params, run.tokenizer.encode("the king")).losses.mean()
    assert "run, step 10" in out and f"mean loss {loss:.3f} nats" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--workdir run --text 'the KING'", "'K' (U+004B) at position 4 is not one of the"),
        ("--workdir run --text 'the king sees the fool'", "22 tokens, model.context_length=16: shorten it"),
        ("--workdir run --text t", "1 token: give at least 2"),
        ("--workdir run --text ''", "0 tokens: give at least 2"),
        ("--workdir run --layer 1 --text 'the king'", "--layer=1: this model has 1, give 0 to 0"),
        ("--workdir run --head -1 --text 'the king'", "--head=-1: this model has 2, give 0 to 1"),
        ("--workdir run --width 0 --text 'the king'", "--width=0: give 1 or more"),
        ("--workdir run --config config.py", "either a run with --workdir RUN or an untrained model"),
        ("--text hello", "either a run with --workdir RUN or an untrained model"),
        ("--workdir run --config.model.d_model=8", "--config.model.d_model needs --config FILE"),
        ("--config config.py --step 3", "--step needs --workdir"),
        ("--config config.py --text ''", "the text is empty"),
        ("--config config.py --text a", "1 token: give at least 2"),
        ("--config config.py --config.data.tokenizer=bpe --config.data.vocab_size=300", "data.tokenizer='bpe' can't"),
        ("--config config.py --config.init_from=run", "init_from"),
    ],
)  # fmt: skip
def test_wrong_input_gets_one_line_and_exit_code_2(here, monkeypatch, capsys, arguments, words):
    assert execute(monkeypatch, f"explain {arguments}") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_words_that_the_tokenizer_lacks_are_named(toy):
    with pytest.raises(UserError, match="has 'hate', 'cats', which the tokenizer lacks"):
        explained.ids_of(toy[0], "I hate cats")
