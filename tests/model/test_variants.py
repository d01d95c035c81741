"""Models with a part taken out: no causal mask, no residual sums, no MLP. (Their logits: tests/model/test_gpt.py.)"""

import dataclasses

import jax
import numpy as np
import pytest

import jaxgpt
from jaxgpt import config, evaluate
from jaxgpt.config import UserError
from jaxgpt.inspect.capture import capture
from jaxgpt.model import attention, generation, parameters
from jaxgpt.model.gpt import GPT
from jaxgpt.model.paths import named_leaves
from jaxgpt.runs.families import FAMILIES
from jaxgpt.training import costs, loop
from tests import small_runs
from tests.models import TINY, TOKENS, random_params

UNMASKED, PLAIN_SUM, NO_MLP, POST_NORM = (
    dataclasses.replace(TINY, **changes)
    for changes in ({"causal": False}, {"residual": False}, {"d_ff": 0}, {"post_norm": True})
)


def test_without_the_mask_every_position_sees_every_token():
    cfg = dataclasses.replace(UNMASKED, num_layers=1)
    tokens_T = np.array([3, 0, 7, 1, 9, 4, 2, 8])  # all different: a row of the table is one position's input
    params = random_params(cfg)
    direction_D = np.random.default_rng(1).normal(size=cfg.d_model).astype(np.float32)

    def output(table_VD):
        p = {**params, "token_embedding": {"embedding": table_VD}}
        return GPT(cfg).apply({"params": p}, tokens_T[None], method="features")[0][0] @ direction_D

    jacobian_TVD = np.asarray(jax.jit(jax.jacrev(output))(params["token_embedding"]["embedding"]))
    assert (np.abs(jacobian_TVD[:, tokens_T]).max(axis=-1) > 0).all()


@pytest.mark.parametrize("causal", [True, False])
def test_fused_attention_has_the_mask_of_the_explicit_one(causal):
    """By the same call on XLA: cuDNN's needs a GPU."""
    cfg = dataclasses.replace(TINY, causal=causal)
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 8, 2, 4)).astype(np.float32) for _ in range(3))
    mask_TS = np.tri(8, dtype=bool) if causal else np.ones((8, 8), bool)
    weights = attention.attention_weights(attention.attention_scores(q, k), np.stack([mask_TS] * 2))
    np.testing.assert_allclose(
        attention.fused_attention(cfg, q, k, v, "xla"), attention.weighted_values(weights, v), rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_the_last_position_is_the_same_with_and_without_the_mask_in_one_layer():
    """What a model without a mask says of a prefix is well defined: the last token sees all before it either way."""
    cfg = dataclasses.replace(UNMASKED, num_layers=1)
    params = random_params(cfg)
    masked, unmasked = (
        GPT(dataclasses.replace(cfg, causal=causal)).apply({"params": params}, TOKENS)
        for causal in (True, False)
    )
    np.testing.assert_allclose(unmasked[:, -1], masked[:, -1], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(unmasked - masked)[:, :-1]).max() > 0.01


def test_a_model_without_a_mask_takes_no_cache():
    params = random_params(UNMASKED)
    with pytest.raises(UserError, match=r"no causal mask .model.causal=false.*so it has no cache"):
        list(generation.generate_ids(GPT(UNMASKED), params, [[1, 2]], 3))


def test_without_residuals_the_stream_forgets():
    """Where attention and MLP give nothing, the stream is as it was; without the sums nothing is left."""
    for cfg in (TINY, PLAIN_SUM):
        params = random_params(cfg)
        silent = {
            name: jax.tree.map(np.zeros_like, block) if name.startswith("block_") else block
            for name, block in params.items()
        }
        features = GPT(cfg).apply({"params": silent}, TOKENS, method="features")[0]
        # What comes out is the same at all positions exactly where the tokens are forgotten.
        assert (np.abs(np.ptp(features, axis=1)).max() > 0.1) == cfg.residual


def test_d_ff_0_leaves_no_parameters_of_an_mlp():
    def paths(cfg):
        return {path for path, _ in named_leaves(parameters.param_shapes(cfg))}

    gone = paths(TINY) - paths(NO_MLP)
    assert paths(NO_MLP) < paths(TINY)
    assert {path.split("/")[1] for path in gone} == {"mlp", "mlp_norm"}
    gated = dataclasses.replace(NO_MLP, activation="swiglu")
    assert paths(gated) == paths(NO_MLP)
    assert GPT(gated).apply({"params": random_params(gated)}, TOKENS).shape == (2, 8, 11)


def test_costs_without_an_mlp_are_those_of_the_rest():
    with_mlp, without = (costs.forward_flops(cfg) for cfg in (TINY, NO_MLP))
    assert with_mlp.mlp == 2 * 2 * 2 * 8 * 12 and without.mlp == 0
    assert without.total == with_mlp.total - with_mlp.mlp
    # As the formula counts them, so the trace of a training step has them.
    cost = costs.step_cost(config.Config(model=NO_MLP, data=config.DataConfig(batch_size=2)), "cpu")
    assert cost.recomputed_flops == 0 and cost.model_flops == 3 * without.total * 2 * 8
    assert cost.memory.params == 4 * parameters.count_params(parameters.param_shapes(NO_MLP))


@pytest.mark.parametrize("cfg", [UNMASKED, PLAIN_SUM, NO_MLP], ids=["causal", "residual", "d_ff"])
def test_gpt2_has_no_such_model(cfg):
    changed = next(f for f in ("causal", "residual", "d_ff") if getattr(cfg, f) != getattr(TINY, f))
    with pytest.raises(UserError, match=f"can't be exported as GPT-2, which has .*model.{changed}="):
        FAMILIES["gpt2"].check(cfg)


@pytest.mark.parametrize("cfg", [PLAIN_SUM, NO_MLP, POST_NORM], ids=["residual", "d_ff", "post_norm"])
def test_a_ledger_needs_sums(cfg):
    with pytest.raises(UserError, match="a report needs a residual stream that layers only add to, and MLPs"):
        capture(cfg, random_params(cfg), TOKENS[0])


def test_the_capture_of_a_model_without_a_mask_shows_that_there_is_none():
    shown = capture(UNMASKED, random_params(UNMASKED), TOKENS[0])
    assert shown.layers[0].mask_TS.all()
    np.testing.assert_allclose(shown.layers[0].weights_HTS.sum(-1), 1.0, rtol=1e-5)


def test_settings_that_need_a_causal_mask_are_refused_before_the_run(tmp_path):
    with pytest.raises(UserError, match=r"set train\.sample_tokens=0"):
        small_runs.small_config(tmp_path, model__causal=False)
    with pytest.raises(UserError, match="attention_window=4 counts the tokens before"):
        small_runs.small_config(
            tmp_path, model__causal=False, train__sample_tokens=0, model__attention_window=4
        )


@pytest.mark.parametrize("changes", [{"causal": False}, {"residual": False, "d_ff": 0}], ids=str)
def test_such_models_train_are_kept_and_read_back(changes, tmp_path, monkeypatch, capsys):
    text = small_runs.write_text(tmp_path / "text.txt")
    fields = {f"model__{name}": value for name, value in changes.items()}
    once = {f"train__{name}": 0 for name in ("sample_tokens", "eval_every", "checkpoint_every")}
    cfg = small_runs.small_config(text, train__num_steps=40, train__embedding_snapshots=0, **once, **fields)
    result = loop.train(cfg, tmp_path / "run")
    run = jaxgpt.load(tmp_path / "run")
    assert dataclasses.asdict(run.config.model).items() >= changes.items()
    assert run.step == 40
    first = small_runs.metrics(tmp_path / "run")[0]["loss"]
    assert result.valid_loss < 0.9 * first
    monkeypatch.setattr("jaxgpt.common.cli.set_up_process", lambda **_: None)
    evaluate.main(["--workdir", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert ("no causal mask: the model sees each token" in printed) == (changes == {"causal": False})
