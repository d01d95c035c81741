"""Do the neurons of the MLP respond to patterns?

python -m experiments.neurons [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from experiments import claim, trained
from experiments.claim import Amendment, Effect, Outdated, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.data.tokenizers import Tokenizer
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.runs.load import Run

NOTE = "In ReLu activation the thinking happens, neuron get's activated if the model recognizes the pattern else not."
CLAIM = "The MLP's ReLU neurons recognize patterns: a neuron fires in some contexts and not in others."
PREDICTION = "Trained neurons fire in a few contexts far more often than chance, and more so than random directions of the same stream."
REFUTED_BY = "Neurons no more selective than random directions of the trained stream, or that fire as often on shuffled characters."
DESIGN = (
    "Character models of Shakespeare, one per seed. A neuron fires if its activation is among its highest 1 % on the first half "
    "of some validation text. From that half: the five three-character contexts in which it fires most often (fewer, if it fired in fewer). Selectivity, on "
    "the other half: the share of its firings that are in one of these contexts, minus the share of all positions that are; 0 for a neuron that "
    "fires anywhere, 1 for one that fires in these contexts alone. Compared with untrained models, and with random directions of the trained stream: each "
    "neuron's input weights are replaced by random ones of the same length, in one layer at a time. Firing ratio: how "
    "often a neuron fires on the other half, divided by how often it fires on the same characters shuffled (1 for a neuron that responds to "
    "single characters, above 1 for one that responds to sequences)."
)
MARGINS = {"selectivity": 0.05, "firing": 0.05}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Only contexts in which a neuron fired count, and random directions of the trained stream are a control.",
        "The five contexts were filled up with others in the order of their ids; untrained models differ in more than their neurons.", "holds",
    ),
)  # fmt: skip
KINDS = ("trained", "untrained", "random")
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


def random_activations(model: GPT, params: dict, windows_WT: np.ndarray) -> list[np.ndarray]:
    """As `activations`, with random directions in place of the neurons of each layer; the stream is the trained one."""
    return [
        activations(model, random_directions(params, layer, seed=layer), windows_WT)[layer]
        for layer in range(model.cfg.num_layers)
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
    """The selectivity of each neuron [F] (nan if it hardly fires) and its patterns [F, PATTERNS] in the first half, -1 where it
    fired in fewer."""
    values, ids_N = np.unique(patterns_N, return_inverse=True)
    half = len(ids_N) // 2
    chance_P = np.bincount(ids_N[half:], minlength=len(values)) / (len(ids_N) - half)
    found, top = np.full(active_NF.shape[1], np.nan), np.full((active_NF.shape[1], PATTERNS), -1)
    for f, limit in enumerate(thresholds(active_NF)):
        fires_N = active_NF[:, f] > limit
        counts_P = np.bincount(ids_N[:half][fires_N[:half]], minlength=len(values))
        chosen = np.argsort(-counts_P, kind="stable")[:PATTERNS]
        chosen = chosen[counts_P[chosen] > 0]
        top[f, : len(chosen)] = values[chosen]
        fired = ids_N[half:][fires_N[half:]]
        if len(fired) >= FEWEST:
            found[f] = np.isin(fired, chosen).mean() - chance_P[chosen].sum()
    return found, top


def random_directions(params: dict, layer: int, seed: int) -> dict:
    """The parameters with other input weights of one layer's neurons: random, and each as long as it was."""
    block = params[f"block_{layer}"]
    kernel_DF = np.asarray(block["mlp"]["up"]["kernel"])
    random_DF = np.random.default_rng(seed).standard_normal(kernel_DF.shape, np.float32)
    random_DF *= np.linalg.norm(kernel_DF, axis=0) / np.linalg.norm(random_DF, axis=0)
    up = block["mlp"]["up"] | {"kernel": random_DF}
    return params | {f"block_{layer}": block | {"mlp": block["mlp"] | {"up": up}}}


def as_text(pattern: int, tokenizer: Tokenizer, V: int) -> str:
    """The characters of a pattern."""
    return tokenizer.decode([pattern // V ** (SPAN - 1 - i) % V for i in range(SPAN)])


def look(run: Run, windows_WT: np.ndarray, shuffled_WT: np.ndarray, seed: int) -> dict[str, Any]:
    """By layer, trained, untrained and for random directions: the mean selectivity and how often neurons fire, on text and on
    shuffled text; and the most selective neuron of each trained layer."""
    V = run.config.model.vocab_size
    kinds = {
        "trained": run.params,
        "untrained": init_params(run.model, jax.random.key(1000 + seed)),
        "random": run.params,
    }
    found: dict[str, Any] = {"positive": [], "silent": [], "neurons": []}
    patterns_N = patterns_at(windows_WT, V)
    for kind, params in kinds.items():
        activations_of = random_activations if kind == "random" else activations
        rows = found[kind] = {"selectivity": [], "text": [], "shuffled": []}
        on_text, on_shuffled = (
            activations_of(run.model, params, tokens) for tokens in (windows_WT, shuffled_WT)
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
                contexts = [as_text(int(p), run.tokenizer, V) for p in top_FP[best] if p >= 0]
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
    if "random" not in found[0]:
        raise Outdated("contexts in which each neuron did fire, and random directions of the stream")

    def of(kind: str, what: str) -> list[float]:
        return [float(np.mean(row[kind][what])) for row in found]

    own, fresh, random = (of(kind, "selectivity") for kind in KINDS)
    firing, fresh_firing, random_firing = (
        claim.ratio(of(kind, "text"), of(kind, "shuffled")) for kind in KINDS
    )
    best = max(
        (neuron for row in found for neuron in row["neurons"]), key=lambda neuron: neuron["selectivity"]
    )
    positive, silent = (np.mean([row[what] for row in found]) for what in ("positive", "silent"))
    says = (
        f"The mean selectivity of a neuron is {claim.show(claim.mean(own))} (untrained {claim.show(claim.mean(fresh))}, random directions of the trained "
        f"stream {claim.show(claim.mean(random))}). It fires {claim.show(firing)} times as often on text as on shuffled characters (untrained "
        f"{claim.show(fresh_firing)}, random directions {claim.show(random_firing)}). "
        f"{positive:.0%} of activations are above 0, and {silent:.0%} of neurons hardly ever fire. The most selective neuron "
        f"(layer {best['layer']}, selectivity {best['selectivity']:.2f}) fires after {', '.join(map(repr, best['contexts']))}."
    )
    parts = (
        Effect(
            "selectivity, neurons minus random directions of the stream",
            claim.difference(own, random),
            margin=MARGINS["selectivity"],
        ),
        Effect("selectivity of trained neurons", claim.mean(own), margin=MARGINS["selectivity"]),
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
    return Result(
        parts, says, seeds=len(found),
        headline=f"Of the selectivity of trained neurons ({np.mean(own):.2f}), random directions of the same stream have {np.mean(random):.2f}.",
    )  # fmt: skip


def draw(figure, measurements: dict[str, Any]) -> None:
    """Selectivity and firing ratio by layer; the most selective neuron of each layer of the first seed."""
    layers, firing, listed = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    found = measurements["found"]
    for i, kind in enumerate(KINDS):
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
    firing.set(ylabel="firing on text / on shuffled characters", xlabel="layer", xticks=list(at))
    layers.set(ylabel="mean selectivity of neurons", xlabel="layer", xticks=list(at), ylim=(0, None))
    figure.legend(*layers.get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=7)
    listed.axis("off")
    listed.set_title("the most selective neuron of each layer, first seed", fontsize=8)
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
