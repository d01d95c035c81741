"""What a run writes, keeps and says."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt.common import cli
from jaxgpt.config import UserError, snapshots
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import count_params, init_params
from jaxgpt.runs import checkpoint, checksums
from jaxgpt.train import main
from jaxgpt.training.loop import Trainer, train
from tests.small_runs import metrics, small_config, write_text

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def run_folder(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(small_config(text, train__num_steps=60, train__tensorboard=True), folder)
    return folder


def test_the_loss_falls_below_the_unigram_baseline(run_folder):
    valid = [line["loss"] for line in metrics(run_folder) if line["split"] == "valid"]
    baselines = json.loads((run_folder / "run.json").read_text())["baselines"]
    assert valid[0] == pytest.approx(baselines["uniform"], rel=0.05)
    assert valid[-1] < baselines["unigram"] < baselines["uniform"]
    assert baselines["bigram"] < baselines["unigram"]


def test_metrics_have_one_line_a_step_and_the_promised_fields(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    of_training = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in of_training] == list(range(1, 61))
    for line in of_training:
        assert {"loss", "learning_rate", "grad_norm", "tokens_per_second"} <= line.keys()
        assert all(math.isfinite(line[name]) for name in line.keys() - {"split"})
    validated = [line["step"] for line in lines if line["split"] == "valid"]
    assert validated == [0, 8, 16, 24, 32, 40, 48, 56, 60]


def test_the_folder_says_what_was_run(run_folder):
    facts = json.loads((run_folder / "run.json").read_text())
    run = jaxgpt.load(run_folder)
    assert facts["num_params"] == count_params(run.params)
    assert facts["starts"][0]["versions"]["jax"] and facts["starts"][0]["device"]
    resolved = json.loads((run_folder / "config.json").read_text())
    assert resolved["model"]["vocab_size"] == run.tokenizer.vocab_size == facts["vocab_size"]
    assert resolved["model"]["d_ff"] == 64 and resolved["train"]["eval_batch_size"] == 4
    assert run.tokenizer.decode(run.tokenizer.encode("the king")) == "the king"


def test_loaded_model_gives_logits_and_the_recorded_loss(run_folder):
    run = jaxgpt.load(run_folder)
    tokens = np.array([run.tokenizer.encode("the king loves")])
    logits = run.model.apply({"params": run.params}, tokens)
    assert logits.shape == (1, tokens.shape[1], run.tokenizer.vocab_size)
    # Trained for 60 steps only, but "the " is everywhere: after "th" comes "e".
    assert run.tokenizer.decode([int(logits[0, 1].argmax())]) == "e"


def test_the_newest_and_the_best_checkpoints_are_kept(run_folder):
    steps = checkpoint.Checkpoints(run_folder, read_only=True).steps()
    losses = {line["step"]: line["loss"] for line in metrics(run_folder) if line["split"] == "valid"}
    del losses[0]
    best = min(losses, key=losses.__getitem__)
    assert set(steps) >= {60, best} and len(steps) <= 3
    assert jaxgpt.load(run_folder).step == 60
    assert jaxgpt.load(run_folder, step="best").step == best
    assert jaxgpt.load(run_folder, step=best).step == best


def test_best_survives_when_the_loss_rises_again(text, tmp_path):
    """Saved with made-up losses: the lowest stays, whatever comes after."""
    cfg = small_config(text)
    trainer = Trainer([(cfg, tmp_path)])
    state = trainer.init()
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, None), (6, 2.2)]:
        state = state._replace(step=np.int32(step))
        trainer.runs[0].checkpoints.save(state, trainer.cfg, trainer.dataset.tokenizer, loss)
    trainer.runs[0].checkpoints.wait()
    assert trainer.runs[0].checkpoints.steps() == [2, 5, 6]
    assert trainer.runs[0].checkpoints.best_step() == 2
    assert trainer.runs[0].checkpoints.valid_loss(5) is None
    trainer.runs[0].checkpoints.close()


def test_embedding_tables_are_kept_at_log_spaced_steps(run_folder):
    files = sorted((run_folder / "embeddings").glob("*.npz"))
    assert [int(file.stem) for file in files] == snapshots.log_spaced(60, 8)
    first, last = np.load(files[0]), np.load(files[-1])
    run = jaxgpt.load(run_folder)
    np.testing.assert_array_equal(last["token"], run.params["token_embedding"]["embedding"])
    np.testing.assert_array_equal(last["position"], run.params["position_embedding"]["embedding"])
    assert np.abs(first["token"] - last["token"]).max() > 0.01


def test_snapshot_steps_are_log_spaced():
    assert snapshots.log_spaced(1000, 4) == [0, 1, 10, 100, 1000]
    assert snapshots.log_spaced(3, 8) == [0, 1, 2, 3]
    assert snapshots.log_spaced(1000, 0) == []
    assert snapshots.log_spaced(7, 1) == [0, 1, 7]


def test_samples_and_tensorboard_events_are_written(run_folder):
    samples = sorted((run_folder / "samples").glob("*.txt"))
    assert [int(file.stem) for file in samples] == [0, 8, 16, 24, 32, 40, 48, 56, 60]
    (events,) = (run_folder / "tensorboard").glob("events.*")
    assert b"train/loss" in events.read_bytes() and b"valid/loss" in events.read_bytes()


def test_plain_lines_where_there_is_no_terminal(text, tmp_path, capsys):
    train(small_config(text), tmp_path / "run")
    out, err = capsys.readouterr()
    assert err == ""
    for words in (
        "parameters: 2 layers, 2 heads",
        "to beat: uniform",
        "tokens/s",
        "validation loss",
        "done:",
    ):
        assert words in out


def test_a_model_that_memory_cannot_hold_is_refused(text, tmp_path):
    with pytest.raises(UserError, match=r"parameters needs .* GiB"):
        train(small_config(text, model__d_model=1_000_000), tmp_path / "run")


def test_fewer_checkpoints_never_lose_the_newest(text, tmp_path):
    train(small_config(text, train__keep_checkpoints=1, train__eval_every=0), tmp_path)
    assert jaxgpt.load(tmp_path).step == 24


def test_checksums_see_a_changed_bit_a_swap_and_not_the_layout():
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(5, 7)).astype(np.float32), "b": np.int32(3)}
    before = np.asarray(checksums.checksums(tree))
    assert before.shape == (2,) and before.dtype == np.uint32
    np.testing.assert_array_equal(before, np.asarray(checksums.checksums(dict(tree))))
    flipped = tree["a"].copy()
    flipped.view(np.uint32)[2, 3] ^= 1
    swapped = tree["a"].copy()
    swapped[0, 0], swapped[4, 6] = tree["a"][4, 6], tree["a"][0, 0]
    rows = tree["a"][::-1].copy()
    for other in (flipped, swapped, rows, tree["a"].reshape(7, 5)):
        assert checksums.checksums({**tree, "a": other})[0] != before[0]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.py")), ids=lambda file: file.stem)
def test_every_config_takes_a_shrunken_step(file, text, tmp_path):
    small = {
        "model.context_length": "8", "model.d_model": "16", "model.num_layers": "1", "model.num_heads": "2",
        "data.path": str(text), "data.corpus": "", "data.valid_fraction": "0.1", "data.batch_size": "4",
        "train.num_steps": "2", "train.steps_per_dispatch": "2", "train.grad_accumulation_steps": "2", "train.eval_batch_size": "2",
        "train.eval_tokens": "32", "train.sample_tokens": "0", "train.loss_chunk": "4", "train.eval_every": "0",
        "train.checkpoint_every": "0",
    }  # fmt: skip
    if file.stem == "bpe":
        small["data.vocab_size"] = "270"
    if file.stem == "mixture":
        small |= {"data.path": "", "data.mixture": f"a={text}:1, b={text}:0.5"}
    if file.stem == "smollm2":  # it starts from an import of the same shape
        small |= {"model.num_kv_heads": "1", "model.d_ff": "24", "data.tokenizer": "char"}
        plain = {"init_from": "", "model.lora_rank": "0", "data.tokenizer_path": ""}
        train(cli.read_config(str(file), small | plain), tmp_path / "base")
        small |= {
            "init_from": str(tmp_path / "base"),
            "data.tokenizer_path": str(tmp_path / "base/tokenizer.json"),
        }
    if file.stem in ("finetune", "chat"):  # it starts from another config's run
        train(cli.read_config(str(CONFIGS / "char.py"), small), tmp_path / "char")
        small |= {
            "init_from": str(tmp_path / "char"),
            "data.tokenizer_path": str(tmp_path / "char/tokenizer.json"),
        }
    if file.stem == "chat":
        turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "the king"}]
        (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 50)
        small |= {"data.path": str(tmp_path / "chat.jsonl"), "data.add_tokens": "true"}
    result = train(cli.read_config(str(file), small), tmp_path / "run")
    assert int(result.state.step) == 2 and math.isfinite(result.valid_loss)


def test_a_dry_run_says_what_the_run_would_be_and_writes_no_run(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = small_config(text, train__num_steps=60)
    (tmp_path / "tiny.py").write_text(
        "from pathlib import Path\n"
        "from jaxgpt.config import to_config_dict\n"
        "from tests.small_runs import small_config\n"
        f"def get_config(): return to_config_dict(small_config(Path({str(text)!r}), train__num_steps=60))\n"
    )
    main(["--config", "tiny.py", "--dry_run"])
    said = capsys.readouterr().out
    params = init_params(GPT(Trainer([(cfg, tmp_path / "run")]).cfg.model), jax.random.key(0))
    assert f"{count_params(params):,}" in said
    assert "token_embedding/embedding" in said and "64 per step x 60 steps" in said
    assert not (tmp_path / "runs").exists()


def test_a_context_of_one_token_is_trained_and_not_reported(text, tmp_path, capsys):
    from jaxgpt.inspect.write import report

    train(small_config(text, model__context_length=1, train__num_steps=2), tmp_path / "run")
    prompt = capsys.readouterr().out.split("--prompt ")[1].strip()
    assert len(prompt) == 1  # the printed command fits the context
    with pytest.raises(UserError, match=r"model\.context_length=1: .* of 2 or more"):
        report(tmp_path / "run")
