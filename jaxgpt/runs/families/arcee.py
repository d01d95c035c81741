"""Arcee (2025), with the names of ArceeForCausalLM: Llama with an MLP of two matrices, and max(x, 0)^2."""

from __future__ import annotations

from jaxgpt.runs.families.family import ACTIVATIONS
from jaxgpt.runs.families.llama import Llama


class Arcee(Llama):
    """See the module's docstring."""

    title = "Arcee"
    model_type = "arcee"
    architecture = "ArceeForCausalLM"
    defaults = Llama.defaults | {
        "hidden_size": 2560,
        "intermediate_size": 18_432,
        "max_position_embeddings": 4096,
        "hidden_act": "relu2",
        "rms_norm_eps": 1e-5,
    }
    block = tuple(row for row in Llama.block if not row.name.startswith("mlp.gate_proj"))
    activations = ACTIVATIONS
    activation_words = "an MLP of two matrices"
