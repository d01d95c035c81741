"""Can "love" give 0.6 of its attention to the later "AI"?

python -m experiments.later_words [--quick]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim
from experiments.claim import Check, Result, Setting
from jaxgpt.model import attention

NOTE = 'Hypothetical attention weights for "love" [in "I love AI"]: "I" 0.3, "love" 0.1, "AI" 0.6. [...] Triangular masking: it prevents tokens from seeing future tokens during attention.'
CLAIM = 'In "I love AI", "love" can attend to "I", "love" and "AI" with weights 0.3, 0.1 and 0.6.'
PREDICTION = "Some scores give these weights, with and without the notes' triangular mask."
REFUTED_BY = "A mask under which no scores give the later word any weight."
DESIGN = (
    "The attention weights of this project for the three words, without a mask and with the causal mask that the notes draw: from the scores that give the notes' weights (their logarithms), and from "
    "1,000 random rows of scores, some of them large. Each mask is a condition."
)
MARGINS: dict[str, float] = {}
WEIGHTS = {"I": 0.3, "love": 0.1, "AI": 0.6}


def weights_of(scores_BS: np.ndarray, causal: bool) -> np.ndarray:
    """The attention weights of "love", the second of three words [B, 3]."""
    positions = np.arange(3)[None]
    mask = (
        attention.causal_mask(positions, 3) if causal else jnp.ones_like(attention.causal_mask(positions, 3))
    )
    scores_BHTS = jnp.broadcast_to(
        jnp.asarray(scores_BS, jnp.float32)[:, None, None], (len(scores_BS), 1, 3, 3)
    )
    return np.asarray(attention.attention_weights(scores_BHTS, mask))[:, 0, 1]


def measure(setting: Setting) -> dict[str, Any]:
    """Weights from the notes' scores, and the largest weight on the later word that random scores give."""
    wanted = np.array(list(WEIGHTS.values()))
    random_BS = np.asarray(100 * jax.random.normal(jax.random.key(0), (1_000, 3)))
    return {
        mask: {"weights": weights_of(np.log(wanted)[None], causal)[0], "largest": float(weights_of(random_BS, causal)[:, 2].max())}
        for mask, causal in (("without a mask", False), ("with a causal mask", True))
    }  # fmt: skip


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    wanted = WEIGHTS["AI"]
    masked, free = measurements["with a causal mask"], measurements["without a mask"]
    return Result(
        parts=tuple(
            part
            for mask, found in measurements.items()
            for part in (
                Check("0.6 minus the largest weight on the later word", max(0.0, wanted - found["largest"]), 1e-6, under=mask),
                Check("largest difference from the notes' weights", max(abs(a - b) for a, b in zip(found["weights"], WEIGHTS.values(), strict=True)), 1e-6, under=mask),
            )
        ),
        says=(
            f"Without a mask the notes' weights are possible ({', '.join(f'{x:.2f}' for x in free['weights'])}). With the causal mask the largest weight on "
            f"the later word is {masked['largest']:g}, and the same scores give {', '.join(f'{x:.2f}' for x in masked['weights'])}: "
            '"love" can be understood by what came before it alone.'
        ),
        varies="the mask",
        headline=f'The notes\' "love" gives {wanted} of its weight to the later "AI"; under their own causal mask it can give {masked["largest"]:g}.',
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The weights of the notes, without a mask and with one."""
    axis = figure.subplots()
    rows = {"the notes": list(WEIGHTS.values())} | {
        mask: found["weights"] for mask, found in measurements.items()
    }
    for at, (name, weights) in enumerate(rows.items()):
        axis.bar(np.arange(3) + 0.27 * (at - 1), weights, 0.25, label=name)
    axis.set_xticks(range(3), list(WEIGHTS))
    axis.set(ylabel='weight of "love" on each word', ylim=(0, 1))
    axis.legend(loc="upper left")


if __name__ == "__main__":
    claim.run()
