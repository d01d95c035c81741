"""The table of linear layers: one row has all facts about one layer.

A new linear layer costs a call of `layers.Dense` in its module and one row here. Sharding, initial values, Muon, muP,
LoRA, the cost formulas and the exports read the row. Letters as in gpt.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jax.sharding import PartitionSpec as P

from jaxgpt.config import ModelConfig, UserError

# The size of each kind of axis, and the mesh axis that splits it.
LETTERS: dict[str, tuple[Callable[[ModelConfig], int], str | None]] = {
    "D": (lambda cfg: cfg.d_model, "fsdp"),
    "H": (lambda cfg: cfg.num_heads, "tensor"),
    "G": (lambda cfg: cfg.kv_heads, "tensor"),
    "K": (lambda cfg: cfg.head_width, None),
    "F": (lambda cfg: cfg.mlp_width, "tensor"),
    "V": (lambda cfg: cfg.table_rows, "tensor"),
    "E": (lambda cfg: cfg.table_width, None),
}


@dataclass(frozen=True)
class Linear:
    """A linear layer: kernel [inputs..., outputs...], bias [outputs...]."""

    name: str
    module: str  # "attention" or "mlp", within a block; "" where it belongs to the model
    inputs: str  # one letter per axis
    outputs: str
    exists: Callable[[ModelConfig], bool] = lambda cfg: True
    to_stream: bool = False  # its output is added to the residual stream
    bias: bool = True  # it can have one: see has_bias
    muon: bool = True  # Muon makes its updates orthogonal
    lora: bool = True  # model.lora_targets may name it

    @property
    def path(self) -> str:
        """Its path within a block, or within the model."""
        return f"{self.module}/{self.name}" if self.module else self.name

    @property
    def grows(self) -> bool:
        """Whether the number of its inputs grows with d_model (see `optim.rate_multipliers`)."""
        return self.inputs != "E"

    def has_bias(self, cfg: ModelConfig) -> bool:
        """Whether it has a bias in this model."""
        own = cfg.attention_bias if self.module == "attention" else None
        return self.bias and (cfg.use_bias if own is None else own)

    def shapes(self, cfg: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The sizes of the input axes and of the output axes."""
        ins, outs = (tuple(LETTERS[x][0](cfg) for x in letters) for letters in (self.inputs, self.outputs))
        return ins, outs

    def fans(self, cfg: ModelConfig) -> tuple[int, int]:
        """(fan-in, fan-out): how many inputs and outputs there are in all."""
        ins, outs = self.shapes(cfg)
        return math.prod(ins), math.prod(outs)

    def rank(self, cfg: ModelConfig) -> int:
        """The rank of its low-rank change; 0: it has none."""
        return cfg.lora_rank if self.name in cfg.lora_targets else 0

    def specs(self) -> dict[str, P]:
        """The mesh axis of each axis of its parameters, by path. A mesh axis splits at most one axis of an array."""
        split: list[str | None] = []
        for letter in self.inputs + self.outputs:
            axis = LETTERS[letter][1]
            split.append(None if axis in split else axis)
        ins, outs = split[: len(self.inputs)], split[len(self.inputs) :]
        specs = {"kernel": P(*split)}
        if self.bias:  # too small to be gathered over fsdp
            specs["bias"] = P(*(axis if axis == "tensor" else None for axis in outs))
        if self.lora:
            specs |= {"lora_a": P(*ins, None), "lora_b": P(None, *outs)}
        return {f"{self.path}/{name}": spec for name, spec in specs.items()}


def _has_mlp(cfg: ModelConfig) -> bool:
    return cfg.mlp_width > 0


# fmt: off
LINEAR: dict[str, Linear] = {row.name: row for row in (
    Linear("query", "attention", "D", "HK"),
    Linear("key", "attention", "D", "GK"),
    Linear("value", "attention", "D", "GK"),
    Linear("out", "attention", "HK", "D", to_stream=True),
    Linear("up", "mlp", "D", "F", _has_mlp),
    Linear("gate", "mlp", "D", "F", lambda cfg: _has_mlp(cfg) and cfg.gated),
    Linear("down", "mlp", "F", "D", _has_mlp, to_stream=True),
    # Kernels alone, outside the blocks: the model multiplies with them itself.
    Linear("embedding_projection", "", "E", "D", lambda cfg: cfg.factorised, bias=False, muon=False, lora=False),
    Linear("head", "", "D", "V", lambda cfg: not cfg.tie_embeddings, bias=False, muon=False, lora=False),
)}
# fmt: on


def of_path(path: str) -> Linear | None:
    """The layer that a parameter path belongs to (`block_0/mlp/up/kernel`); None: a norm, table or scalar."""
    return LINEAR.get(path.split("/")[-2]) if "/" in path else None


def present(cfg: ModelConfig) -> list[Linear]:
    """The layers of a model; those of a module are in every block."""
    return [row for row in LINEAR.values() if row.exists(cfg)]


def check_lora_targets(cfg: ModelConfig) -> None:
    """Raises UserError where model.lora_targets names a layer that the model does not have."""
    possible = [row.name for row in present(cfg) if row.lora]
    if wrong := [name for name in cfg.lora_targets if name not in possible]:
        raise UserError(
            f"model.lora_targets: this model has no layer {', '.join(wrong)}: choose among {', '.join(possible)}"
        )
