"""How a run learned: the same measurements of its parameters at every saved step, for the part "Watch it learn" of a report.

`learning` takes the parameters of some steps, from `snapshots`, and measures each with the same texts and the same seed, so
that only the parameters differ. `changes` says in sentences what happened when.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxgpt.common.say import count
from jaxgpt.data import prompts
from jaxgpt.data.baselines import Bigram, uniform_loss
from jaxgpt.inspect import changes, heads, token_kinds, word_lists
from jaxgpt.inspect.plain import Names, plain
from jaxgpt.inspect.subject import Subject, affordable_tokens, windows
from jaxgpt.inspect.subject import plain as in_float32
from jaxgpt.model import generation
from jaxgpt.model.gpt import GPT
from jaxgpt.model.paths import named_leaves
from jaxgpt.model.stopping import Stops, TextUntil
from jaxgpt.runs import snapshots
from jaxgpt.runs.load import Run
from jaxgpt.training.steps import token_losses
from jaxgpt.vectors import word_tests, word_vectors
from jaxgpt.vectors.word_vectors import Vectors

TEXTS, LENGTH = 64, 128  # windows to measure the loss on, and their tokens at most
HEADS = 16  # of these windows for the heads' scores
SAMPLES, SAMPLE_TOKENS, TEMPERATURE = 4, 160, 0.8
MAPPED = 80  # tokens on the map
RARE = 1e-5  # tokens with a smaller share of the text are not on the map
POSITIONS = 16  # points of the loss by position
FEWEST_TEXTS = 4
SCORES = 150  # heads whose scores of every kind are kept


class Saved(Mapping):
    """A run's parameters by step, read when accessed: those in RUN/snapshots up to its step, and its own at its step."""

    def __init__(self, run: Run) -> None:
        self._run = run
        earlier = [step for step in snapshots.saved_steps(run.workdir) if step < run.step]
        self._steps = [*earlier, run.step] if earlier else []

    def __getitem__(self, step: int) -> dict:
        return self._run.params if step == self._run.step else snapshots.read(self._run.workdir, step)[2]

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


@dataclass(frozen=True)
class Step:
    """What is measured of the parameters of one step."""

    loss_BT: np.ndarray  # nats per token, of each window
    scores: heads.Heads
    texts: list[str]  # what the model writes
    table_VD: np.ndarray
    moved: dict[str, float]  # distance of each part from its start, relative to the start's norm
    changed: dict[str, bool]  # whether the part differs from its start at all


@functools.partial(jax.jit, static_argnames="model")
def _losses(model: GPT, params: dict, windows_BT: jax.Array) -> jax.Array:
    logits_BTV = model.apply({"params": params}, windows_BT[:, :-1])
    return token_losses(logits_BTV, windows_BT[:, 1:])


def losses_by_window(model: GPT, params: dict, windows_BT: np.ndarray) -> np.ndarray:
    """-log p of every token but the first of windows [B, T + 1]: [B, T]. A few windows at a time, to bound the memory."""
    most = max(1, (1 << 26) // (windows_BT.shape[1] * model.cfg.vocab_size))
    with jax.default_matmul_precision("highest"):
        parts = [
            np.asarray(_losses(model, params, windows_BT[i : i + most]))
            for i in range(0, len(windows_BT), most)
        ]
    return np.concatenate(parts).astype(np.float64)


def parts(params: dict) -> dict[str, list[np.ndarray]]:
    """The parameters by the part of the model that they belong to: token table, block 0 attention, ..."""
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in named_leaves(params):
        words = path.split("/")
        name = " ".join(words[:2]) if words[0].startswith("block_") else words[0]
        name = {"token_embedding": "token table", "position_embedding": "position table"}.get(name, name)
        found.setdefault(name.replace("_", " "), []).append(np.asarray(leaf, np.float64))
    return {name: leaves for name, leaves in found.items() if not name.endswith("norm")}


def _norm(leaves: Iterable[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(leaf).sum() for leaf in leaves)))


def chosen_steps(saved: Sequence[int], most: int) -> list[int]:
    """At most `most` of the saved steps, the first and the last among them, spread over the logarithm of the step."""
    if len(saved) <= most:
        return list(saved)
    wanted = np.expm1(np.linspace(0, np.log1p(saved[-1]), max(most, 2)))
    return sorted({min(saved, key=lambda step: abs(step - at)) for at in wanted} | {saved[0], saved[-1]})


def learning(
    subject: Subject, params_by_step: Mapping[int, dict], names: Names, bigram: Bigram | None, cut: list[str]
) -> dict[str, Any] | None:
    """The part of a report about learning, of the parameters by step (see `payload.payload` for its keys).

    None without a validation text or with fewer than two steps. Too many steps for the time of a report are thinned, and
    `cut` says so.
    """
    cfg = subject.cfg
    length = min(cfg.context_length, LENGTH)
    if len(params_by_step) < 2 or subject.dataset is None or len(subject.dataset.valid.ids) <= length:
        return None
    per_step = affordable_tokens(
        subject.run.params, 2
    )  # for all steps together, twice the budget of another part
    steps = chosen_steps(sorted(params_by_step), max(2, 4 * per_step // (FEWEST_TEXTS * length)))
    if len(steps) < len(params_by_step):
        cut.append(
            f"“Watch it learn” shows {len(steps)} of the {len(params_by_step)} saved steps, because the model is large."
        )
    number = int(np.clip(4 * per_step // (len(steps) * length), FEWEST_TEXTS, TEXTS))
    windows_BT = windows(subject.dataset.valid.ids, number, length + 1)
    kinds_KV = token_kinds.key_masks(subject.run.tokenizer, cfg.num_tokens)
    texts_BT = windows_BT[: min(HEADS, heads.most_texts(subject.plain()[0], length)), :-1]
    half = length // 2
    repeated_BT = heads.repeated_tokens(cfg.vocab_size, half, len(texts_BT)) if half >= 2 else None
    measured: dict[int, Step] = {}
    first: dict[str, list[np.ndarray]] = {}
    for step in steps:
        params = params_by_step[step]
        model, exact = in_float32(cfg, params)
        own = parts(params)
        first = first or own
        measured[step] = Step(
            loss_BT=losses_by_window(model, exact, windows_BT),
            scores=heads.measure(model, exact, texts_BT, repeated_BT, kinds_KV),
            texts=_written(subject, params),
            table_VD=np.asarray(params["token_embedding"]["embedding"], np.float64)[: cfg.vocab_size],
            moved={
                name: _norm(a - b for a, b in zip(own[name], leaves, strict=True)) / (_norm(leaves) or 1.0)
                for name, leaves in first.items()
            },
            changed={
                name: any((a != b).any() for a, b in zip(own[name], leaves, strict=True))
                for name, leaves in first.items()
            },
        )
    fresh = heads.measure(*subject.untrained(1), texts_BT, repeated_BT, kinds_KV)
    pairs_BT = None if bigram is None else np.stack([bigram.nats(window_T) for window_T in windows_BT])
    figures = figures_of(measured, fresh, levels(windows_BT, cfg.vocab_size, bigram), pairs_BT)
    figures["words"] = _known_words(subject, measured)
    figures["map"] = token_map({step: one.table_VD for step, one in measured.items()}, subject, names)
    figures["tests"] = _tests(measured, subject, names)
    figures["on"] = (
        f"{count(len(windows_BT), 'window')} of {length} tokens, evenly spaced over the validation split; the samples all "
        f"start with {subject.run.tokenizer.decode(_prompt(subject))!r}, temperature {TEMPERATURE}, seed 0"
    )
    figures["events"] = changes.events(figures)
    return figures


def levels(windows_BT: np.ndarray, vocab_size: int, bigram: Bigram | None) -> dict[str, float | None]:
    """The baselines' mean losses on the same tokens of windows [B, T + 1]."""
    if bigram is None:
        return {"uniform": plain(uniform_loss(vocab_size)), "unigram": None, "bigram": None}
    unigram = float(-np.log(bigram.unigram_V[windows_BT[:, 1:]]).mean())
    pairs = float(np.mean([bigram.nats(window_T) for window_T in windows_BT]))
    return plain({"uniform": uniform_loss(vocab_size), "unigram": unigram, "bigram": pairs})


def figures_of(
    measured: Mapping[int, Step],
    fresh: heads.Heads,
    baselines: dict[str, float | None],
    pairs_BT: np.ndarray | None = None,
) -> dict[str, Any]:
    """The measurements as curves over the steps.

    `pairs_BT` are the losses of a table of pairs on the same tokens. It can't use the context, so its difference between late
    and early tokens is that of the texts, and is subtracted from the model's.
    """
    losses_SBT = np.stack([one.loss_BT for one in measured.values()])
    S, B, T = losses_SBT.shape
    quarter = max(1, T // 4)
    more_SBT = losses_SBT if pairs_BT is None else losses_SBT - pairs_BT
    late_SB = more_SBT[:, :, -quarter:].mean(axis=-1) - more_SBT[:, :, :quarter].mean(axis=-1)
    ends = np.unique(np.linspace(0, T, min(T, POSITIONS) + 1).astype(int))
    by_position_SP = np.stack([losses_SBT[:, :, a:b].mean(axis=(1, 2)) for a, b in pairwise(ends)], axis=-1)  # fmt: skip
    scores = [one.scores for one in measured.values()]
    kept = (*changes.GENERAL, *heads.PATTERNS)
    if scores[0].previous_token_LH.size > SCORES:
        kept = changes.GENERAL
    patterns = {
        name: {
            "scores": plain(np.stack([one.of(name) for one in scores]), 3),
            "high": plain(fresh.of(name).max(), 3),
            "share": plain(fresh.shares[name], 3) if name in fresh.shares else None,
        }
        for name in kept
    }
    names = list(next(iter(measured.values())).moved)

    def error(values_SB: np.ndarray) -> Any:
        return plain(values_SB.std(axis=1, ddof=1) / np.sqrt(B) if B > 1 else np.full(S, np.nan), 3)

    return {
        "steps": list(measured),
        "levels": baselines,
        "loss": plain(losses_SBT.mean(axis=(1, 2))),
        "loss_error": error(losses_SBT.mean(axis=2)),
        "late": plain(late_SB.mean(axis=1)),
        "late_change_error": error(late_SB - late_SB[:1]),
        "positions": [f"{a + 1}" if b == a + 1 else f"{a + 1} to {b}" for a, b in pairwise(ends)],
        "by_position": plain(by_position_SP, 4),
        "patterns": patterns,
        "parts": names,
        "moved": plain([[one.moved[name] for name in names] for one in measured.values()], 3),
        "changed": [[one.changed[name] for name in names] for one in measured.values()],
        "samples": [one.texts[0] for one in measured.values()],
    }


# --- what the model writes --------------------------------------------------------------------------------


def _prompt(subject: Subject) -> list[int]:
    run = subject.run
    return prompts.sample_ids(run.tokenizer, run.config.train.sample_prompt, subject.cfg.context_length)


def _written(subject: Subject, params: dict) -> list[str]:
    """What the model writes after the run's own prompt, with the same seed at every step."""
    run = subject.run
    passes = affordable_tokens(params, 24)
    tokens = int(np.clip(passes // SAMPLES, 24, SAMPLE_TOKENS))
    pieces = generation.generate_ids(
        run.model, params, [_prompt(subject)], tokens, num_samples=SAMPLES if passes > 4 * tokens else 1,
        sampler=generation.Sampler(temperature=TEMPERATURE), seed=0,
    )  # fmt: skip
    texts = []
    for ids_N in np.concatenate(list(pieces), axis=1):
        written = TextUntil(run.tokenizer, Stops(run.tokenizer.eos_id))
        texts.append(written.add(ids_N) + written.rest())
    return texts


def _known_words(subject: Subject, measured: Mapping[int, Step]) -> list[float | None]:
    """The share of the words with three or more letters in the samples that the training text has too."""
    known = set(_words(subject.run.tokenizer.decode(subject.train_ids())))
    shares = []
    for one in measured.values():
        words = [word for text in one.texts for word in _words(text)]
        shares.append(plain(np.mean([word in known for word in words]), 3) if words else None)
    return shares


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if len(word) >= 3]


# --- the map of tokens ------------------------------------------------------------------------------------


def token_map(tables: Mapping[int, np.ndarray], subject: Subject, names: Names) -> dict[str, Any] | None:
    """The most frequent tokens on two axes that are the same at every step: the principal axes of the last step's rows.

    Rows are weighted with the square root of their frequency, so that rare tokens, whose rows are hardly trained, do not
    choose the axes. Each step is scaled to the same spread: the map shows directions, not the growth of the table.
    """
    counts = [names.count(i) for i in range(subject.cfg.vocab_size)]
    total = sum(n or 0 for n in counts)
    ids = [i for i in names.most_frequent(MAPPED) if total == 0 or (counts[i] or 0) > RARE * total]
    last_VD = tables[max(tables)]
    if len(ids) < 3 or last_VD.shape[1] < 2:
        return None
    weights_P1 = np.sqrt(np.array([(counts[i] or 0) + 1 for i in ids], np.float64))[:, None]
    axes_2D = principal_axes(last_VD[ids], weights_P1)
    figures: dict[str, Any] = {"ids": names.ids(ids), "xy": [], "variance": []}
    for table_VD in tables.values():
        rows_PD = centred(table_VD[ids], weights_P1)
        xy_P2 = rows_PD @ axes_2D.T
        spread = np.sqrt(np.square(xy_P2).mean())
        figures["xy"].append(plain(xy_P2 / (spread or 1.0), 3))
        share = (weights_P1 * np.square(xy_P2)).sum() / ((weights_P1 * np.square(rows_PD)).sum() or 1.0)
        figures["variance"].append(plain(share, 3))
    tokenizer = subject.run.tokenizer
    all_kinds = token_kinds.kinds(tokenizer.token(i) for i in range(tokenizer.vocab_size))
    kinds = [all_kinds[i] for i in ids]
    order = [
        kind for kind in (*token_kinds.LETTERS, *token_kinds.WORDS, *token_kinds.OTHERS) if kind in kinds
    ]
    return figures | {"kinds": order, "kind": [order.index(kind) for kind in kinds]}


def centred(rows_PD: np.ndarray, weights_P1: np.ndarray) -> np.ndarray:
    return rows_PD - (weights_P1 * rows_PD).sum(axis=0) / weights_P1.sum()


def principal_axes(rows_PD: np.ndarray, weights_P1: np.ndarray) -> np.ndarray:
    """The two axes [2, D] with most of the weighted variance. The largest coordinate of each is positive."""
    _, _, axes = np.linalg.svd(np.sqrt(weights_P1) * centred(rows_PD, weights_P1), full_matrices=False)
    largest = np.take_along_axis(axes[:2], np.abs(axes[:2]).argmax(axis=1)[:, None], axis=1)
    return axes[:2] * np.sign(largest)


def _tests(measured: Mapping[int, Step], subject: Subject, names: Names) -> list[dict[str, Any]]:
    """The AUC of each test of the token table (see `word_lists.tests`) at every step, with an interval at the end."""
    words = Vectors(word_vectors.tokens_of(subject.run.tokenizer), list(measured.values())[-1].table_VD)
    found = []
    for test in word_lists.tests(words.row_of_word, names.count):
        estimates = [_auc(one.table_VD, test, 1000 if i == len(measured) - 1 else 2) for i, one in enumerate(measured.values())]  # fmt: skip
        found.append(
            {"name": test.name, "what": test.what, "auc": plain([one.value for one in estimates], 3), "low": plain(estimates[-1].low, 3)}
        )  # fmt: skip
    return found


def _auc(table_VD: np.ndarray, test: word_lists.Test, draws: int) -> word_tests.Estimate:
    if test.others is None:
        return word_tests.related_auc(table_VD, np.array(test.rows), draws)
    return word_tests.group_auc(table_VD, np.array(test.rows), np.array(test.others), draws)
