"""The memory of a state, before it exists. On several devices: `predicted` in tests/sharded.py."""

import jax
import pytest

from jaxgpt.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig, UserError
from jaxgpt.model import sharding
from jaxgpt.training import steps
from jaxgpt.training.state_memory import check_memory, state_bytes

ONE = {"data": 1, "fsdp": 1, "tensor": 1}
SMALL = ModelConfig(vocab_size=64, context_length=8, d_model=32, num_layers=2, num_heads=2)


@pytest.mark.parametrize(
    ("optim", "model", "moments"),
    [
        (OptimConfig(), SMALL, 2),
        (OptimConfig(ema_decay=0.9), SMALL, 3),
        (OptimConfig(name="muon"), SMALL, None),
        (OptimConfig(trainable=("*/mlp/*",)), SMALL, None),
    ],
)
def test_bytes_are_those_of_the_arrays(optim, model, moments):
    cfg = Config(model=model, optim=optim)
    parts = steps.build(cfg)
    state = steps.init_state(parts.model, parts.optimizer, jax.random.key(0))
    found = state_bytes(cfg, ONE)
    params, opt_state = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in state[1:])
    assert (found.params, found.opt_state) == (params, opt_state)
    if moments is not None:
        assert opt_state == pytest.approx(moments * params, abs=16)  # and counts
        assert found.gradients == params
    else:
        assert opt_state < 1.9 * params


def test_parts_of_a_batch_are_added_up_in_a_second_set_of_gradients():
    one = state_bytes(Config(model=SMALL), ONE)
    two = state_bytes(Config(model=SMALL, train=TrainConfig(grad_accumulation_steps=2)), ONE)
    assert two.gradients == 2 * one.gradients


def gpt3(**mesh):
    model = ModelConfig(
        vocab_size=50_304, context_length=2048, d_model=4096, num_layers=32, num_heads=32, d_ff=16_384
    )
    return Config(model=model, data=DataConfig(batch_size=8), mesh=MeshConfig(**mesh))


def test_a_model_is_compared_with_the_devices_of_its_mesh(monkeypatch):
    monkeypatch.setattr(sharding, "device_memory", lambda: 80 * 10**9)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_memory(gpt3(data=1, fsdp=8))
    with pytest.raises(
        UserError, match=r"6,658,\d+,\d+ parameters needs 99\.2 GiB .* use more devices with mesh\.fsdp"
    ):
        check_memory(gpt3(data=8))
    # CPU devices share one memory.
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(UserError, match=r"on a mesh of data 1 x fsdp 8 x tensor 1"):
        check_memory(gpt3(data=1, fsdp=8))
