"""Published model shapes, from the 2017 Transformer to GPT-3 with 175 billion parameters."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from jaxgpt.config import Config, ModelConfig, UserError, to_config_dict
from jaxgpt.config.errors import unknown


def _gpt2(d_model: int, num_layers: int, num_heads: int) -> ModelConfig:
    """Radford et al. 2019, table 2."""
    return ModelConfig(
        vocab_size=50_257, context_length=1024, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        dropout_rate=0.0, activation="gelu_tanh",
    )  # fmt: skip


def _gpt3(d_model: int, num_layers: int, num_heads: int) -> ModelConfig:
    """Brown et al. 2020, table 2.1, dense attention in every layer (the paper alternates with sparse)."""
    return dataclasses.replace(_gpt2(d_model, num_layers, num_heads), context_length=2048)


def _bert(d_model: int, num_layers: int, num_heads: int) -> ModelConfig:
    """Devlin et al. 2019, section 3, as a decoder: masked, no segment embeddings, no pooler."""
    return ModelConfig(
        vocab_size=30_522, context_length=512, d_model=d_model, num_layers=num_layers, num_heads=num_heads,
        activation="gelu",
    )  # fmt: skip


PRESETS: dict[str, ModelConfig] = {
    # Vaswani et al. 2017, table 3, "base": its decoder stack without the attention to an encoder.
    "transformer-2017": ModelConfig(
        vocab_size=37_000, context_length=512, d_model=512, num_layers=6, num_heads=8, d_ff=2048,
        activation="relu", position="sinusoidal", dropout_rate=0.1,
    ),
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt3-small": _gpt3(768, 12, 12),
    "gpt3-medium": _gpt3(1024, 24, 16),
    "gpt3-large": _gpt3(1536, 24, 16),
    # The paper's table gives 24 heads of 128 for a width of 2048, which is more than the width; 16 heads of 128 fit.
    "gpt3-xl": _gpt3(2048, 24, 16),
    "gpt3-2.7b": _gpt3(2560, 32, 32),
    "gpt3-6.7b": _gpt3(4096, 32, 32),
    # The paper's table gives a width of 5140; 40 heads of 128 make 5120.
    "gpt3-13b": _gpt3(5120, 40, 40),
    "gpt3-175b": _gpt3(12288, 96, 96),
}  # fmt: skip


def preset(name: str) -> ConfigDict:
    """The model group of a named shape, as a ConfigDict. Raises UserError that lists the names."""
    if name not in PRESETS:
        raise UserError(unknown("preset", name, PRESETS))
    return to_config_dict(Config(model=PRESETS[name])).model
