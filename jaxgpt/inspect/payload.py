"""All numbers of a report as one dictionary of plain JSON values.

Floats are rounded to 5 significant digits (scores to 1e-4, logits to 6 digits, norms and probabilities of the lens to 4);
null stands for a number that there is not. Tokens are ids everywhere, their text is in `vocabulary`. T tokens of the
probe, L layers, H heads, N entries of the ledger. Entry t of a list [T - 1] is about predicting token t + 1 from the
tokens 0 to t.

version      1; of this schema
generated    when; all else is the same each time
cut          [sentence]: what was left out for its size, and how much
missing      [sentence]: what can't be had and why
vocabulary   {"17": {text, count (in the training text, or null), hex (only where its bytes are no UTF-8)}}: every id that
             occurs anywhere
summary      title, workdir, step, saved_steps, num_steps, corpus, tokenizer, vocab_size, train_tokens, valid_tokens,
             text_sha256, num_params, seed, commit, command, started, device (any may be null);
             model: the fields of config.ModelConfig;
             valid: {loss, standard_error (nats a token), tokens, step, from: where it stands} or null;
             measures: [{name, unit, model, uniform, unigram, bigram}], on the same tokens of the validation split;
             curves: {train: {step [], loss []}, valid: {step [], loss [], standard_error []}};
             findings: [{text, view (attention, tokens or embeddings), kind, strength, value, and what to select: layer and
             head, position, or id}], three at most
probe        text, source (a sentence), ids [T]
tokens       nats, bits, probability, rank (1 is the most probable) [T - 1]; entropy [T] nats; bigram_nats and difference
             (nats less the bigram's: below 0 the model is better) [T - 1] or null; mean {nats, bits, bigram_nats}
next         ids, logits [T][20]: the most probable next tokens; temperatures [20]; logsumexp [T][20]: over the whole
             vocabulary; true_logit [T - 1]. p = exp(logit / temperatures[j] - logsumexp[t][j])
attention    layers, heads; scores [L][H][T (T + 1) / 2]: the lower triangle row by row in whole numbers of score_unit, before
             the mask and the softmax; or null, and then weights, the same in weight_unit (for the first tokens only where
             it is shorter); ahead [L][H][T (T - 1) / 2]: the scores above the diagonal, which the mask removes, row by row in
             whole numbers of ahead_unit, or null; window (tokens in sight, or null); scale;
             statistics {relative_entropy, mean_distance, previous_token, induction: {value, untrained [L][H], low, high}}:
             of the run, of the same heads at fresh parameters, and the extremes over all heads of `untrained_models` such
             models; statistics_on: which text; named [{layer, head, kind (previous_token or
             induction), value}]: heads with most of their weight there; repeated {first, second, length}: nats a token on random tokens, and on
             the same again;
             ablation: {loss, tokens, on, mean, zero: {loss, difference, standard_error [L][H]} or null} or null
ledger       entries [N], norms [N][T], contribution_entries [N + 1], contributions [N + 1][T - 1] to the true token's logit,
             logit [T - 1] (their sum, before a soft cap), stream_norm [T], error {stream, logit}
lens         rows [R], ids, p [R][T][5], true_p [R][T - 1]
embeddings   rows, width, steps, start, end (steps), start_is (a sentence);
             neighbours: [{id, start, end: {raw, centred: [[id, cosine] x 8]}, kept (share of the raw ones at the end that
             were so at the start)}], the probe's tokens first, then frequent ones;
             scatter: {ids [P], start, end [P][2], variance: {start, end [2]}, axes (a sentence)} or null;
             pairs: [{name, what, rows (ids, in pairs or alone), count, start, end: {auc, low, high}}];
             analogies: [{family, question [a, b, c] of a - b + c, answer, candidates, chance, found, start, end: {aside, all:
             {rank (of the answer), top [[id, cosine] x 5]}}}]: aside leaves a, b, c out; found: rank 1 then, at the end;
             analogy_families: [{name, questions, chance, start, end: {aside: {value, low, high, count}, all}}]: shares right;
             drift: {steps, cosine {mean, p10, p90}, distance (mean, over the start's length), kept_start, kept_end (share of
             the k nearest that were so at the start, are so at the end), k, followed (rows), moved_most, moved_least
             [[id, cosine]], still (rows that are bit for bit as at the start)} or null
contextual   id, texts [{ids, position, source}] x 2, rows, cosine (of the token's two vectors), others (mean of different
             tokens); or null
positions    kind; shown [P], start, end: cosines between rows, the lower triangle row by row, or null
neurons      on, tokens, activation, gated, layers: [{layer, width, dead, share (mean share of tokens above 0), histogram [10]
             (neurons by that share, 0 to 1), shown: [{neuron, active (its share), written (largest activation x length of what
             it then writes), contexts: [{ids, at (index of the token), value}]}]}]; or null
methods      [{name, formula, function (dotted), source}]
compare      the same of another run on the same text: title, config (what differs: "model.d_model: 128 -> 256"), summary,
             tokens, next, lens, contextual, positions, cut, missing; attention without its tables; embeddings: rows, width,
             steps, pairs, analogies, analogy_families, drift; or null
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgpt.data import baselines
from jaxgpt.inspect import attending, compare, contexts, findings, forward, learned, methods, neurons
from jaxgpt.inspect.capture import capture
from jaxgpt.inspect.plain import Names
from jaxgpt.inspect.subject import Probe, Subject
from jaxgpt.inspect.summary import summary

VERSION = 1


@dataclass(frozen=True)
class Ground:
    """What is the same for every text: found once, where several texts are asked about."""

    bigram: baselines.Bigram | None
    names: Names
    parts: dict[str, Any]  # summary, positions, neurons
    heads: dict[str, Any]  # the attention part but for its tables
    cut: list[str]
    missing: list[str]


def ground(subject: Subject, probe: Probe) -> Ground:
    """Figures of a run itself. Only where it has no text of its own heads are measured on the probe."""
    cut, missing = [], list(subject.missing)
    bigram = counts_V = None
    if subject.dataset is not None:
        train_ids = subject.train_ids()
        bigram = baselines.fit_bigram(train_ids, subject.cfg.vocab_size)
        counts_V = np.bincount(train_ids, minlength=subject.cfg.vocab_size)
    names = Names(subject.run.tokenizer, counts_V)
    parts = {
        "summary": summary(subject, bigram),
        "positions": contexts.positions(subject, cut),
        "neurons": neurons.neurons(subject, names),
    }
    heads = attending.heads_part(subject, probe.ids_T, cut, missing)
    return Ground(bigram, names, parts, heads, cut, missing)


def payload(
    subject: Subject,
    probe: Probe,
    other: Probe | None = None,
    beside: Subject | None = None,
    known: Ground | None = None,
) -> dict[str, Any]:
    """Everything that a report shows; see the module's text for what each key means.

    `other` is a second text that a token of the probe is compared in; `beside` another run, with the same tokens and
    a context that holds the probe (see `compare`); `known` what `ground` gave for this run before.
    """
    known = known or ground(subject, probe)
    names, bigram = known.names.copy(), known.bigram
    cut, missing = [*probe.cut, *known.cut], list(known.missing)
    seen = capture(subject.cfg, subject.run.params, probe.ids_T)
    figures = {
        "version": VERSION,
        "generated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cut": cut,
        "missing": missing,
        "probe": {"text": probe.text, "source": probe.source, "ids": names.ids(probe.ids_T)},
        "tokens": forward.tokens(seen, bigram),
        "next": forward.next_tokens(seen, names),
        "attention": attending.tables(seen, cut) | known.heads,
        "ledger": forward.ledger(seen, cut),
        "lens": forward.lens(seen, names),
        "embeddings": learned.embeddings(subject, names, probe.ids_T, missing),
        "contextual": contexts.contextual(subject, seen, names, other),
        **known.parts,
        "methods": methods.methods(),
        "compare": None,
    }
    figures["summary"] = known.parts["summary"] | {"findings": findings.findings(figures, names)}
    vocabulary = names.vocabulary()
    if beside is not None:
        theirs = payload(beside, probe, other)
        figures["compare"] = compare.side_by_side(subject, beside, theirs)
        vocabulary = theirs["vocabulary"] | vocabulary
    return figures | {"vocabulary": vocabulary}
