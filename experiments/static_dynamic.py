"""How similar are the vectors of one word in many contexts, layer by layer?

python -m experiments.static_dynamic [--quick | --full] [--seeds 5]
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, trained
from experiments.claim import Amendment, Check, Effect, Result, Setting
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params

NOTE = 'But they\'re static: "I" always gets the same vector regardless of context. [...] Now, "love" is not just "love", it\'s: "love in the context of I and AI".'
CLAIM = "A word's embedding is the same in every sentence; attention turns it into a vector that depends on the sentence."
PREDICTION = "The cosine of one word in two sentences is 1 at the embedding and falls from block to block."
REFUTED_BY = "Rows that differ, or a cosine after the last block that is not below 1 by 0.05."
DESIGN = (
    "Word models of Shakespeare, one per seed, and the same models untrained. Words with several senses (bank, if it is in "
    "the vocabulary), each at up to 24 places in the text, always as the last word of a window, so that its position is the "
    "same. Cosine of the residual stream at that position between every two contexts of a word, averaged over pairs and then over words: after "
    "the embedding and after each block; as it is, and after subtracting the mean over words, as all vectors of a layer have much in common (different "
    "words have a high cosine too). Each is a condition. For comparison: the cosine between different words."
)
MARGINS = {"cosine": 0.05, "fall": 0.02}
LIMITS = "Shakespeare's banks are all shores: the sentences of a word differ, its senses hardly do."
AMENDMENTS = (
    Amendment(
        "2026-11-26", "The cosine counts with and without the mean over words subtracted, each as a condition, against different words.",
        "All vectors of a layer share a direction: different words have a cosine of 0.915, so that 0.944 within a word says little.", "holds",
    ),
)  # fmt: skip
WORDS = "bank light right still fair present state rest lie mine like well kind blood fall part bear sound may will".split()


@functools.partial(jax.jit, static_argnames="model")
def streams(model: GPT, params: dict, tokens_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """At the last position: rows of the token table [B, E], and the stream after the embedding and after each block
    [1 + layers, B, D]."""
    _, shown = model.apply({"params": params}, tokens_BT, mutable="intermediates")
    shown = shown["intermediates"]
    after = [shown[f"block_{i}"]["after"][0] for i in range(model.cfg.num_layers)]
    return shown["token_rows"][0][:, -1], jnp.stack([x_BTD[:, -1] for x_BTD in (shown["start"][0], *after)])


def contexts(ids: np.ndarray, row: int, length: int, count: int) -> np.ndarray:
    """At most `count` windows [., length] that end in the token, spread over the text."""
    places = np.flatnonzero(ids[length - 1 :] == row) + length - 1
    chosen = (
        places[np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))]
        if len(places)
        else []
    )
    return np.array([ids[at - length + 1 : at + 1] for at in chosen], np.int32).reshape(-1, length)


def pairs_within(unit_BD: np.ndarray) -> float:
    """The mean cosine between every two rows, which have length 1."""
    B = len(unit_BD)
    return float((np.square(unit_BD.sum(axis=0)).sum() - B) / (B * (B - 1)))


def unit(x: np.ndarray) -> np.ndarray:
    """Each vector scaled to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def cosines(model: GPT, params: dict, windows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean cosines [1 + layers] within words, between words, and within words after subtracting the mean over words; and
    the largest difference between a word's rows of the table."""
    vectors, difference = {}, 0.0
    for word, tokens_BT in windows.items():
        rows_BE, x_LBD = (np.asarray(found, np.float64) for found in streams(model, params, tokens_BT))
        difference = max(difference, float(np.abs(rows_BE - rows_BE[0]).max()))
        vectors[word] = x_LBD
    mean_L1D = np.mean([x_LBD.mean(axis=1, keepdims=True) for x_LBD in vectors.values()], axis=0)
    words = {word: [pairs_within(unit(x_BD)) for x_BD in x_LBD] for word, x_LBD in vectors.items()}
    centred = {
        word: [pairs_within(unit(x_BD)) for x_BD in x_LBD - mean_L1D] for word, x_LBD in vectors.items()
    }
    # The product of two means of unit vectors is the mean cosine over all pairs.
    means_WLD = np.stack([unit(x_LBD).mean(axis=1) for x_LBD in vectors.values()])
    between_LVW = np.einsum("VLD,WLD->LVW", means_WLD, means_WLD)
    return {
        "within": np.mean(list(words.values()), axis=0),
        "between": between_LVW[:, *np.triu_indices(len(vectors), 1)].mean(axis=1),
        "centred": np.mean(list(centred.values()), axis=0),
        "difference": difference,
        "words": {word: [words[word][-1], centred[word][-1]] for word in words},
    }


def measure(setting: Setting) -> dict[str, Any]:
    """Cosines by layer, trained and untrained."""
    runs = trained.words(setting)
    dataset = prepare_dataset(runs[0].config.data)
    ids = np.concatenate([dataset.train.ids, dataset.valid.ids])
    length, count = setting.pick(8, 32, 64), setting.pick(4, 24, 24)
    vocabulary = {runs[0].tokenizer.token(i): i for i in range(runs[0].tokenizer.vocab_size)}
    wanted = setting.pick("the and to of i my".split(), WORDS, WORDS)
    windows = {word: contexts(ids, vocabulary[word], length, count) for word in wanted if word in vocabulary}
    windows = {word: found for word, found in windows.items() if len(found) > 1}
    found: dict[str, list[dict]] = {"trained": [], "untrained": []}
    for seed, run in enumerate(runs):
        found["trained"].append(cosines(run.model, run.params, windows))
        fresh = init_params(run.model, jax.random.key(1000 + seed))
        found["untrained"].append(cosines(run.model, fresh, windows))
    by_layer = {
        kind: [claim.mean(values) for values in np.transpose([row["within"] for row in rows])]
        for kind, rows in found.items()
    }
    contexts_of = {word: len(tokens) for word, tokens in windows.items()}
    return {"layers": by_layer, "found": found, "contexts": contexts_of}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    found, contexts_of = measurements["found"], measurements["contexts"]
    layers = [claim.estimate(stored) for stored in measurements["layers"]["trained"]]
    untrained = claim.estimate(measurements["layers"]["untrained"][-1])
    first, last = ([row["within"][at] for row in found["trained"]] for at in (1, -1))
    untrained_last = [row["within"][-1] for row in found["untrained"]]
    first_centred, last_centred = ([row["centred"][at] for row in found["trained"]] for at in (1, -1))
    fresh_centred = [row["centred"][-1] for row in found["untrained"]]
    as_it_is, less_mean = "as it is", "with the mean over words subtracted"
    ones = [1.0] * len(last)
    difference = max(row["difference"] for rows in found.values() for row in rows)
    start = max(abs(1 - row["within"][0]) for rows in found.values() for row in rows)
    between, centred = (
        claim.mean([row[what][-1] for row in found["trained"]]) for what in ("between", "centred")
    )
    bank = (
        f"with bank, in {contexts_of['bank']} contexts"
        if "bank" in contexts_of
        else "without bank, which is too rare"
    )
    says = (
        f"One word in two contexts ({len(contexts_of)} words, {bank}) has cosine 1 at the embedding and "
        f"{', '.join(map(claim.show, layers[1:]))} after blocks 1 to {len(layers) - 1} of the trained models; untrained models have "
        f"{claim.show(untrained)} after the last block. After the last trained block, different words have {claim.show(between)}, "
        f"and one word has {claim.show(centred)} after subtracting the mean over words."
    )
    parts = (
        Check("largest difference between a word's rows of the table", difference, 0.0),
        Check("largest distance from cosine 1 at the embedding, same position", start, 1e-6),
        Effect("1 minus the cosine after the last block, trained", claim.difference(ones, last_centred), under=less_mean, margin=MARGINS["cosine"]),
        Effect("1 minus the cosine after the last block, trained", claim.difference(ones, last), under=as_it_is, margin=MARGINS["cosine"]),
        Effect("cosine after the first block minus that after the last", claim.difference(first_centred, last_centred), under=less_mean, margin=MARGINS["fall"]),
        Effect("cosine after the first block minus that after the last", claim.difference(first, last), under=as_it_is, margin=MARGINS["fall"]),
        Effect("cosine after the last block, untrained minus trained", claim.difference(fresh_centred, last_centred), under=less_mean, margin=MARGINS["fall"]),
        Effect("cosine after the last block, untrained minus trained", claim.difference(untrained_last, last), under=as_it_is, margin=MARGINS["fall"]),
    )  # fmt: skip
    return Result(
        parts, says, seeds=len(last), varies="how similarity is measured",
        headline=f"Two vectors of one word have cosine {np.mean(last):.2f} after the last block, and vectors of different words "
        f"{between.value:.2f}; with the mean over words subtracted, those of one word have {centred.value:.2f}.",
    )  # fmt: skip


LINES = {
    "within": ("o-", "one word"),
    "centred": ("--", "one word, mean subtracted"),
    "between": (":", "different words"),
}


def draw(figure, measurements: dict[str, Any]) -> None:
    """Cosine by layer, trained and untrained, and by word."""
    layers, words = figure.subplots(1, 2, width_ratios=(1, 1.4))
    for i, (kind, rows) in enumerate(measurements["found"].items()):
        at = range(len(rows[0]["within"]))
        for j, row in enumerate(rows):
            for what, (line, label) in LINES.items():
                name = f"{kind}, {label}" if not j else None
                layers.plot(at, row[what], line, color=f"C{i}", alpha=0.6, markersize=3, label=name)
    layers.set(
        ylabel="mean cosine of two vectors", xlabel="blocks passed", xticks=list(at), ylim=(-0.1, 1.05)
    )
    figure.legend(*layers.get_legend_handles_labels(), loc="outside upper center", fontsize=6, ncols=3)
    rows_of = measurements["found"]["trained"]
    last = {
        word: np.mean([row["words"][word] for row in rows_of], axis=0) for word in measurements["contexts"]
    }
    names = sorted(last, key=lambda word: last[word][1])
    for i, (line, label) in enumerate((("o", "cosine"), ("x", "mean subtracted"))):
        words.plot(
            range(len(names)), [last[name][i] for name in names], line, color="C0", markersize=4, label=label
        )
    words.set(ylim=(-0.1, 1.3), ylabel="mean cosine, last block")
    words.legend(fontsize=7, loc="upper left", ncols=2)
    words.set_xticks(
        range(len(names)),
        [f"{name} ({measurements['contexts'][name]})" for name in names],
        rotation=70,
        fontsize=7,
    )
    words.set_xlabel("word (number of contexts)")


if __name__ == "__main__":
    claim.run()
