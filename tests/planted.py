"""Models whose weights are written by hand, so that it is known what their heads do."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.model.parameters import param_shapes

SHARP = 100.0  # a score so far above the others is all of the weight

PREVIOUS, INDUCTION = (0, 0), (1, 0)  # layer, head


def induction_model(vocab_size: int = 64, context_length: int = 32) -> tuple[config.ModelConfig, dict]:
    """Two layers of two heads and no MLP: 0.0 looks at the token before, 1.0 at what followed the same token before.

    The stream has three parts: the token (one-hot), the position (one-hot), and the token before, which head 0.0
    writes there. Head 1.0 looks for a place whose token before is this token. Heads 0.1 and 1.1 have equal weights.
    """
    V, T = vocab_size, context_length
    cfg = config.ModelConfig(
        vocab_size=V, context_length=T, d_model=2 * V + T, num_layers=2, num_heads=2, d_ff=8,
        norm="rmsnorm_plain", use_bias=False, attention_scale=1.0, activation="relu",
    )  # fmt: skip
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), param_shapes(cfg))
    token, position, before = slice(0, V), slice(V, V + T), slice(V + T, 2 * V + T)
    params["token_embedding"]["embedding"][:, token] = np.eye(V)
    params["position_embedding"]["embedding"][:, position] = np.eye(T)
    one, two = (params[f"block_{i}"]["attention"] for i in range(2))
    one["query"]["kernel"][position, 0, :T] = SHARP * np.eye(T, k=-1)  # t asks for t - 1
    one["key"]["kernel"][position, 0, :T] = np.eye(T)
    one["value"]["kernel"][token, 0, :V] = np.eye(V)
    one["out"]["kernel"][0, :V, before] = np.eye(V)
    two["query"]["kernel"][token, 0, :V] = SHARP * np.eye(V)
    two["key"]["kernel"][before, 0, :V] = np.eye(V)
    two["value"]["kernel"][token, 0, :V] = np.eye(V)
    two["out"]["kernel"][0, :V, token] = 3 * np.eye(V)
    return cfg, jax.tree.map(jnp.asarray, params)
