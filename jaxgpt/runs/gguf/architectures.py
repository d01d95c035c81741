"""The architectures of GGUF files that are families here: their metadata is a config.json, their tensors the family's.

A file of llama.cpp has other names and, for some tensors, another order of the same numbers. This module translates both
ways, and `families` does the rest, so that a GGUF file is checked, refused and written as a folder is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxgpt.config import ModelConfig, UserError
from jaxgpt.runs.families import FAMILIES, Family
from jaxgpt.runs.gguf.reader import GGUFFile

# Metadata that changes no result, by the part of a key after the architecture.
_NEUTRAL = frozenset({"vocab_size", "tensor_data_layout"})


def _pairs_apart(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys whose rotated pairs are next to each other -> half a head apart, as in the families."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _pairs_together(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _by_head(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of all queries, all keys, all values -> the three of one head next to each other."""
    return rows.reshape(3, heads, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _by_kind(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _transposed(array: np.ndarray, heads: int) -> np.ndarray:
    return array.T


@dataclass(frozen=True)
class Order:
    """Another order of a tensor's numbers: to the family's and back. Both take the number of heads."""

    ours: Callable[[np.ndarray, int], np.ndarray]
    theirs: Callable[[np.ndarray, int], np.ndarray]
    heads: str = ""  # the field of config.json with the number of heads


_TRANSPOSED = Order(_transposed, _transposed)


@dataclass(frozen=True)
class Architecture:
    """One architecture. `blocks` and `others` map the names of tensors, without .weight and .bias, to the family's."""

    name: str  # general.architecture
    family: Family
    keys: dict[str, str]  # the part of a key after the architecture -> the field of config.json
    others: dict[str, str]
    blocks: dict[str, str]  # after `blk.N.` -> after the family's prefix of a block
    constants: dict[str, Any] = field(
        default_factory=dict
    )  # fields of config.json that are so for all its files
    unstated: dict[str, Any] = field(default_factory=dict)  # fields that only training has, and no file
    optional: frozenset[str] = frozenset()  # keys that a file may lack
    biases: dict[str, str] = field(
        default_factory=dict
    )  # field of config.json -> the tensor of block 0 that says it
    orders: dict[str, Order] = field(
        default_factory=dict
    )  # by our name within a block, with .weight or .bias
    floats: frozenset[str] = frozenset()  # keys that are written as float32
    rotary: str = (
        ""  # the field of config.json with the part of a head that is rotated; "head_dim": all of it
    )

    # --- a file's metadata <-> config.json --------------------------------------------------------------

    def config(self, file: GGUFFile) -> dict[str, Any]:
        """The config.json of a file. Raises UserError for metadata that is missing or not supported."""
        values = self.constants | self.unstated | {"model_type": self.family.model_type}
        prefix = f"{self.name}."
        for key, name in self.keys.items():
            if file.has(prefix + key) or key not in self.optional:
                value = file.metadata.get(prefix + key)
                if value is None:
                    raise UserError(f"{file.path} lacks {prefix}{key}: give a complete GGUF file")
                values[name] = value
        own = (
            set(self.keys)
            | _NEUTRAL
            | ({"rope.dimension_count", "attention.value_length"} if self.rotary else set())
        )
        for key, value in file.metadata.items():
            part = key.removeprefix(prefix)
            if part != key and part not in own and not _is_off(part, value):
                raise UserError(f"{file.path} has {key}={str(value)[:60]}, which is not supported here")
        if "rope_freqs.weight" in file.tensors:
            raise UserError(
                f"{file.path} has rope_freqs.weight, a scaling of rotary positions (as Llama 3 has), and none is supported"
            )
        self._read_rotary(file, values)
        values |= {name: tensor in file.tensors for name, tensor in self.biases.items()}
        table = file.tensors.get("token_embd.weight")
        values[next(theirs for theirs, ours in self.family.sizes.items() if ours == "vocab_size")] = (
            table.shape[0] if table else 0
        )
        values["tie_word_embeddings"] = _is_tied(file)
        return values

    def _read_rotary(self, file: GGUFFile, values: dict[str, Any]) -> None:
        """The head width of a file, and the part of it that is rotated."""
        count, length = f"{self.name}.rope.dimension_count", f"{self.name}.attention.value_length"
        if not self.rotary:
            return
        if self.rotary != "head_dim":
            rotated = file.get(count, int)
            heads, width = values["num_attention_heads"], values["hidden_size"]
            if not (type(heads) is type(width) is int and 0 < heads <= width) or width % heads:
                raise UserError(
                    f"{file.path}: {width} numbers can't be shared by {heads} heads: give a complete GGUF file"
                )
            part = rotated / (width // heads)
            # Of this part of a head's width only whole numbers count.
            values[self.rotary] = (
                part if int(width // heads * part) == rotated else math.nextafter(part, math.inf)
            )
            return
        # Older files of heads with a width of their own say it in the number of rotated numbers alone.
        for key in (count, length):
            if file.has(key) and values.setdefault("head_dim", file.metadata[key]) != file.metadata[key]:
                raise UserError(
                    f"{file.path} has heads of {values['head_dim']} numbers and {key}={file.metadata[key]}: only equal ones are supported"
                )

    def metadata(self, values: dict[str, Any]) -> dict[str, Any]:
        """The metadata of a config.json, keys without the architecture, and what they all have."""
        found = {key: values[name] for key, name in self.keys.items() if values.get(name) is not None}
        found.setdefault(
            "feed_forward_length", 4 * found["embedding_length"]
        )  # GPT-2's config.json may lack it
        if self.rotary == "head_dim":
            found |= {
                "attention.value_length": values["head_dim"],
                "rope.dimension_count": values["head_dim"],
            }
        elif self.rotary:
            width = values["hidden_size"] // values["num_attention_heads"]
            found["rope.dimension_count"] = int(width * values[self.rotary])
        return found

    # --- names of tensors -------------------------------------------------------------------------------

    def published(self, name: str) -> str:
        """The family's name of a tensor; a tensor that the architecture does not have keeps its name."""
        base, _, end = name.rpartition(".")
        if (match := re.fullmatch(r"blk\.(\d{1,9})\.(\w+)", base)) and match[2] in self.blocks:
            return f"{self.family.prefix}{self.family.layer}{int(match[1])}.{self.blocks[match[2]]}.{end}"
        return f"{self.others[base]}.{end}" if base in self.others else name

    def own(self, name: str) -> str:
        """The name in a file of a tensor of the family."""
        base, _, end = name.rpartition(".")
        block = f"{self.family.prefix}{self.family.layer}"
        if base.startswith(block):
            number, _, rest = base.removeprefix(block).partition(".")
            return f"blk.{number}.{_inverse(self.blocks)[rest]}.{end}"
        return f"{_inverse(self.others)[base]}.{end}"

    def order(self, name: str) -> Order | None:
        """The order of the family's tensor in a file, where it is another."""
        block = f"{self.family.prefix}{self.family.layer}"
        return self.orders.get(name.removeprefix(block).partition(".")[2]) if name.startswith(block) else None

    # --- what a file can't express ----------------------------------------------------------------------

    def obstacles(self, cfg: ModelConfig, values: dict[str, Any]) -> list[str]:
        """What llama.cpp does not have of a model that the family expresses."""
        found = [
            f"{name}={wanted!r}, not {values[name]!r}"
            for name, wanted in self.constants.items()
            if name in values and values[name] != wanted
        ]
        if cfg.attention_window is not None and cfg.attention_window < cfg.context_length:
            found.append(f"attention to all tokens before, not model.attention_window={cfg.attention_window}")
        if "attention_bias" in values and "attention_bias" not in self.biases and values["attention_bias"]:
            found.append("attention without biases")
        return found


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _is_off(part: str, value: Any) -> bool:
    """Whether a value says that a feature is off: no scaling, a factor of 1, no experts."""
    if isinstance(value, bool):
        return value is (part == "attention.causal")
    if isinstance(value, float):
        return value in (0.0, 1.0)
    return isinstance(value, int | str) and value in (0, "", "none")


def _is_tied(file: GGUFFile) -> bool:
    """Whether the head is the table: a file has no head of its own, or one with the same bytes."""
    head, table = file.tensors.get("output.weight"), file.tensors.get("token_embd.weight")
    if head is None:
        return True
    same = table is not None and (head.shape, head.kind) == (table.shape, table.kind)
    return same and file.raw("output.weight") == file.raw("token_embd.weight")


_SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_LLAMA_KEYS = {
    **_SIZES,
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_LLAMA_BLOCKS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_OTHERS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OPTIONAL = frozenset({"attention.head_count_kv", "attention.key_length", "rope.freq_base"})
_QUERIES = Order(_pairs_apart, _pairs_together, "num_attention_heads")
_KEYS = Order(_pairs_apart, _pairs_together, "num_key_value_heads")
_FUSED = Order(_by_head, _by_kind, "num_attention_heads")

ARCHITECTURES: dict[str, Architecture] = {
    one.name: one
    for one in (
        Architecture(
            "gpt2",
            FAMILIES["gpt2"],
            {
                "context_length": "n_positions",
                "embedding_length": "n_embd",
                "block_count": "n_layer",
                "feed_forward_length": "n_inner",
                "attention.head_count": "n_head",
                "attention.layer_norm_epsilon": "layer_norm_epsilon",
            },
            {"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f",
             "output": "lm_head"},
            {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
             "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
            {"activation_function": "gelu_new", "scale_attn_weights": True},
            {"resid_pdrop": 0.0, "attn_pdrop": 0.0},
            orders=dict.fromkeys(
                ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"), _TRANSPOSED
            ),
        ),
        Architecture(
            "llama", FAMILIES["llama"], _LLAMA_KEYS, _LLAMA_OTHERS, _LLAMA_BLOCKS, {"hidden_act": "silu"}, {}, _OPTIONAL,
            {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
            {"self_attn.q_proj.weight": _QUERIES, "self_attn.q_proj.bias": _QUERIES, "self_attn.k_proj.weight": _KEYS,
             "self_attn.k_proj.bias": _KEYS},
            rotary="head_dim",
        ),
        Architecture(
            "qwen3", FAMILIES["qwen3"], _LLAMA_KEYS, _LLAMA_OTHERS,
            {**_LLAMA_BLOCKS, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"},
            {"hidden_act": "silu"}, {}, _OPTIONAL, rotary="head_dim",
        ),
        Architecture(
            "gptneox",
            FAMILIES["gpt_neox"],
            {**_SIZES, "attention.layer_norm_epsilon": "layer_norm_eps", "use_parallel_residual": "use_parallel_residual",
             "rope.freq_base": "rotary_emb_base"},
            {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
            {"attn_norm": "input_layernorm", "attn_qkv": "attention.query_key_value", "attn_output": "attention.dense",
             "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"},
            {"hidden_act": "gelu"}, {}, frozenset({"rope.freq_base"}), {"attention_bias": "blk.0.attn_qkv.bias"},
            {"attention.query_key_value.weight": _FUSED, "attention.query_key_value.bias": _FUSED},
            rotary="rotary_pct",
        ),
    )
}  # fmt: skip


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture of a file. Raises UserError if it is not one of ARCHITECTURES."""
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise UserError(
            f"{file.path} has the architecture {name[:60]!r}: only {', '.join(ARCHITECTURES)} are read"
        )
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{file.path} is one of {str(file.metadata['split.count'])[:20]} parts: join them with llama.cpp's gguf-split --merge"
        )
    return ARCHITECTURES[name]
