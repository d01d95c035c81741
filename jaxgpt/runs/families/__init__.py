"""Families of published models: one module, one entry here. See family.py for what a module states.

gpt2      learned positions, LayerNorm, GELU
llama     rotary positions, RMSNorm, SwiGLU, grouped heads: SmolLM2, TinyLlama, ...
qwen3     llama with query-key norm
arcee     llama with an MLP of two matrices
gpt_neox  partly rotary positions, LayerNorm, parallel residual: Pythia
"""

from __future__ import annotations

from jaxgpt.config import ModelConfig, UserError
from jaxgpt.runs.families.arcee import Arcee
from jaxgpt.runs.families.family import Family, with_padding
from jaxgpt.runs.families.gpt2 import GPT2
from jaxgpt.runs.families.gpt_neox import GPTNeoX
from jaxgpt.runs.families.llama import Llama
from jaxgpt.runs.families.qwen3 import Qwen3

# By model_type.
FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (GPT2(), Llama(), Qwen3(), Arcee(), GPTNeoX())
}
AUTO = "auto"
__all__ = ["AUTO", "FAMILIES", "Family", "for_export", "with_padding"]


def for_export(cfg: ModelConfig, name: str = AUTO) -> Family:
    """The family of a name; auto: the first that expresses the model exactly. Raises UserError with what is in the way.

    With auto that is the first obstacle of every family.
    """
    if name != AUTO:
        if name not in FAMILIES:
            raise UserError(f"--family={name}: choose one of {', '.join([AUTO, *FAMILIES])}")
        FAMILIES[name].check(cfg)
        return FAMILIES[name]
    reasons = []
    for family in FAMILIES.values():
        found = family.obstacles(cfg)
        if not found:
            return family
        reasons.append(f"{family.title} has {found[0]}")
    raise UserError(f"no family expresses this model: {'; '.join(reasons)}")
