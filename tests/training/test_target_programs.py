"""The compiled steps of the GPU configs keep what makes them fast, on one H100 and on eight; and each guard is able to fail.

Nothing runs: XLA compiles for cards that are not here. Needs the extra gpu-compile.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxgpt.common import jax_settings
from jaxgpt.training import traffic
from jaxgpt.training.target import hlo
from jaxgpt.training.target.collectives import collectives
from jaxgpt.training.target.kernels import kernels
from tests import gpu_guards, gpu_programs

pytestmark = [
    pytest.mark.gpu_program,
    pytest.mark.skipif(
        "jax_plugins.xla_cuda12" not in jax_settings.compilers_alone(),
        reason='compiling for a GPU needs pip install "jaxgpt[gpu-compile]"',
    ),
]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a step has today, and must not exceed."""

    kernels: int  # of one layer, forward and backward, in one pass over a part of the batch
    temporaries: int  # MiB


LIMITS = {
    "gpt2": Limits(60, 5_500),
    "gpt2_fast": Limits(54, 6_100),
    "char_gpu": Limits(54, 590),
    "gpt2_x8": Limits(58, 850),
    "gpt2_2_parts_x8": Limits(60, 2_160),  # parts of other rows than those that the devices have
    "gpt2_fsdp_x8": Limits(61, 1_140),
    "gpt2_tensor_x8": Limits(72, 4_330),
    "gpt2_fast_x8": Limits(50, 1_185),
    "char_gpu_x8": Limits(56, 87),
}
SLOW: tuple[str, ...] = ()  # parts of a step that may multiply in float32
EIGHT = [name for name in gpu_programs.STEPS if name.endswith("_x8")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The compiled programs, from a process that has the compiler."""
    found = tmp_path_factory.mktemp("programs")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu_programs", str(found)], capture_output=True, text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return found


class Program:
    """A compiled program: its module, kernels, and sizes in bytes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.module = hlo.read((folder / f"{name}.txt").read_text())
        self.kernels = kernels(self.module)
        self.sizes = json.loads((folder / f"{name}.json").read_text())
        self.collectives = collectives(self.module, 8)


@pytest.mark.parametrize("name", list(gpu_programs.STEPS))
def test_a_step_keeps_what_makes_it_fast(folder, name):
    cfg, limits, program = gpu_programs.config_of(name), LIMITS[name], Program(folder, name)
    layers, train = cfg.model.num_layers, cfg.train
    passes = train.grad_accumulation_steps * train.steps_per_dispatch
    assert gpu_guards.slow_products(program.kernels, SLOW) == []
    assert gpu_guards.unfused_attention(program.kernels, layers, passes) == []
    assert gpu_guards.lost_donation(program.sizes["outputs"], program.sizes["aliased"]) == []
    assert gpu_guards.host_transfers(program.module) == []
    for layer in range(layers):
        assert gpu_guards.many_kernels(program.kernels, f"block_{layer}", passes, limits.kernels) == []
    assert gpu_guards.large_temporaries(program.sizes["temporaries"], limits.temporaries * 2**20) == []
    if cfg.train.loss_chunk:  # the char model's vocabulary is smaller than its width
        rows = cfg.data.batch_size // train.grad_accumulation_steps // (8 if name in EIGHT else 1)
        logits = rows * cfg.model.context_length * cfg.model.num_tokens
        assert gpu_guards.large_arrays(program.module, logits) == []


@pytest.mark.parametrize("name", EIGHT)
def test_devices_send_what_the_formula_says_and_reduce_gradients_once(folder, name):
    cfg, program = gpu_programs.config_of(name), Program(folder, name)
    found, steps = program.collectives, cfg.train.steps_per_dispatch
    assert gpu_guards.other_traffic(found, steps * traffic.traffic(cfg, program.sizes["sizes"]).total) == []
    if cfg.mesh.tensor > 1:
        return  # the stream is summed in each layer, and in each chunk of the loss
    split = cfg.mesh.fsdp > 1  # the blocks' matrices are gathered and their gradients scattered in each part
    passes = steps * cfg.train.grad_accumulation_steps
    assert gpu_guards.repeated_reductions(found, passes if split else steps) == []
    table = 4 * cfg.model.table_rows * cfg.model.table_width
    assert all(x.times == steps for x in found if x.size >= table)
    allowed = ("all-reduce", "reduce-scatter", *(["all-gather"] if split else []))
    assert gpu_guards.moved_activations(found, allowed) == []


# --- each guard finds what it is for --------------------------------------------------------------------


@pytest.fixture
def broken(folder):
    return lambda name: Program(folder, name)


@pytest.mark.parametrize("name", ["f32_product", "tf32_product"])
def test_a_float32_product_is_found(broken, name):
    kernels = broken(name).kernels
    assert gpu_guards.slow_products(kernels) and not gpu_guards.slow_products(
        kernels, ("optimizer products",)
    )


def test_unfused_attention_is_found(broken):
    assert len(gpu_guards.unfused_attention(broken("unfused").kernels, 1, 1)) == 2
    assert gpu_guards.unfused_attention(broken("fused").kernels, 1, 1) == []
    assert len(gpu_guards.unfused_attention(broken("fused").kernels, 2, 1)) == 2


def test_logits_and_large_temporaries_are_found(broken):
    program, elements = broken("logits"), 4 * 1024 * 8192
    assert gpu_guards.large_arrays(program.module, elements)
    assert gpu_guards.large_arrays(program.module, elements + 1) == []
    assert gpu_guards.large_temporaries(program.sizes["temporaries"], 2 * elements - 1)


def test_a_lost_donation_is_found(broken):
    lost, kept = broken("not_donated").sizes, broken("donated").sizes
    assert gpu_guards.lost_donation(lost["outputs"], lost["aliased"])
    assert gpu_guards.lost_donation(kept["outputs"], kept["aliased"]) == []


def test_a_transfer_to_the_host_is_found(folder):
    text = (folder / "donated.txt").read_text()
    assert gpu_guards.host_transfers(hlo.read(text)) == []
    for line in (
        '%call = f32[2]{0} custom-call(), custom_call_target="xla_ffi_python_gpu_callback"',
        "%sent = (f32[2]{0}, u32[], token[]) send(), channel_id=1",
        "%there = f32[2]{0:S(5)} copy()",
    ):
        changed = text.replace("\n  ROOT ", f"\n  {line}\n  ROOT ")
        assert gpu_guards.host_transfers(hlo.read(changed)), line


def test_a_reduction_in_each_part_is_found(broken):
    found = broken("reduced_in_each_part").collectives
    assert [(x.op, x.times) for x in found] == [("all-reduce", 4)]
    assert gpu_guards.repeated_reductions(found) and not gpu_guards.repeated_reductions(found, 4)


def test_gathered_activations_are_found(broken):
    found = broken("gathered").collectives
    assert gpu_guards.moved_activations(found, ("all-reduce",))
    assert gpu_guards.moved_activations(found, ("all-reduce", "all-gather")) == []


def test_a_sum_in_another_dtype_is_found(broken):
    found, size = broken("summed_in_float32").collectives, 1024 * 1024
    assert gpu_guards.other_traffic(found, traffic.all_reduce(2 * size, 8))
    assert gpu_guards.other_traffic(found, traffic.all_reduce(4 * size, 8)) == []


def test_more_kernels_are_found(broken):
    kernels = broken("many_kernels").kernels
    assert gpu_guards.many_kernels(kernels, "block_0", 1, 99)
    assert gpu_guards.many_kernels(kernels, "block_0", 1, 100) == []
