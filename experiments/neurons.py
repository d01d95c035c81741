"""Do neurons of the MLP fire on patterns?

python -m experiments.neurons [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments import claim, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt import data
from jaxgpt.checkpoint import Run
from jaxgpt.model import GPT, init_params
from jaxgpt.tokenizers import Tokenizer

CLAIM = "The MLP's ReLU neurons recognise patterns: a neuron fires on some contexts and not on others."
DESIGN = (
    "Character models of Shakespeare, one a seed. A neuron fires where its activation is among its highest 1 %. From one "
    "half of some validation text: the five three-character contexts on which it fires most often. Selectivity, on the "
    "other half: the share of its firings that end in one of the five, less the share of all positions that do; 0 for a "
    "neuron that fires anywhere, 1 for one that fires on these alone. Compared with the same neurons on the same text with "
    "its characters shuffled, and with models that are not trained."
)
SPAN, PATTERNS, STRONG = 3, 5, 0.01


@functools.partial(jax.jit, static_argnames="model")
def hidden(model: GPT, params: dict, tokens_BT: jax.Array) -> list[jax.Array]:
    """Activations [B, T, F] of each layer."""
    _, shown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    return [shown["intermediates"][f"block_{i}"]["mlp"]["hidden"][0] for i in range(model.cfg.num_layers)]


def activations(model: GPT, params: dict, windows_WT: np.ndarray) -> list[np.ndarray]:
    """Each layer's [N, F] at all positions of the windows that have a whole context before them."""
    parts = [hidden(model, params, windows_WT[at : at + 64]) for at in range(0, len(windows_WT), 64)]
    return [
        np.concatenate([np.asarray(h)[:, SPAN - 1 :] for h in layer]).reshape(-1, layer[0].shape[-1])
        for layer in zip(*parts, strict=True)
    ]


def patterns_at(windows_WT: np.ndarray, V: int) -> np.ndarray:
    """The last SPAN tokens of each of those positions as one number [N]."""
    T = windows_WT.shape[1]
    return sum(
        windows_WT[:, i : T - SPAN + 1 + i].astype(np.int64) * V ** (SPAN - 1 - i) for i in range(SPAN)
    ).ravel()


def selectivity(active_NF: np.ndarray, patterns_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each neuron [F], and the patterns [F, PATTERNS] of the first half that it was asked with."""
    _, ids_N = np.unique(patterns_N, return_inverse=True)
    values = np.unique(patterns_N)
    half = len(ids_N) // 2
    chance_P = np.bincount(ids_N[half:], minlength=len(values)) / (len(ids_N) - half)
    limits_F = np.quantile(active_NF[:half], 1 - STRONG, axis=0)
    found, top = np.zeros(active_NF.shape[1]), np.zeros((active_NF.shape[1], PATTERNS), np.int64)
    for f, limit in enumerate(limits_F):
        fires_N = (active_NF[:, f] > limit) & (active_NF[:, f] > 0)
        counts_P = np.bincount(ids_N[:half][fires_N[:half]], minlength=len(values))
        chosen = np.argsort(-counts_P, kind="stable")[:PATTERNS]
        top[f] = values[chosen]
        fired = ids_N[half:][fires_N[half:]]
        if len(fired):
            found[f] = np.isin(fired, chosen).mean() - chance_P[chosen].sum()
    return found, top


def as_text(pattern: int, tokenizer: Tokenizer, V: int) -> str:
    """The characters of a pattern."""
    return tokenizer.decode([pattern // V ** (SPAN - 1 - i) % V for i in range(SPAN)])


def look(run: Run, windows_WT: np.ndarray, shuffled_WT: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean selectivity by layer of each kind, the share of activations above 0, and the most selective neurons."""
    V = run.config.model.vocab_size
    fresh = init_params(run.model, jax.random.key(1000 + seed))
    kinds = {
        "trained": (run.params, windows_WT),
        "shuffled text": (run.params, shuffled_WT),
        "untrained": (fresh, windows_WT),
    }
    found: dict[str, Any] = {"layers": {}, "positive": [], "neurons": []}
    for kind, (params, tokens_WT) in kinds.items():
        patterns_N = patterns_at(tokens_WT, V)
        found["layers"][kind] = []
        for layer, active_NF in enumerate(activations(run.model, params, tokens_WT)):
            by_neuron_F, top_FP = selectivity(active_NF, patterns_N)
            found["layers"][kind].append(float(by_neuron_F.mean()))
            if kind == "trained":
                found["positive"].append(float((active_NF > 0).mean()))
                best = int(by_neuron_F.argmax())
                contexts = [as_text(int(p), run.tokenizer, V) for p in top_FP[best]]
                found["neurons"].append(
                    {
                        "layer": layer,
                        "neuron": best,
                        "selectivity": float(by_neuron_F[best]),
                        "contexts": contexts,
                    }
                )
    return found


def measure(setting: Setting) -> Result:
    """See DESIGN."""
    runs = trained.characters(setting)
    T = runs[0].config.model.context_length
    count = setting.pick(32, 512, 1024)
    ids = np.asarray(data.prepare(runs[0].config.data).valid.ids[: count * T], np.int32)
    shuffled = np.random.default_rng(0).permutation(ids)
    found = [
        look(run, *(x[: len(x) // T * T].reshape(-1, T) for x in (ids, shuffled)), seed)
        for seed, run in enumerate(runs)
    ]
    by_kind = {kind: [np.mean(row["layers"][kind]) for row in found] for kind in found[0]["layers"]}
    own, shuffled_own, fresh = (claim.mean(values) for values in by_kind.values())
    best = max(
        (neuron for row in found for neuron in row["neurons"]), key=lambda neuron: neuron["selectivity"]
    )
    says = (
        f"Selectivity {claim.show(own)} on text, {claim.show(shuffled_own)} on the same text shuffled, {claim.show(fresh)} untrained; "
        f"{np.mean([row['positive'] for row in found]):.0%} of activations are above 0. The most selective neuron of a layer: "
        f"{best['selectivity']:.2f}, layer {best['layer']}, fires after {', '.join(map(repr, best['contexts']))}."
    )
    parts = (
        Effect("selectivity, trained, on text", own, margin=0.05),
        Effect(
            "selectivity on text less that on shuffled text, trained",
            claim.difference(by_kind["trained"], by_kind["shuffled text"]),
        ),
        Effect(
            "selectivity trained less untrained", claim.difference(by_kind["trained"], by_kind["untrained"])
        ),
    )
    return Result(parts, says, {"found": found}, seeds=len(runs))


def draw(figure, measurements: dict[str, Any]) -> None:
    """Selectivity by layer; the most selective neuron of each layer of the first seed and its contexts."""
    layers, listed = figure.subplots(1, 2, width_ratios=(1, 1.3))
    found = measurements["found"]
    for i, kind in enumerate(found[0]["layers"]):
        values = np.array([row["layers"][kind] for row in found])
        at = np.arange(values.shape[1])
        for j, row in enumerate(values):
            layers.plot(
                at, row, color=f"C{i}", alpha=0.6, marker="o", markersize=3, label=kind if not j else None
            )
    layers.set(title="mean selectivity of neurons", xlabel="layer", xticks=list(at), ylim=(0, None))
    layers.legend()
    listed.axis("off")
    listed.set_title("the most selective neuron of each layer, first seed")
    for i, neuron in enumerate(found[0]["neurons"]):
        text = "  ".join(repr(context) for context in neuron["contexts"]).replace("$", r"\$")
        listed.text(
            0,
            0.95 - 0.13 * i,
            f"{neuron['layer']}.{neuron['neuron']}  {neuron['selectivity']:.2f}  {text}",
            family="DejaVu Sans Mono",
            fontsize=7,
            va="top",
        )


if __name__ == "__main__":
    claim.run()
