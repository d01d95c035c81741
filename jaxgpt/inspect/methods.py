"""How each number of a report is computed: a formula, the function, and where it comes from."""

from __future__ import annotations

METHODS = [
    # name, formula, function, source
    ("loss of a token", "l_t = -log p(x_{t+1} | x_0 .. x_t), in nats; l_t / log 2 in bits", "jaxgpt.inspect.analysis.losses", ""),
    ("validation loss", "mean of l_t over the validation split, in windows of the context's length; its standard error from the spread between windows", "jaxgpt.training.evaluation.evaluate", "Cochran 1977, section 6.3"),
    ("bits a character, bits a byte", "loss / log 2 x tokens / characters (bytes) of the same text", "jaxgpt.inspect.summary.summary", ""),
    ("perplexity", "exp(loss)", "jaxgpt.training.evaluation.Evaluation", ""),
    ("uniform baseline", "log V", "jaxgpt.data.baselines.uniform_loss", ""),
    ("unigram baseline", "p(b) = (count(b) + 1) / (N + V), counted in the training text", "jaxgpt.data.baselines.unigram_probs", ""),
    ("bigram baseline", "p(b | a) = (count(ab) + t(a) p(b)) / (count(a) + t(a)), t(a) the number of different followers of a", "jaxgpt.data.baselines.Bigram", "Witten and Bell 1991"),
    ("rank", "1 + the number of tokens with a higher logit", "jaxgpt.inspect.forward.tokens", ""),
    ("entropy", "-sum over v of p(v) log p(v), in nats", "jaxgpt.inspect.analysis.entropies", ""),
    ("next token at temperature s", "p(v) = exp(z_v / s - log sum over all w of exp(z_w / s))", "jaxgpt.inspect.forward.next_tokens", ""),
    ("attention scores", "q k / sqrt(K), before the mask", "jaxgpt.model.attention.attention_scores", "Vaswani et al. 2017, equation 1"),
    ("attention weights", "softmax over the keys that the mask allows; exactly 0 elsewhere", "jaxgpt.model.attention.attention_weights", "Vaswani et al. 2017, equation 1"),
    ("relative entropy of a head", "entropy of a row of weights / log(keys in sight), mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("mean distance of a head", "sum over keys of weight x tokens back, mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("previous-token score", "weight of the key just before, mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("induction score", "on R random tokens that come twice: weight that position t of the second copy gives to position t - R + 1, mean over them", "jaxgpt.inspect.heads.measure", "Olsson et al. 2022, prefix matching score, with one repetition"),
    ("untrained heads", "the same figures of models with fresh parameters: the first has those that this run's seed gives, low and high are over all heads of all of them", "jaxgpt.inspect.subject.Subject", ""),
    ("loss without a head", "zero: its output is 0; mean: its output is its mean over this text. The difference's standard error is that of the paired differences between windows", "jaxgpt.inspect.interventions.ablate_heads", "Michel et al. 2019; Wang et al. 2023"),
    ("ledger", "stream before the final norm = token + position + heads + biases + MLPs", "jaxgpt.inspect.analysis.ledger", "Elhage et al. 2021"),
    ("contribution to a logit", "entry x norm's scale at the whole stream . the token's output row; they add up to the logit before the soft cap", "jaxgpt.inspect.analysis.contributions", "Elhage et al. 2021"),
    ("logit lens", "softmax of the final norm and the output table applied after each block", "jaxgpt.inspect.analysis.logit_lens", "nostalgebraist 2020"),
    ("neighbours", "rows with the highest cosine; centred: after the mean row is taken away", "jaxgpt.vectors.nearest.nearest", ""),
    ("map of the embeddings", "the first two principal axes of the shown rows at the end, the start on the same axes; share of each table's own variance along them", "jaxgpt.vectors.geometry.principal_axes", "Pearson 1901"),
    ("related pairs, AUC", "how often a pair has a higher cosine than one with another pair's word; interval: bootstrap over pairs", "jaxgpt.vectors.word_tests.related_auc", ""),
    ("groups, AUC", "how often two of a group have a higher cosine than one of it and one of the others; interval: bootstrap over members", "jaxgpt.vectors.word_tests.group_auc", ""),
    ("analogies", "the row nearest to a - b + c of rows of length 1, with a, b, c set aside and with all rows; chance 1 / (V - 3)", "jaxgpt.vectors.word_tests.analogies", "Mikolov et al. 2013, 3CosAdd"),
    ("share of analogies", "right / asked; interval as if questions were independent, which those that share words are not", "jaxgpt.vectors.word_tests.proportion", "Wilson 1927"),
    ("drift", "cosine and distance of each row to its start; share of the nearest that were so at the start, and are so at the end", "jaxgpt.vectors.geometry.drift", ""),
    ("one token in two texts", "cosine of its two vectors at each depth, beside the mean cosine of different tokens", "jaxgpt.inspect.contexts.contextual", "Ethayarajh 2019"),
    ("position table", "cosine between rows", "jaxgpt.inspect.contexts.positions", ""),
    ("neurons", "hidden units of the MLP after the activation: largest values, share of tokens above 0; dead: never above 0 (gated: never other than 0)", "jaxgpt.inspect.neurons.fire", ""),
    ("findings", "the strongest of each kind, then the three strongest", "jaxgpt.inspect.findings.findings", ""),
]  # fmt: skip


def methods() -> list[dict[str, str]]:
    """name, formula, dotted name of the function, paper."""
    return [dict(zip(("name", "formula", "function", "source"), row, strict=True)) for row in METHODS]
