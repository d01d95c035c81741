"""Do the neurons of the MLP respond to patterns?

python -m experiments.neurons [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments import claim, trained
from experiments.claim import Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import Run

NOTE = "In ReLu activation the thinking happens, neuron get's activated if the model recognizes the pattern else not."
CLAIM = "The MLP's ReLU neurons recognize patterns: a neuron fires in some contexts and not in others."
PREDICTION = (
    "Trained neurons fire in a few contexts far more often than chance, and more so than untrained ones."
)
REFUTED_BY = (
    "Neurons as selective as those of an untrained model, or that fire as often on shuffled characters."
)
DESIGN = (
    "Character models of Shakespeare, one per seed. A neuron fires if its activation is among its highest 1 % on the first half "
    "of some validation text. From that half: the five three-character contexts in which it fires most often. Selectivity, on "
    "the other half: the share of its firings that are in one of the five contexts, minus the share of all positions that are; 0 for a neuron that "
    "fires anywhere, 1 for one that fires in these contexts alone; compared with untrained models. Firing ratio: how "
    "often a neuron fires on the other half, divided by how often it fires on the same characters shuffled (1 for a neuron that responds to "
    "single characters, above 1 for one that responds to sequences)."
)
MARGINS = {"selectivity": 0.05, "firing": 0.05}
SPAN, PATTERNS, STRONG = 3, 5, 0.01
FEWEST = 5  # firings on the second half that a neuron needs to have a selectivity


@functools.partial(jax.jit, static_argnames="model")
def hidden(model: GPT, params: dict, tokens_BT: jax.Array) -> list[jax.Array]:
    """Activations [B, T, F] of each layer."""
    _, shown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    return [shown["intermediates"][f"block_{i}"]["mlp"]["hidden"][0] for i in range(model.cfg.num_layers)]


def activations(model: GPT, params: dict, windows_WT: np.ndarray) -> list[np.ndarray]:
    """Each layer's activations [N, F] at all positions that have SPAN tokens."""
    parts = [hidden(model, params, windows_WT[at : at + 64]) for at in range(0, len(windows_WT), 64)]
    return [
        np.concatenate([np.asarray(h)[:, SPAN - 1 :] for h in layer]).reshape(-1, layer[0].shape[-1])
        for layer in zip(*parts, strict=True)
    ]


def patterns_at(windows_WT: np.ndarray, V: int) -> np.ndarray:
    """The last SPAN tokens at each of those positions, as one number [N]."""
    T = windows_WT.shape[1]
    return sum(
        windows_WT[:, i : T - SPAN + 1 + i].astype(np.int64) * V ** (SPAN - 1 - i) for i in range(SPAN)
    ).ravel()


def thresholds(active_NF: np.ndarray) -> np.ndarray:
    """The activation above which a neuron fires [F]: exceeded by STRONG of the first half, and at least 0."""
    return np.maximum(np.quantile(active_NF[: len(active_NF) // 2], 1 - STRONG, axis=0), 0.0)


def selectivity(active_NF: np.ndarray, patterns_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The selectivity of each neuron [F] (nan if it hardly fires) and its patterns [F, PATTERNS] in the first half."""
    values, ids_N = np.unique(patterns_N, return_inverse=True)
    half = len(ids_N) // 2
    chance_P = np.bincount(ids_N[half:], minlength=len(values)) / (len(ids_N) - half)
    found, top = np.full(active_NF.shape[1], np.nan), np.zeros((active_NF.shape[1], PATTERNS), np.int64)
    for f, limit in enumerate(thresholds(active_NF)):
        fires_N = active_NF[:, f] > limit
        counts_P = np.bincount(ids_N[:half][fires_N[:half]], minlength=len(values))
        chosen = np.argsort(-counts_P, kind="stable")[:PATTERNS]
        top[f] = values[chosen]
        fired = ids_N[half:][fires_N[half:]]
        if len(fired) >= FEWEST:
            found[f] = np.isin(fired, chosen).mean() - chance_P[chosen].sum()
    return found, top


def as_text(pattern: int, tokenizer: Tokenizer, V: int) -> str:
    """The characters of a pattern."""
    return tokenizer.decode([pattern // V ** (SPAN - 1 - i) % V for i in range(SPAN)])


def look(run: Run, windows_WT: np.ndarray, shuffled_WT: np.ndarray, seed: int) -> dict[str, Any]:
    """By layer, trained and untrained: the mean selectivity and how often neurons fire, on text and on shuffled text; and
    the most selective neuron of each trained layer."""
    V = run.config.model.vocab_size
    kinds = {"trained": run.params, "untrained": init_params(run.model, jax.random.key(1000 + seed))}
    found: dict[str, Any] = {"positive": [], "silent": [], "neurons": []}
    patterns_N = patterns_at(windows_WT, V)
    for kind, params in kinds.items():
        rows = found[kind] = {"selectivity": [], "text": [], "shuffled": []}
        on_text, on_shuffled = (
            activations(run.model, params, tokens) for tokens in (windows_WT, shuffled_WT)
        )
        for layer, (text_NF, shuffled_NF) in enumerate(zip(on_text, on_shuffled, strict=True)):
            by_neuron_F, top_FP = selectivity(text_NF, patterns_N)
            limits_F = thresholds(text_NF)
            rows["selectivity"].append(float(np.nanmean(by_neuron_F)))
            rows["text"].append(float((text_NF[len(text_NF) // 2 :] > limits_F).mean()))
            rows["shuffled"].append(float((shuffled_NF > limits_F).mean()))
            if kind == "trained":
                found["silent"].append(float(np.isnan(by_neuron_F).mean()))
                best = int(np.nanargmax(by_neuron_F))
                contexts = [as_text(int(p), run.tokenizer, V) for p in top_FP[best]]
                known = {"layer": layer, "neuron": best, "selectivity": float(by_neuron_F[best])}
                found["positive"].append(float((text_NF > 0).mean()))
                found["neurons"].append(known | {"contexts": contexts})
    return found


def measure(setting: Setting) -> dict[str, Any]:
    """Selectivity and firing, trained and untrained."""
    runs = trained.characters(setting)
    T = runs[0].config.model.context_length
    count = setting.pick(120, 512, 1024)
    ids = np.asarray(prepare_dataset(runs[0].config.data).valid.ids[: count * T], np.int32)
    texts = [x[: len(x) // T * T].reshape(-1, T) for x in (ids, np.random.default_rng(0).permutation(ids))]
    return {"found": [look(run, *texts, seed) for seed, run in enumerate(runs)]}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found = measurements["found"]

    def of(kind: str, what: str) -> list[float]:
        return [float(np.mean(row[kind][what])) for row in found]

    own, fresh = (of(kind, "selectivity") for kind in ("trained", "untrained"))
    firing, fresh_firing = (
        claim.ratio(of(kind, "text"), of(kind, "shuffled")) for kind in ("trained", "untrained")
    )
    best = max(
        (neuron for row in found for neuron in row["neurons"]), key=lambda neuron: neuron["selectivity"]
    )
    positive, silent = (np.mean([row[what] for row in found]) for what in ("positive", "silent"))
    says = (
        f"The mean selectivity of a neuron is {claim.show(claim.mean(own))} (untrained {claim.show(claim.mean(fresh))}). It fires "
        f"{claim.show(firing)} times as often on text as on shuffled characters (untrained {claim.show(fresh_firing)}). "
        f"{positive:.0%} of activations are above 0, and {silent:.0%} of neurons hardly ever fire. The most selective neuron "
        f"(layer {best['layer']}, selectivity {best['selectivity']:.2f}) fires after {', '.join(map(repr, best['contexts']))}."
    )
    parts = (
        Effect("selectivity, trained", claim.mean(own), margin=MARGINS["selectivity"]),
        Effect(
            "selectivity, trained minus untrained",
            claim.difference(own, fresh),
            margin=MARGINS["selectivity"],
        ),
        Effect(
            "firing on text / on shuffled characters, trained",
            firing,
            "times",
            above=1.0,
            margin=MARGINS["firing"],
        ),
    )
    return Result(parts, says, seeds=len(found))


def draw(figure, measurements: dict[str, Any]) -> None:
    """Selectivity and firing ratio by layer; the most selective neuron of each layer of the first seed."""
    layers, firing, listed = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    found = measurements["found"]
    for i, kind in enumerate(("trained", "untrained")):
        values = np.array([row[kind]["selectivity"] for row in found])
        ratios = np.array([row[kind]["text"] for row in found]) / np.array(
            [row[kind]["shuffled"] for row in found]
        )
        at = np.arange(values.shape[1])
        for j, row in enumerate(values):
            layers.plot(
                at, row, color=f"C{i}", alpha=0.6, marker="o", markersize=3, label=kind if not j else None
            )
        firing.plot(at, ratios.T, color=f"C{i}", alpha=0.6, marker="o", markersize=3)
    firing.axhline(1, color="C4", linestyle=":")
    firing.set(title="firing, text / shuffled", xlabel="layer", xticks=list(at))
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
