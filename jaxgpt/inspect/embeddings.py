"""The part of a report about the token embeddings: neighbours, map, tests and drift, at the start and the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.inspect import word_lists
from jaxgpt.inspect.plain import Names, plain
from jaxgpt.inspect.subject import Subject
from jaxgpt.runs import records
from jaxgpt.vectors import geometry, nearest, tables, word_tests, word_vectors
from jaxgpt.vectors.word_vectors import Vectors

NEIGHBOURS = 8
ASKED = 60  # tokens whose neighbours are listed
SCATTERED = 200  # tokens on the map
ANALOGIES = 8  # questions listed one by one
FOLLOWED = 400  # rows whose neighbours are compared over the steps
DRAWS = 1000  # bootstrap samples


class History(Mapping):
    """The token tables by step: those in RUN/embeddings, read when accessed, and the run's own at its step."""

    def __init__(self, subject: Subject) -> None:
        run = subject.run
        self._workdir, self._tokenizer = Path(run.workdir), run.tokenizer
        self._end = run.step
        self._steps = [s for s in tables.saved_steps(self._workdir) if s < run.step] + [run.step]
        table = np.asarray(run.params["token_embedding"]["embedding"], np.float32)
        self.end_ND = table[: subject.cfg.vocab_size]

    def __getitem__(self, step: int) -> np.ndarray:
        if step == self._end:
            return self.end_ND
        return tables.read_snapshot(self._workdir, step, "token", self._tokenizer).values

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __iter__(self) -> Iterator[int]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def both_tables(subject: Subject) -> dict[str, np.ndarray]:
    """The token table at the start and at the end."""
    history = History(subject)
    return {"start": _start(subject, history), "end": history.end_ND}


# Of each table, raw and centred: the mean that is subtracted (or None), and the length of each row after that.
Scales = dict[str, dict[str, tuple[np.ndarray | None, np.ndarray]]]


def scales(both: dict[str, np.ndarray]) -> Scales:
    """What `of_probe` needs of the tables, which does not depend on the probe."""
    means = {when: {"raw": None, "centred": nearest.mean_row(table_ND)} for when, table_ND in both.items()}
    return {
        when: {kind: (mean_D, nearest.lengths(both[when], mean_D)) for kind, mean_D in kinds.items()}
        for when, kinds in means.items()
    }


def of_probe(
    both: dict[str, np.ndarray], scales: Scales, names: Names, probe_T: np.ndarray
) -> dict[str, Any]:
    """The neighbours of the probe's tokens, then of frequent ones; and the map of frequent tokens.

    Where the training text is unavailable, the map shows the probe's tokens first.
    """
    asked = _asked(names, probe_T)
    shown = asked if not names.counted else _asked(names, probe_T[:0])
    return {
        "neighbours": _neighbours(both, scales, asked[:ASKED], names),
        "scatter": _scatter(both, shown[:SCATTERED], names),
    }


def untested(subject: Subject) -> dict[str, Any]:
    """The part before `of_run`: the facts of the token table alone."""
    history = History(subject)
    return {
        "rows": len(history.end_ND),
        "width": history.end_ND.shape[1],
        "steps": list(history),
        "start": 0,
        "end": subject.run.step,
        "start_is": _start_is(subject, history),
        "pairs": [],
        "analogies": [],
        "analogy_families": [],
        "drift": None,
    }


def of_run(subject: Subject, names: Names, both: dict[str, np.ndarray], missing: list[str]) -> dict[str, Any]:
    """Tests and drift of the token table. `both` are the `both_tables`. Adds notes to `missing`."""
    history = History(subject)
    words = Vectors(word_vectors.tokens_of(subject.run.tokenizer), both["end"])
    figures = untested(subject) | {"pairs": _pairs(both, words, names), **analogies(both, words, names)}
    if len(history) < 2 or 0 not in history:
        missing.append(
            "No drift of the embeddings: the run saved no table of step 0 (train.embedding_snapshots)."
        )
        return figures
    return figures | {"drift": drift(history, names)}


def _imported(subject: Subject) -> bool:
    """Whether the run's step 0 is a model of another tool."""
    return records.imported_from(subject.run.workdir) is not None and not subject.run.step


def _start_is(subject: Subject, history: History) -> str:
    if 0 in history and not _imported(subject):
        return "the table that the run saved at step 0"
    why = "its step 0 is the model itself" if _imported(subject) else "it saved no table of step 0"
    return f"fresh parameters from the run's seed, because {why}"


def _start(subject: Subject, history: History) -> np.ndarray:
    if 0 in history and not _imported(subject):
        return history[0]
    table = np.asarray(subject.untrained()[1]["token_embedding"]["embedding"], np.float32)
    return table[: subject.cfg.vocab_size]


def _asked(names: Names, probe_T: np.ndarray) -> np.ndarray:
    """The probe's tokens, then the most frequent tokens of the training text, without duplicates."""
    first = list(dict.fromkeys(probe_T.tolist()))
    others = names.most_frequent(SCATTERED + len(first))
    return np.array(list(dict.fromkeys([*first, *others])), np.int64)


def _neighbours(
    both: dict[str, np.ndarray], scales: Scales, asked: np.ndarray, names: Names
) -> list[dict[str, Any]]:
    found = {
        when: {
            kind: nearest.nearest(
                both[when],
                both[when][asked],
                NEIGHBOURS,
                exclude_QE=asked[:, None],
                mean_D=mean_D,
                lengths_N=lengths_N,
            )
            for kind, (mean_D, lengths_N) in kinds.items()
        }
        for when, kinds in scales.items()
    }
    rows = []
    for i, token in enumerate(asked):
        row: dict[str, Any] = {"id": names.ids(token)}
        for when, kinds in found.items():
            row[when] = {kind: _listed(ids[i], scores[i], names) for kind, (ids, scores) in kinds.items()}
        start, end = (set(found[when]["raw"][0][i].tolist()) for when in ("start", "end"))
        rows.append(row | {"kept": plain(len(start & end) / max(len(end), 1), 3)})
    return rows


def _listed(ids: np.ndarray, scores: np.ndarray, names: Names) -> list[list]:
    return [[names.ids(i), plain(score, 3)] for i, score in zip(ids, scores, strict=True)]


def _scatter(both: dict[str, np.ndarray], asked: np.ndarray, names: Names) -> dict[str, Any] | None:
    """Both tables on the first two principal axes of the shown rows at the end."""
    if len(asked) < 3 or both["end"].shape[1] < 2:
        return None
    _, axes_2D, _ = geometry.principal_axes(both["end"][asked], 2)
    figures: dict[str, Any] = {"ids": names.ids(asked), "variance": {}}
    for when, table_ND in both.items():
        rows_PD = table_ND[asked].astype(np.float64)
        rows_PD -= rows_PD.mean(axis=0)
        xy_P2 = rows_PD @ axes_2D.T
        figures[when] = plain(xy_P2, 4)
        figures["variance"][when] = plain(np.square(xy_P2).sum(axis=0) / np.square(rows_PD).sum(), 4)
    axes = f"the first two principal axes of these {len(asked)} rows at the end, with each table centred"
    return figures | {"axes": axes}


def _estimate(found: word_tests.Estimate) -> dict[str, Any]:
    return plain({"auc": found.value, "low": found.low, "high": found.high}, 4)


def auc(table_ND: np.ndarray, test: word_lists.Test) -> word_tests.Estimate:
    """A table's AUC in a test of pairs or of a group."""
    if test.others is None:
        return word_tests.related_auc(table_ND, np.array(test.rows), DRAWS)
    return word_tests.group_auc(table_ND, np.array(test.rows), np.array(test.others), DRAWS)


def _pairs(both: dict[str, np.ndarray], words: Vectors, names: Names) -> list[dict[str, Any]]:
    return [
        {
            "name": test.name,
            "what": test.what,
            "rows": names.ids(np.array(test.rows[:40])),
            "count": len(test.rows),
            **{when: _estimate(auc(table_ND, test)) for when, table_ND in both.items()},
        }
        for test in word_lists.tests(words.row_of_word, names.count)
    ]


def analogies(both: dict[str, np.ndarray], words: Vectors, names: Names) -> dict[str, Any]:
    """Some analogy questions one by one, and the share of right answers by family."""
    families, shown = [], []
    V = len(both["end"])
    for name, pairs in word_lists.families(words.row_of_word, names.count).items():
        abcd_Q4 = np.array([[*one, *other[::-1]] for one in pairs for other in pairs if one != other])
        chance = plain(1 / max(V - 3, 1), 3)
        family: dict[str, Any] = {"name": name, "questions": len(abcd_Q4), "chance": chance}
        for when, table_ND in both.items():
            aside_Q, all_Q = word_tests.analogies(table_ND, abcd_Q4)
            share = word_tests.proportion(int(aside_Q.sum()), len(aside_Q))
            family[when] = plain({"aside": vars(share), "all": all_Q.mean()}, 4)
        families.append(family)
        shown += [(name, abcd) for abcd in abcd_Q4[:: len(pairs)][: max(2, ANALOGIES // 3)]]
    return {
        "analogies": [_analogy(both, name, abcd, names) for name, abcd in shown[:ANALOGIES]],
        "analogy_families": families,
    }


def _analogy(both: dict[str, np.ndarray], name: str, abcd_4: np.ndarray, names: Names) -> dict[str, Any]:
    abc, answer = abcd_4[None, :3], int(abcd_4[3])
    figures: dict[str, Any] = {
        "family": name,
        "question": names.ids(abcd_4[:3]),
        "answer": names.ids(answer),
        "candidates": len(both["end"]) - 3,
        "chance": plain(1 / max(len(both["end"]) - 3, 1), 3),
    }
    for when, table_ND in both.items():
        query = word_tests.analogy_queries(table_ND, abc)
        figures[when] = {}
        for how, aside in (("aside", abc), ("all", None)):
            ids, scores = nearest.nearest(table_ND, query, 5, exclude_QE=aside)
            rank = word_tests.answer_rank(table_ND, abcd_4[None], aside is not None)
            figures[when][how] = {"rank": int(rank[0]), "top": _listed(ids[0], scores[0], names)}
    return figures | {"found": figures["end"]["aside"]["rank"] == 1}


def drift(tables_by_step: Mapping[int, np.ndarray], names: Names) -> dict[str, Any]:
    """How rows and their neighbours moved over the steps. `still` counts rows that never moved."""
    found = geometry.drift(tables_by_step, NEIGHBOURS, FOLLOWED)
    last = found[-1]
    still_N = np.stack([at.distance_N for at in found]).max(axis=0) == 0
    order = np.argsort(last.cosine_N, kind="stable")
    low, high = np.percentile([at.cosine_N for at in found], [10, 90], axis=1)
    moved = [i for i in order if not still_N[i]]

    def listed(ids: list) -> list[list]:
        return [[names.ids(i), plain(last.cosine_N[i], 3)] for i in ids[:NEIGHBOURS]]

    return {
        "steps": [at.step for at in found],
        "cosine": plain({"mean": [at.cosine_N.mean() for at in found], "p10": low, "p90": high}, 4),
        "distance": plain([at.distance_N.mean() for at in found], 4),
        "kept_start": plain([at.kept_start for at in found], 4),
        "kept_end": plain([at.kept_end for at in found], 4),
        "k": NEIGHBOURS,
        "followed": min(FOLLOWED, len(still_N)),
        "moved_most": listed(moved),
        "moved_least": listed(moved[::-1]),
        "still": int(still_N.sum()),
    }
