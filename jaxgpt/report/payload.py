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
             model: the fields of config.Model;
             valid: {loss, standard_error (nats a token), tokens, step, from: where it stands} or null;
             measures: [{name, unit, model, uniform, unigram, bigram}], on the same tokens of the validation split;
             curves: {train: {step [], loss []}, valid: {step [], loss [], standard_error []}}
probe        text, source (a sentence), ids [T]
tokens       nats, bits, probability, rank (1 is the most probable) [T - 1]; entropy [T] nats; bigram_nats and difference
             (nats less the bigram's: below 0 the model is better) [T - 1] or null; mean {nats, bits, bigram_nats}
next         ids, logits [T][20]: the most probable next tokens; temperatures [20]; logsumexp [T][20]: over the whole
             vocabulary; true_logit [T - 1]. p = exp(logit / temperatures[j] - logsumexp[t][j])
attention    layers, heads; scores [L][H][T (T + 1) / 2]: the lower triangle row by row in whole numbers of score_unit, before
             the mask and the softmax; or null, and then weights, the same in weight_unit (for the first tokens only where
             it is shorter); window (tokens in sight, or null); scale;
             statistics {relative_entropy, mean_distance, previous_token, induction: {value, untrained [L][H], low, high}}:
             of the run, of the same heads at fresh parameters, and the extremes over all heads of `untrained_models` such
             models; statistics_on: which text; repeated {first, second, length}: nats a token on random tokens, and on
             the same again;
             ablation: {loss, tokens, on, mean, zero: {loss, difference, standard_error [L][H]} or null} or null
ledger       entries [N], norms [N][T], contribution_entries [N + 1], contributions [N + 1][T - 1] to the true token's logit,
             logit [T - 1] (their sum, before a soft cap), stream_norm [T], error {stream, logit}
lens         rows [R], ids, p [R][T][5], true_p [R][T - 1]
methods      [{name, formula, function (dotted), source}]
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from jaxgpt import baselines
from jaxgpt.report import attending, forward, methods
from jaxgpt.report.capture import capture
from jaxgpt.report.plain import Names
from jaxgpt.report.subject import Probe, Subject
from jaxgpt.report.summary import summary

VERSION = 1


def payload(subject: Subject, probe: Probe) -> dict[str, Any]:
    """Everything that a report shows; see the module's text for what each key means."""
    cut, missing = list(probe.cut), list(subject.missing)
    bigram = counts_V = None
    if subject.dataset is not None:
        train_ids = subject.train_ids()
        bigram = baselines.fit_bigram(train_ids, subject.cfg.vocab_size)
        counts_V = np.bincount(train_ids, minlength=subject.cfg.vocab_size)
    names = Names(subject.run.tokenizer, counts_V)
    seen = capture(subject.cfg, subject.run.params, probe.ids_T)
    figures = {
        "version": VERSION,
        "generated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cut": cut,
        "missing": missing,
        "summary": summary(subject, bigram),
        "probe": {"text": probe.text, "source": probe.source, "ids": names.ids(probe.ids_T)},
        "tokens": forward.tokens(seen, bigram),
        "next": forward.next_tokens(seen, names),
        "attention": attending.attention(subject, seen, cut),
        "ledger": forward.ledger(seen),
        "lens": forward.lens(seen, names),
        "methods": methods.methods(),
    }
    return figures | {"vocabulary": names.vocabulary()}
