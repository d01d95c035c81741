"""All numbers of a report as one dictionary of JSON values.

Floats have 5 significant digits (scores multiples of 1e-4, logits 6 digits, norms and lens probabilities 4). null is a
missing number. Tokens are ids; their text is in `vocabulary`. Dimensions: T tokens of the probe, L layers, H heads, N ledger
entries. Entry t of a list [T - 1] is about the prediction of token t + 1 from tokens 0 to t.

version      1, the version of this schema
generated    the time; the only value that differs between two reports of one run
cut          [sentence]: what was omitted because of its size
missing      [sentence]: what is unavailable and why
pending      [name]: of `LATER`, what is not computed yet; never in a report, but on the local page while it starts
vocabulary   {"17": {text, count (in the training text, or null), hex (if its bytes are not UTF-8)}}: every id used
summary      title, workdir, step, saved_steps, num_steps, corpus, tokenizer, vocab_size, train_tokens, valid_tokens,
             text_sha256, num_params, seed, commit, command, started, device (any may be null);
             model: the fields of config.ModelConfig;
             valid: {loss, standard_error (nats per token), tokens, step, from: its source} or null;
             measures: [{name, unit, model, uniform, unigram, bigram}], on the same tokens of the validation split;
             texts: [{name, step, loss, standard_error, bits_per_byte, tokens}]: other validation texts, at the last evaluation;
             curves: {train: {step [], loss []}, valid: {step [], loss [], standard_error []}};
             findings: at most three of [{text, view (a key of this payload), at (the element of the page with the evidence), kind,
             strength, value, and what to select: layer, head and statistic, position, or id and centring}]
probe        text, source (a sentence), ids [T]
tokens       nats, bits, probability, rank (1 is the most probable) [T - 1]; entropy [T] nats; bigram_nats and difference
             (nats minus bigram_nats: negative if the model is better) [T - 1] or null; mean {nats, bits, bigram_nats}
next         ids, logits [T][20]: the most probable next tokens; temperatures [20] (with one asked for: 21); logsumexp [T][20]: over the complete
             vocabulary; true_logit [T - 1]. p = exp(logit / temperatures[j] - logsumexp[t][j])
attention    layers, heads; scores [L][H][T (T + 1) / 2]: the lower triangle row by row as multiples of score_unit, before
             the mask and the softmax; or null, then weights [L][H], the same triangle of weights as multiples of weight_unit
             in base64, two characters for each (of the first tokens only, if shorter); ahead [L][H][T (T - 1) / 2]: the masked scores above the diagonal, row by row as multiples
             of ahead_unit, or null; window (visible tokens, or null); scale;
             statistics {relative_entropy, mean_distance, previous_token, induction, copying, and the names of heads.PATTERNS:
             {value, untrained [L][H], low, high, share}}: of the run, of the same heads with fresh parameters, the extremes
             over all heads of `untrained_models` models, and that of a head with equal weights (or null); statistics_on: the text; named [{layer, head, kind, value, share}]: heads with most of their weight
             there; patterns {name: what its keys are}; repeated {first, second, length}: nats per token on a random sequence and on its
             repetition;
             ablation: {loss, tokens, on, mean, zero: {loss, difference, standard_error [L][H]} or null} or null
ledger       entries [N], norms [N][T], contribution_entries [N + 1], contributions [N + 1][T - 1] to the true token's logit,
             logit [T - 1] (their sum, before a soft cap), stream_norm [T], error {stream, logit}
lens         rows [R], ids, p [R][T][5], true_p [R][T - 1]; null at positions that were not asked for
embeddings   rows, width, steps, start, end (steps), start_is (a sentence);
             neighbours: [{id, start, end: {raw, centred: [[id, cosine] x 8]}, kept (share of the raw ones at the end that
             were also there at the start)}], the probe's tokens first, then frequent ones;
             scatter: {ids [P], start, end [P][2], variance: {start, end [2]}, axes (a sentence)} or null;
             pairs: [{name, what, rows (ids, in pairs or alone), count, start, end: {auc, low, high}}];
             analogies: [{family, question [a, b, c] of a - b + c, answer, candidates, chance, found, start, end: {aside, all:
             {rank (of the answer), top [[id, cosine] x 5]}}}]: aside excludes a, b, c; found: rank 1 with aside at the end;
             analogy_families: [{name, questions, chance, start, end: {aside: {value, low, high, count}, all}}]: shares of right answers;
             drift: {steps, cosine {mean, p10, p90}, distance (mean, relative to the norm at the start), kept_start, kept_end (share
             of the k nearest that are also nearest at the start, at the end), k, followed (rows), moved_most, moved_least
             [[id, cosine]], still (number of rows that never changed)} or null
contextual   id, texts [{ids, position, source}] x 2, rows, cosine (of the token's two vectors), others (mean of different
             tokens); or null
positions    kind; shown [P], start, end: cosines between rows, the lower triangle row by row, or null
firing       width, layers: [{neurons [N] (numbers), unit, values: base64 of int8 [N][T], activations over the probe in units}]
neurons      on, tokens, activation, gated, layers: [{layer, width, dead, share (mean share of tokens above 0), histogram [10]
             (neurons by that share, 0 to 1), shown: [{neuron, active (its share), written (largest activation x norm of its
             output weights), contexts: [{ids, at (index of the token), value}]}]}]; or null
learning     what the model was at each of `steps` [S] (ascending; the last is the report's), on the same texts: on (a sentence);
             levels {uniform, unigram, bigram}; loss, loss_error [S] (nats per token, standard error); positions [P] (such as
             "3 to 4"), by_position [S][P]: loss by position in the window; late [S]: loss of the last quarter of the positions less
             that of the first, less the same of the bigram, late_change_error [S]: standard error of its change from the first step; patterns {name: {scores [S][L][H], high (of an
             untrained model), share (of a head with equal weights)}}; parts [N], moved [S][N]: distance from the first
             step relative to its norm, changed [S][N]; samples [S]; words [S]: share of the words in the samples that the training
             text has; tests [{name, what, auc [S], low}]; map: {ids, kinds, kind (of each id), xy [S][P][2], variance [S]} or
             null; events [{kind, text, short, from, to, ...}]: what happened between which steps; or null
health       the statistics of train.stats_every and what is unusual in them (see health.py), or null
methods      [{name, formula, function (dotted), source}]
compare      another run on the same text: title, config (differences, "model.d_model: 128 -> 256"), summary,
             tokens, next, lens, contextual, positions, cut, missing; attention without tables; embeddings: rows, width,
             steps, pairs, analogies, analogy_families, drift; or null
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.data import baselines
from jaxgpt.inspect import (
    attention,
    compare,
    contexts,
    embeddings,
    findings,
    forward,
    health,
    learning,
    methods,
    neurons,
)
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.plain import Names
from jaxgpt.inspect.subject import Probe, Subject
from jaxgpt.inspect.summary import summary

VERSION = 1
WATCH = (
    "No “Watch it learn”: this run kept the parameters of its end only. A run with train.snapshots=log:24 keeps those of 24 "
    "steps."
)


LATER = {  # what takes long in a large model, and how a sentence names it
    "neurons": "the contexts of its neurons",
    "heads": "the scores of its heads",
    "embeddings": "the tests of its token vectors",
}


@dataclass(frozen=True)
class RunFigures:
    """The figures of a run that do not depend on the probe, computed once for several probes."""

    bigram: baselines.Bigram | None
    names: Names
    parts: dict[str, Any]  # summary, positions, health, neurons
    tables: dict[str, np.ndarray]  # the token table at the start and at the end
    scales: embeddings.Scales  # of the tables
    embeddings: dict[str, Any]  # the embeddings part without what depends on the probe
    heads: dict[str, Any]  # the attention part without its tables
    cut: tuple[str, ...]
    missing: tuple[str, ...]
    streams: dict[int, np.ndarray]  # see contexts.contextual
    pending: tuple[str, ...] = ()  # the names in LATER that are not computed yet


def run_figures(subject: Subject, probe: Probe) -> RunFigures:
    """The figures of a run. Head statistics use the probe only if there is no other text, see `attention.uses_probe`."""
    known = first_figures(subject)
    while known.pending:
        known = more_figures(subject, known, probe)
    return known


def first_figures(subject: Subject) -> RunFigures:
    """The figures that a look inside a text needs, without those in `LATER`."""
    cut: list[str] = []
    bigram = counts_V = None
    if subject.dataset is not None:
        train_ids = subject.train_ids()
        bigram = baselines.fit_bigram(train_ids, subject.cfg.vocab_size)
        counts_V = np.bincount(train_ids, minlength=subject.cfg.vocab_size)
    parts = {
        "summary": summary(subject, bigram),
        "positions": contexts.positions(subject, cut),
        "health": health.health(subject.metrics, subject.cfg.num_tokens),
        "neurons": None,
    }
    tables = embeddings.both_tables(subject)
    return RunFigures(
        bigram=bigram,
        names=Names(subject.run.tokenizer, counts_V),
        parts=parts,
        tables=tables,
        scales=embeddings.scales(tables),
        embeddings=embeddings.untested(subject),
        heads=attention.unmeasured(subject),
        cut=tuple(cut),
        missing=subject.missing,
        streams={},
        pending=tuple(LATER),
    )


def more_figures(subject: Subject, known: RunFigures, probe: Probe) -> RunFigures:
    """The same with the first of the pending figures."""
    name, *pending = known.pending
    names, cut, missing = known.names.copy(), list(known.cut), list(known.missing)
    parts: dict[str, Any] = {}
    if name == "neurons":
        parts["parts"] = known.parts | {"neurons": neurons.neurons(subject, names)}
    elif name == "heads":
        parts["heads"] = attention.head_figures(subject, probe.ids_T, cut, missing)
    else:
        parts["embeddings"] = embeddings.of_run(subject, names, known.tables, missing)
    return dataclasses.replace(
        known, names=names, cut=tuple(cut), missing=tuple(missing), pending=tuple(pending), **parts
    )


def payload(
    subject: Subject,
    probe: Probe,
    other: Probe | None = None,
    compared: Subject | None = None,
    known: RunFigures | None = None,
    watched: Mapping[int, dict] | None = None,
    temperature: float | None = None,
    quick_at: int | None = None,
) -> dict[str, Any]:
    """All numbers of a report; the module's docstring explains each key.

    `other` is a second text for the view of one token in two texts. `compared` is another run with the same tokenizer
    and a context that holds the probe (see `compare`). `known` is this run's `run_figures`, if already computed.
    `temperature` is one more at which the next tokens' probabilities are given. `watched` are the run's parameters by
    step (`learning.Saved`), for the part about learning. With `quick_at`, the position that is looked at first, the answer is
    quick for a large model too: the lens is that of this position alone, neighbours and map are left out, and `slow_parts`
    has all of both.
    """
    known = known or run_figures(subject, probe)
    names, bigram = known.names.copy(), known.bigram
    cut, missing = [*probe.cut, *known.cut], list(known.missing)
    seen = capture(subject.cfg, subject.run.params, probe.ids_T)
    if known.pending:
        later = ", ".join(LATER[name] for name in known.pending)
        missing.append(f"Still being computed: {later}. Select the token again in a while to see them.")
    if watched is not None and not len(watched):
        missing.append(WATCH)
    figures = {
        "version": VERSION,
        "generated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cut": cut,
        "missing": missing,
        "pending": list(known.pending),
        "probe": {"text": probe.text, "source": probe.source, "ids": names.ids(probe.ids_T)},
        "tokens": forward.tokens(seen, bigram),
        "next": forward.next_tokens(seen, names, temperature),
        "attention": attention.attention_tables(seen, cut) | known.heads,
        "ledger": forward.ledger(seen, cut),
        "lens": forward.lens(seen, names, None if quick_at is None else [quick_at]),
        "firing": neurons.firing(seen),
        "embeddings": _embeddings(known, names, probe if quick_at is None else None),
        "contextual": contexts.contextual(subject, seen, names, other, known.streams),
        **known.parts,
        "learning": learning.learning(subject, watched or {}, names, bigram, cut),
        "methods": methods.methods(),
        "compare": None,
    }
    figures["summary"] = known.parts["summary"] | {"findings": findings.findings(figures, names)}
    vocabulary = names.vocabulary()
    if compared is not None:
        theirs = payload(compared, probe, other)
        figures["compare"] = compare.compare_part(subject, compared, theirs)
        vocabulary = theirs["vocabulary"] | vocabulary
    return figures | {"vocabulary": vocabulary}


def slow_parts(subject: Subject, probe: Probe, known: RunFigures) -> dict[str, Any]:
    """What a payload with `quick_at` lacks: the lens of all positions, the embeddings, and their vocabulary."""
    names = known.names.copy()
    seen = capture(subject.cfg, subject.run.params, probe.ids_T)
    return {
        "lens": forward.lens(seen, names),
        "embeddings": _embeddings(known, names, probe),
        "vocabulary": names.vocabulary(),
    }


def _embeddings(known: RunFigures, names: Names, probe: Probe | None) -> dict[str, Any]:
    if probe is None:
        return known.embeddings | {"neighbours": [], "scatter": None}
    return known.embeddings | embeddings.of_probe(known.tables, known.scales, names, probe.ids_T)
