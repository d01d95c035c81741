"""The table of linear layers, against the parameters of models and the facts that it replaced."""

import dataclasses

import jax
import pytest

from jaxgpt.config import UserError
from jaxgpt.model import linear
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import param_shapes
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.sharding import P
from tests.models import TINY, VARIANTS

NARROW = dataclasses.replace(TINY, embedding_dim=6)
NO_MLP = dataclasses.replace(TINY, d_ff=0, activation="swiglu")


@pytest.mark.parametrize("cfg", [*VARIANTS.values(), NARROW, NO_MLP])
def test_a_model_has_exactly_the_kernels_of_its_rows(cfg):
    expected = {}
    for row in linear.present(cfg):
        owners = [f"block_{i}/{row.path}" for i in range(cfg.num_layers)] if row.module else [row.path]
        ins, outs = row.shapes(cfg)
        expected |= {f"{owner}/kernel": ins + outs for owner in owners}
    found = {path: leaf.shape for path, leaf in named_leaves(param_shapes(cfg)) if path.endswith("/kernel")}
    assert found == expected


def test_a_mesh_axis_splits_at_most_one_axis_of_an_array():
    specs = linear.Linear("square", "mlp", "DF", "FD").specs()
    assert specs == {
        "mlp/square/kernel": P("fsdp", "tensor", None, None),
        "mlp/square/bias": P(None, None),
        "mlp/square/lora_a": P("fsdp", "tensor", None),
        "mlp/square/lora_b": P(None, None, None),
    }


@pytest.mark.parametrize(
    ("changes", "absent"), [({}, "gate"), ({"d_ff": 0}, "up"), ({}, "head"), ({}, "querry")]
)
def test_lora_on_a_layer_that_is_absent_is_refused_before_anything_is_traced(changes, absent):
    cfg = dataclasses.replace(TINY, lora_rank=2, lora_targets=("query", absent), **changes)
    with pytest.raises(
        UserError, match=rf"model.lora_targets: .* no layer {absent}: choose among query, key"
    ):
        param_shapes(cfg)
    with pytest.raises(UserError, match=f"no layer {absent}"):
        GPT(cfg).init(jax.random.key(0), [[1]])
