"""Going on from another model: what is copied, what is new, what moves, and what stays bit for bit."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import finetuning
from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from jaxgpt.lora import main as merge_main
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.model.lora import merge_lora
from jaxgpt.model.parameters import init_params, param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs.load import load
from jaxgpt.training import costs, optim, starting, steps, trainable
from jaxgpt.training.loop import Trainer, train
from tests.small_runs import assert_same_run, small_config, write_text

MODEL = ModelConfig(vocab_size=12, context_length=8, d_model=8, num_layers=2, num_heads=2, activation="relu")
TABLE = "token_embedding/embedding"
SHORT = {
    "train__num_steps": 4, "train__eval_every": 4, "train__checkpoint_every": 2, "train__embedding_snapshots": 0,
    "train__sample_tokens": 0, "train__eval_tokens": 64, "model__d_model": 8, "model__num_layers": 1,
}  # fmt: skip


def leaves(params: dict) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in named_leaves(params)}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


def after_steps(optim_cfg: OptimConfig, model_cfg: ModelConfig = MODEL, count: int = 3):
    """(first params, state after a few steps, step's metrics) on random tokens."""
    cfg = Config(
        model=model_cfg, data=DataConfig(batch_size=4), optim=optim_cfg, train=TrainConfig(num_steps=10)
    )
    parts = steps.build(cfg)
    state = steps.init_state(parts.model, parts.optimizer, jax.random.key(0))
    first, step = leaves(state.params), jax.jit(parts.train_step)
    tokens = np.random.default_rng(0).integers(12, size=(count, 4, 9), dtype=np.int32)
    for batch in tokens:
        state, metrics = step(state, batch, jax.random.key(1))
    return first, state, metrics


# --- what moves -----------------------------------------------------------------------------------------

SCHEDULE_FREE = {"name": "schedule_free", "schedule": "constant", "decay_embeddings": True}


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": "muon", "ema_decay": 0.9}, SCHEDULE_FREE],
    ids=["adamw", "muon and average", "schedule_free"],
)
def test_what_is_frozen_stays_bit_for_bit_and_has_no_state(fields):
    cfg = OptimConfig(trainable=("-token_embedding/*", "-block_0/*", "*"), warmup_steps=0, **fields)
    first, state, metrics = after_steps(cfg)
    frozen = {path for path in first if path == TABLE or path.startswith("block_0/")}
    used = leaves(optim.evaluation_params(cfg, state.params, state.opt_state))
    for now in (leaves(state.params), used):
        assert {path for path in first if same(first[path], now[path])} == frozen
    kept = [path for path, _ in named_leaves(state.opt_state)]
    assert kept and not [path for path in kept if "block_0" in path or "token_embedding" in path]
    assert metrics["grad_norms"].shape == (len(first) - len(frozen),)


@pytest.mark.parametrize("fields", [{}, SCHEDULE_FREE], ids=["adamw", "schedule_free"])
def test_rows_of_known_tokens_stay_while_new_ones_move(fields):
    cfg = OptimConfig(
        train_rows_from=9, warmup_steps=0, weight_decay=1.0, **{"decay_embeddings": True, **fields}
    )
    model = dataclasses.replace(MODEL, tie_embeddings=False)
    first, state, _ = after_steps(cfg, model)
    for params in (state.params, optim.evaluation_params(cfg, state.params, state.opt_state)):
        now = leaves(params)
        for path, axis in ((TABLE, 0), ("head/kernel", 1)):
            old, new = first[path].swapaxes(0, axis), now[path].swapaxes(0, axis)
            assert same(old[:9].copy(), new[:9].copy())
            assert (old[9:] != new[9:]).any(axis=1).all()


def test_no_rule_is_no_change_of_the_program():
    """The step of the defaults and that of a rule for all parameters are one program."""
    cfg = Config(model=MODEL, data=DataConfig(batch_size=4))
    ruled = dataclasses.replace(cfg, optim=OptimConfig(trainable=("*",)))
    texts = [
        jax.jit(step).lower(*arguments).as_text()
        for step, arguments in map(costs.abstract_step, (cfg, ruled))
    ]
    assert texts[0] == texts[1]


def test_the_first_rule_that_matches_counts_and_rates_multiply_what_moves():
    params = param_shapes(MODEL)
    cfg = OptimConfig(
        trainable=("block_1/mlp/*", "-block_*", "*"), rates=("block_1/mlp/up/*=0.5", "block_1/*=0.25")
    )
    moving = trainable.moves(cfg, params)
    assert moving("block_1/mlp/up/kernel") and moving(TABLE)
    assert not moving("block_0/mlp/up/kernel") and not moving("block_1/attention/out/bias")
    rates = dict(named_leaves(trainable.rates(cfg, params)))
    assert (rates["block_1/mlp/up/bias"], rates["block_1/mlp/down/bias"], rates[TABLE]) == (0.5, 0.25, 1.0)
    grads = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)
    for name in ("adamw", "schedule_free"):
        one, slow = (
            optim.make_optimizer(OptimConfig(name=name, schedule="constant", grad_clip_norm=0.0, rates=rates), lambda _: 0.1)
            for rates in ((), ("block_1/*=0.25",))
        )  # fmt: skip
        fast, slowed = (leaves(o.update(grads, o.init(grads), grads)[0]) for o in (one, slow))
        np.testing.assert_allclose(slowed["block_1/mlp/up/bias"], fast["block_1/mlp/up/bias"] / 4, rtol=1e-4)
        assert same(slowed[TABLE], fast[TABLE])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"trainable": ("blok_*", "*")}, ["'blok_*' matches no parameter", "close are block_"]),
        ({"rates": ("hed/*=2",)}, ["optim.rates: 'hed/*' matches no parameter"]),
        ({"trainable": ("-token_embedding/*",)}, ["trains no parameter", "'*' at the end"]),
        ({"train_rows_from": 12}, ["leaves no row of 12 tokens"]),
        ({"train_rows_from": 3, "trainable": ("block_*",)}, ["freezes token_embedding/embedding"]),
    ],
)
def test_rules_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(UserError) as error:
        trainable.check(OptimConfig(**fields), param_shapes(MODEL), 12)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"optim.rates": "block_*"}, "PATTERN=FACTOR"),
        ({"optim.rates": "block_*=0"}, "PATTERN=FACTOR"),
        ({"optim.train_rows_from": "-1"}, "set data.add_tokens=true"),
        ({"data.add_tokens": "true"}, "data.tokenizer_path"),
        ({"init_from": "a", "init_vectors": "b"}, "init_from and init_vectors"),
        ({"init_frm": "a"}, "did you mean init_from?"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(text, words):
    with pytest.raises(UserError, match=words.replace("?", r"\?").replace("*", r"\*")):
        config.from_config_dict(config.apply_overrides(config.default_config(), text))


def test_texts_are_read_with_commas_and_a_field_without_a_group_by_its_name():
    given = {"optim.trainable": "-token_embedding/*, *", "init_from": "runs/char"}
    cfg = config.from_config_dict(config.apply_overrides(config.default_config(), given))
    assert (cfg.optim.trainable, cfg.init_from) == (("-token_embedding/*", "*"), "runs/char")
    assert config.from_config_dict(json.loads(json.dumps(config.to_json(cfg)))) == cfg
    assert "init_from: '' -> 'runs/char'" in config.differences(Config(), cfg, every=True)


def test_the_dry_run_counts_what_moves():
    frozen = Config(model=MODEL, data=DataConfig(batch_size=4), optim=OptimConfig(trainable=("block_1/*",)))
    whole = dataclasses.replace(frozen, optim=OptimConfig())
    cost, all_cost = costs.step_cost(frozen), costs.step_cost(whole)
    shapes = param_shapes(MODEL)
    part = sum(leaf.size for leaf in jax.tree.leaves(shapes["block_1"]))
    assert cost.memory.opt_state == 8 * part + 8  # two moments, two counts
    assert cost.memory.params == all_cost.memory.params
    # No gradient of the first layer's matrices, nor of what comes before them; all of the second's.
    assert cost.recomputed_flops == 0
    assert 0.4 * all_cost.model_flops < cost.model_flops < 0.75 * all_cost.model_flops


# --- a narrow table -------------------------------------------------------------------------------------

NARROW = dataclasses.replace(MODEL, embedding_dim=4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_narrow_table_is_the_product_of_table_and_projection(tied):
    narrow = dataclasses.replace(NARROW, tie_embeddings=tied)
    params = init_params(GPT(narrow), jax.random.key(0))
    explicit = {name: value for name, value in params.items() if name != "embedding_projection"}
    table_VD = params["token_embedding"]["embedding"] @ params["embedding_projection"]["kernel"]
    explicit["token_embedding"] = {"embedding": table_VD}
    whole = dataclasses.replace(narrow, embedding_dim=None)
    tokens = np.arange(16).reshape(2, 8) % 12
    expected = jax.jit(GPT(whole).apply)({"params": explicit}, tokens)
    np.testing.assert_allclose(jax.jit(GPT(narrow).apply)({"params": params}, tokens), expected, atol=1e-6)
    windows = jnp.asarray(np.concatenate([tokens, tokens[:, :1]], axis=1))
    loss = jax.jit(steps.mean_loss, static_argnames=("model", "loss_chunk"))
    losses = [loss(GPT(c), p, windows) for c, p in ((narrow, params), (whole, explicit))]
    losses.append(loss(GPT(narrow), params, windows, loss_chunk=4))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    apply = jax.jit(GPT(narrow).apply)
    logits, cache = apply({"params": params}, tokens[:, :5], cache=KVCache.empty(narrow, 2, 8))
    rest, _ = apply({"params": params}, tokens[:, 5:], cache=cache)
    np.testing.assert_allclose(np.concatenate([logits, rest], axis=1), expected, atol=1e-5)


def test_a_narrow_table_starts_the_stream_as_large_as_a_whole_one():
    wide = ModelConfig(
        vocab_size=200, context_length=16, d_model=64, num_layers=1, num_heads=2, position="none"
    )
    sizes = []
    for cfg in (wide, dataclasses.replace(wide, embedding_dim=16)):
        model = GPT(cfg)
        variables = {"params": init_params(model, jax.random.key(0))}
        tokens = np.arange(160).reshape(10, 16)
        stream = model.apply(variables, tokens, np.arange(16)[None], method=GPT.embed)
        sizes.append(np.std(stream))
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_formula_counts_the_products_of_a_narrow_table_and_of_low_rank_changes(tied):
    model = dataclasses.replace(
        NARROW, tie_embeddings=tied, lora_rank=2, lora_targets=("query", "out", "up", "down"), num_layers=1
    )
    cfg = Config(model=model, data=DataConfig(batch_size=4), optim=OptimConfig(trainable=("*",)))
    assert costs.step_cost(cfg).recomputed_flops == 0  # traced - formula


# --- low-rank changes -----------------------------------------------------------------------------------

LORA = dataclasses.replace(
    MODEL, lora_rank=2, lora_targets=("query", "key", "value", "out", "up", "down"), lora_alpha=8.0
)


def test_low_rank_changes_start_as_none_and_merged_are_the_same_function():
    params = init_params(GPT(LORA), jax.random.key(0))
    base = {"params": merge_lora(LORA, params)[1]}
    tokens = np.arange(16).reshape(2, 8) % 12
    assert same(
        *(np.asarray(GPT(c).apply(v, tokens)) for c, v in ((LORA, {"params": params}), (MODEL, base)))
    )
    rng = np.random.default_rng(0)
    changed = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    cfg, merged = merge_lora(LORA, changed)
    assert cfg == MODEL
    logits = GPT(LORA).apply({"params": changed}, tokens)
    np.testing.assert_allclose(GPT(MODEL).apply({"params": merged}, tokens), logits, atol=2e-5)
    assert np.abs(logits - GPT(MODEL).apply(base, tokens)).max() > 0.01


def test_with_low_rank_matrices_only_they_are_trained_by_default():
    first, state, _ = after_steps(OptimConfig(warmup_steps=0), LORA, 2)
    now = leaves(state.params)
    moved = {path for path in first if not same(first[path], now[path])}
    assert moved == {path for path in first if "lora" in path}
    moving = trainable.moves(OptimConfig(trainable=("*_norm/*", "*/lora_?")), state.params)
    assert moving("final_norm/scale") and moving("block_0/mlp/up/lora_a") and not moving(TABLE)


# --- going on from a run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A text, a run of it, and another text with new characters."""
    folder = tmp_path_factory.mktemp("base")
    text = write_text(folder / "text.txt", 800)
    (folder / "other.txt").write_text(text.read_text().replace("king", "Zöbel").replace(".", "!"))
    train(small_config(text, **SHORT), folder / "run")
    return folder


def source(base, **overrides):
    path = base / "run/tokenizer.json"
    return small_config(
        base / "other.txt",
        **SHORT
        | {"init_from": base / "run", "data__tokenizer_path": path, "data__add_tokens": True}
        | overrides,
    )


def first_params(cfg: Config, tmp_path) -> tuple[Trainer, dict[str, np.ndarray]]:
    trainer = Trainer([(cfg, tmp_path)])
    trainer.runs[0].release()
    return trainer, leaves(trainer.init().params)


def test_what_agrees_is_copied_and_new_tokens_get_rows_like_the_others(base, tmp_path):
    old = leaves(load(base / "run").params)
    trainer, new = first_params(source(base, model__context_length=8), tmp_path)
    known = len(old[TABLE])
    assert trainer.dataset.tokenizer.vocab_size == known + 4 == len(new[TABLE])
    assert same(new[TABLE][:known].copy(), old[TABLE])
    assert np.isfinite(new[TABLE]).all() and len(np.unique(new[TABLE], axis=0)) == known + 4
    assert same(new["position_embedding/embedding"], old["position_embedding/embedding"][:8])
    rest = old.keys() - {TABLE, "position_embedding/embedding"}
    assert all(same(old[path], new[path]) for path in rest)


def test_rows_go_by_token_where_the_tokenizer_is_new(base, tmp_path):
    run = load(base / "run")
    old = leaves(run.params)[TABLE]
    cfg = source(base, data__add_tokens=False, data__tokenizer_path="")
    trainer, new = first_params(cfg, tmp_path)
    here, there = trainer.dataset.tokenizer, run.tokenizer
    kept = 0
    for i in range(here.vocab_size):
        if here.token(i) in there.characters:
            assert same(new[TABLE][i], old[there.characters.index(here.token(i))])
            kept += 1
    assert trainer.runs[0].start.record["token_rows_kept"] == kept < here.vocab_size
    assert (
        f"token rows: {kept} of {here.vocab_size} by token, {here.vocab_size - kept} new"
        in trainer.runs[0].start.text
    )
    _, again = first_params(cfg, tmp_path / "again")
    assert all(same(new[path], again[path]) for path in new)


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_read_its_source_again(base, tmp_path):
    cfg = source(
        base, model__lora_rank=2, optim__trainable="*/lora_?,token_embedding/*", optim__train_rows_from=-1
    )
    train(cfg, tmp_path / "whole")
    train(cfg, tmp_path / "parts", stop_at=3)
    moved = base / "moved"
    (base / "run/checkpoints").rename(moved)
    try:
        train(cfg, tmp_path / "parts")
    finally:
        moved.rename(base / "run/checkpoints")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    facts = json.loads((tmp_path / "parts/run.json").read_text())
    assert facts["started_from"]["step"] == 4 and facts["num_trainable"] < facts["num_params"]
    known = load(base / "run").tokenizer.vocab_size
    assert load(tmp_path / "parts").config.optim.train_rows_from == known
    merge_main(["--workdir", str(tmp_path / "whole"), "--to_workdir", str(tmp_path / "merged")])
    merged, unmerged = load(tmp_path / "merged"), load(tmp_path / "whole")
    tokens = np.arange(10)[None]
    one, other = (run.model.apply({"params": run.params}, tokens) for run in (merged, unmerged))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_source_that_has_changed_before_the_first_checkpoint_is_refused(base, tmp_path):
    trainer = Trainer([(source(base), tmp_path)])
    trainer.runs[0].release()
    (tmp_path / "run.json").write_text(
        json.dumps({"starts": [], "started_from": trainer.runs[0].start.record | {"step": 2}})
    )
    with pytest.raises(UserError, match="which has changed since"):
        trainer.init()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"model__d_model": 12},
            ["block_*/mlp/up/kernel [8, 32] in the source and [12, 48] here", f"{TABLE} "],
        ),
        ({"model__activation": "relu"}, ["model.activation is 'gelu' in the source and 'relu' here"]),
        (
            {"model__context_length": 20},
            ["model.context_length=20 is more than the source's 16 learned positions"],
        ),
        (
            {"model__tie_embeddings": False},
            ["the source has no head/kernel [8,", "model.tie_embeddings is True in the source"],
        ),
        ({"model__num_layers": 2}, ["the source has no block_*/mlp/up/kernel"]),
        ({"init_from": "nowhere"}, ["init_from='nowhere'", "no run folder"]),
        ({"data__add_tokens": False}, ["data.tokenizer_path=", "character 'Z'", "data.add_tokens=true"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(base, tmp_path, overrides, words):
    with pytest.raises(UserError) as error:
        Trainer([(source(base, **overrides), tmp_path / "run")])
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_source_with_other_low_rank_changes_is_merged_first(base, tmp_path):
    cfg = source(base, model__lora_rank=2, model__lora_targets="up")
    train(cfg, tmp_path / "low")
    tokenizer = tmp_path / "low/tokenizer.json"
    other = source(base, init_from=tmp_path / "low", data__tokenizer_path=tokenizer, data__add_tokens=False)
    run = load(tmp_path / "low")
    merged = leaves(merge_lora(run.config.model, run.params)[1])
    resolved = starting.resolve(other, run.tokenizer)
    start = starting.prepare(resolved, run.tokenizer)
    assert all(same(start.arrays[path], merged[path]) for path in merged)
    again = starting.resolve(
        dataclasses.replace(other, model=dataclasses.replace(other.model, lora_rank=2, lora_targets=("up",))),
        run.tokenizer,
    )
    kept = starting.prepare(again, run.tokenizer).arrays
    assert all(same(kept[path], x) for path, x in leaves(run.params).items())


# --- word vectors ---------------------------------------------------------------------------------------


def test_the_table_begins_as_word_vectors(base, tmp_path):
    rng = np.random.default_rng(0)
    words = ["the", "king", "queen", "ghost", "loves", "nobody"]
    rows = rng.normal(size=(len(words), 4)).round(4)
    file = tmp_path / "vectors.txt"
    file.write_text("".join(f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, rows, strict=True)))
    fields = SHORT | {"init_vectors": file, "data__tokenizer": "word"}
    cfg = small_config(base / "text.txt", **fields, model__embedding_dim=4)
    trainer, params = first_params(cfg, tmp_path / "run")
    ids = [trainer.dataset.tokenizer.encode(word)[0] for word in words[:5]]
    found = params[TABLE][ids]
    np.testing.assert_allclose(found / found.std(), rows[:5] / rows[:5].std(), rtol=1e-4)
    assert f"5 of {trainer.dataset.tokenizer.vocab_size} tokens have a vector" in trainer.runs[0].start.text
    narrow = small_config(base / "text.txt", **fields, model__embedding_dim=3, init_bridge="pca")
    trainer, params = first_params(narrow, tmp_path / "narrow")
    centred = rows[:5] - rows[:5].mean(axis=0)
    projected = centred @ np.linalg.svd(centred)[2][:3].T
    # The axes may point either way: what is kept is how far words are from each other.
    near, far = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (params[TABLE][ids], projected))
    np.testing.assert_allclose(near / near.max(), far / far.max(), atol=1e-4)
    assert "4 numbers each, by principal axes" in trainer.runs[0].start.text
    with pytest.raises(UserError, match=r"fewer than the table's 8.*embedding_dim=4"):
        Trainer([(small_config(base / "text.txt", **fields), tmp_path / "wide")])


# --- the repository's config and experiment -------------------------------------------------------------


@pytest.mark.parametrize("mode", ["all", "frozen", "new_embeddings", "lora"])
def test_every_mode_of_the_config_moves_what_it_says(mode):
    cfg = cli.read_config(f"configs/finetune.py:{mode}", {"model.vocab_size": "76"})
    shapes = param_shapes(cfg.model)
    trainable.check(cfg.optim, shapes, 76)
    moving, names = trainable.moves(cfg.optim, shapes), leaves_of_shapes(shapes)
    expected = {
        "all": names,
        "frozen": names - {TABLE},
        "new_embeddings": {TABLE},
        "lora": {path for path in names if "lora" in path},
    }
    assert {path for path in names if moving(path)} == expected[mode]


def leaves_of_shapes(shapes: dict) -> set[str]:
    return {path for path, _ in named_leaves(shapes)}


@pytest.mark.slow
def test_the_experiment_runs(capsys):
    finetuning.main(["--quick"])
    text, said = capsys.readouterr()
    assert all(f"\n{mode}" in text for mode in finetuning.MODES)
    assert "tokens have a vector" in text + said and "\nrandom" in text
