"""What parameters there are: their paths, shapes, number, and how they start."""

import dataclasses
import math
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import config
from jaxgpt.config.presets import PRESETS
from jaxgpt.model import attention, gpt, layers, parameters
from jaxgpt.model.gpt import GPT
from jaxgpt.model.initial import initial_std
from jaxgpt.model.paths import named_leaves
from tests.models import TINY, TOKENS, VARIANTS


def documented_parameters(cfg: config.ModelConfig) -> dict[str, tuple[int, ...]]:
    """The paths and shapes that the legend at the top of model.py promises for a config with everything."""
    sizes = {"V": cfg.table_rows, "D": cfg.d_model, "H": cfg.num_heads, "K": cfg.head_width, "F": cfg.d_ff}
    sizes |= {"G": cfg.kv_heads, "2": 2, "E": cfg.table_width}
    sizes["context_length"] = cfg.context_length
    shape_of = lambda letters: tuple(sizes[letter] for letter in letters.split(", "))  # noqa: E731
    found = {}
    lines = gpt.__doc__.split("Parameter paths")[1].splitlines()
    for line in filter(None, (re.match(r" {4}(\S+) +\[(.*?)\](?:, bias \[(.*?)\])?", x) for x in lines)):
        path, shape, bias = line.groups()
        start, names, end = re.fullmatch(r"(.*?)(?:\{(.*)\}(.*))?", path).groups()
        for name in names.split(",") if names else [""]:
            for i in range(cfg.num_layers):  # a path without <i> is the same each time
                full = f"{start}{name}{end or ''}".replace("<i>", str(i))
                found[full] = shape_of(shape)
                if bias:
                    found[full.removesuffix("kernel") + "bias"] = shape_of(bias)
    return found


def shapes(cfg: config.ModelConfig) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in named_leaves(parameters.param_shapes(cfg))}


def test_parameter_paths_and_shapes_are_those_documented():
    full = dataclasses.replace(
        TINY, tie_embeddings=False, activation="geglu", num_kv_heads=1, value_residual=True,
        embedding_residual=True, embedding_dim=6, qk_norm=True, qk_norm_scale=True, head_dim=6,
    )  # fmt: skip
    documented = documented_parameters(full)
    del documented["block_0/attention/value_mix"]
    assert shapes(full) == documented
    no_bias = {path: shape for path, shape in documented.items() if not path.endswith("/bias")}
    assert shapes(dataclasses.replace(full, use_bias=False)) == no_bias
    no_norm_bias = {path: shape for path, shape in documented.items() if not path.endswith("norm/bias")}
    own_bias = {path: shape for path, shape in documented.items() if not re.search("(mlp.*|norm)/bias", path)}
    assert shapes(dataclasses.replace(full, use_bias=False, attention_bias=True)) == own_bias
    assert shapes(dataclasses.replace(full, norm="rmsnorm")) == no_norm_bias
    no_norm = {
        path: shape
        for path, shape in documented.items()
        if not re.search("(attention|mlp|final)_norm/", path)
    }
    assert shapes(dataclasses.replace(full, norm="rmsnorm_plain")) == no_norm
    padded = dataclasses.replace(full, vocab_multiple=8)
    assert shapes(padded) == {
        path: (16, 6) if path.startswith("token") else (8, 16) if path.startswith("head") else shape
        for path, shape in documented.items()
    }
    tied = {path: shape for path, shape in documented.items() if path != "head/kernel"}
    assert shapes(dataclasses.replace(full, tie_embeddings=True)) == tied
    del tied["position_embedding/embedding"]
    for position in ("sinusoidal", "rotary", "none"):
        assert shapes(dataclasses.replace(full, tie_embeddings=True, position=position)) == tied
    plain = {path for path in tied if not re.search("gate|_mix|projection|(query|key)_norm", path)}
    assert set(shapes(TINY)) == plain | {"position_embedding/embedding"}


def test_all_parameters_are_float32():
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters.param_shapes(TINY))} == {jnp.dtype("float32")}


def test_the_mlp_is_four_times_as_wide_by_default():
    assert shapes(dataclasses.replace(TINY, d_ff=None))["block_0/mlp/up/kernel"] == (8, 32)
    assert shapes(TINY)["block_0/mlp/up/kernel"] == (8, 12)


def test_fresh_parameters_have_gpt2s_statistics():
    """Normal of std 0.02; residual projections 0.02 / sqrt(2 L); biases 0, scales 1; all drawn by the key."""
    # All matrices of one size, so that one compilation draws them all.
    cfg = dataclasses.replace(
        TINY, vocab_size=64, context_length=64, d_model=64, num_heads=8, d_ff=64, tie_embeddings=False
    )
    one, again, other = (
        dict(named_leaves(parameters.init_params(GPT(cfg), jax.random.key(seed)))) for seed in (0, 0, 1)
    )
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, again[path])
        if path.endswith("/bias"):
            assert (leaf == 0.0).all(), path
        elif path.endswith("/scale"):
            assert (leaf == 1.0).all(), path
        else:
            std = 0.02 / math.sqrt(2 * 2) if path.endswith(("out/kernel", "down/kernel")) else 0.02
            # Five standard errors of a mean and of a standard deviation.
            assert abs(leaf.mean()) < 5 * std / math.sqrt(leaf.size), path
            assert abs(leaf.std() / std - 1) < 5 / math.sqrt(2 * leaf.size), path
            assert (leaf != other[path]).any()
            assert not any((leaf == x).all() for p, x in one.items() if p != path and x.shape == leaf.shape)


def test_fan_in_parameters_keep_sizes_and_zero_init_makes_every_layer_the_identity():
    cfg = dataclasses.replace(
        TINY, d_model=64, num_heads=4, d_ff=128, init="fan_in", zero_init=True, tie_embeddings=False,
        norm="rmsnorm_plain", use_bias=False, activation="swiglu",
    )  # fmt: skip
    params = parameters.init_params(GPT(cfg), jax.random.key(0))
    for path, leaf in named_leaves(params):
        if path.startswith("head") or path.endswith(("out/kernel", "down/kernel")):
            assert (leaf == 0.0).all(), path
        else:
            std = {"token_embedding/embedding": 1.0, "position_embedding/embedding": 0.02}.get(
                path, 1 / math.sqrt(3 * 64)
            )
            assert abs(leaf.std() / std - 1) < 5 / math.sqrt(2 * leaf.size), path
    start = GPT(cfg).apply({"params": params}, TOKENS, np.arange(8)[None], method="embed")
    x_BTD, _ = GPT(cfg).apply({"params": params}, TOKENS, method="features")
    np.testing.assert_allclose(x_BTD, layers.normalize(start, False, 1e-5), rtol=1e-6)
    assert (GPT(cfg).apply({"params": params}, TOKENS) == 0.0).all()  # the loss is log V exactly


@pytest.mark.parametrize("name", VARIANTS)
def test_flax_init_gives_the_parameters_that_training_starts_with(name):
    model, key = GPT(VARIANTS[name]), jax.random.key(5)
    variables = model.init(key, TOKENS)
    assert set(variables) == {"params"}
    expected = named_leaves(parameters.init_params(model, key))
    for (path, leaf), (other, drawn) in zip(named_leaves(variables["params"]), expected, strict=True):
        assert path == other
        np.testing.assert_array_equal(leaf, drawn, err_msg=path)
    again = model.init({"params": key, "dropout": jax.random.key(1)}, TOKENS, train=True)
    np.testing.assert_array_equal(
        again["params"]["token_embedding"]["embedding"], variables["params"]["token_embedding"]["embedding"]
    )


def test_a_part_of_a_model_starts_with_the_statistics_of_the_complete_one():
    cfg = dataclasses.replace(TINY, d_model=64, num_heads=4, d_ff=256)
    x_BTD, positions_BT = np.ones((1, 3, 64), np.float32), np.arange(3)[None]
    for part, args in (
        (gpt.Block(cfg), (x_BTD, positions_BT)),
        (attention.Attention(cfg), (x_BTD, positions_BT)),
        (layers.MLP(cfg), (x_BTD,)),
        (layers.NORMS["layernorm"](cfg), (x_BTD,)),
    ):
        for path, leaf in named_leaves(part.init(jax.random.key(0), *args)["params"]):
            std = initial_std(cfg, path, leaf.shape)
            if std is None:
                assert (leaf == float(path.endswith("scale"))).all(), path
            else:
                assert abs(leaf.std() / std - 1) < 5 / math.sqrt(2 * leaf.size), path


def count(cfg: config.ModelConfig) -> int:
    """How many parameters, from one layer and two: all layers are alike."""
    one, two = (
        parameters.count_params(parameters.param_shapes(dataclasses.replace(cfg, num_layers=n)))
        for n in (1, 2)
    )
    return one + (cfg.num_layers - 1) * (two - one)


def test_all_layers_count_alike():
    assert parameters.count_params(parameters.param_shapes(PRESETS["gpt2"])) == count(PRESETS["gpt2"])


@pytest.mark.parametrize(
    "name, published",
    [  # the counts of the released checkpoints
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_gpt2_presets_have_the_released_models_counts(name, published):
    assert count(PRESETS[name]) == published


@pytest.mark.parametrize(
    "name, published",
    [
        # Brown et al. 2020, table 2.1. "Medium" is 350M there, rounded to tens; 356M is what its shape has.
        ("gpt3-small", 125e6),
        ("gpt3-medium", 356e6),
        ("gpt3-large", 760e6),
        ("gpt3-xl", 1.3e9),
        ("gpt3-2.7b", 2.7e9),
        ("gpt3-6.7b", 6.7e9),
        ("gpt3-13b", 13.0e9),
        ("gpt3-175b", 175.0e9),
        # Devlin et al. 2019, section 3; a decoder has neither their pooler nor their segments.
        ("bert-base", 110e6),
        ("bert-large", 340e6),
    ],
)
def test_other_presets_have_the_published_counts(name, published):
    assert count(PRESETS[name]) == pytest.approx(published, rel=0.02)


def test_the_2017_presets_count_in_closed_form():
    v, d, f, layers = 37_000, 512, 2048, 6
    attention, mlp, norms = 4 * (d * d + d), (d * f + f) + (f * d + d), 2 * 2 * d
    expected = v * d + layers * (attention + mlp + norms) + 2 * d
    assert count(PRESETS["transformer-2017"]) == expected


def test_every_preset_has_a_published_count_above():
    checked = {"transformer-2017"}
    for test in (
        test_gpt2_presets_have_the_released_models_counts,
        test_other_presets_have_the_published_counts,
    ):
        checked |= {name for name, _ in test.pytestmark[0].args[1]}
    assert checked == set(PRESETS)


def test_tables_offer_what_the_config_offers():
    choices = typing.get_type_hints(config.ModelConfig)
    assert set(layers.ACTIVATIONS) == set(typing.get_args(choices["activation"]))
    assert set(layers.NORMS) == set(typing.get_args(choices["norm"]))
    assert set(layers.POSITIONS) == set(typing.get_args(choices["position"]))


def test_without_residuals_the_identity_start_passes_the_stream_on_through_all_blocks():
    cfg = dataclasses.replace(
        TINY, vocab_size=71, d_model=32, num_layers=6, d_ff=128, activation="relu", residual=False, init="identity", position="none", context_length=32
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 71, (4, 32))

    def kept(cfg: config.ModelConfig) -> float:
        """The mean cosine of the stream after the last block and before the first, each without its mean over the numbers."""
        params = parameters.init_params(GPT(cfg), jax.random.key(0))
        start, end = (
            np.asarray(
                GPT(dataclasses.replace(cfg, num_layers=n)).apply(
                    {"params": params}, tokens, method="features"
                )[0]
            )
            for n in (0, 6)
        )
        return float((start * end).sum(-1).mean() / 32)  # normed: the norm of each is sqrt(D)

    assert kept(cfg) > 0.85
    assert abs(kept(dataclasses.replace(cfg, init="fan_in"))) < 0.5
    params = parameters.init_params(GPT(cfg), jax.random.key(0))
    leaves = jax.tree.leaves(params["block_0"])
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(
        leaves
    )  # a training step donates each once
