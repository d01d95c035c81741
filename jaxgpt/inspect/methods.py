"""How each number of a report is computed: the formula, the function and the paper."""

from __future__ import annotations

METHODS = [
    # name, formula, function, source
    ("loss of a token", "l_t = -log p(x_{t+1} | x_0 .. x_t), in nats; l_t / log 2 in bits", "jaxgpt.inspect.analysis.losses", ""),
    ("validation loss", "mean of l_t over the validation split, in windows of context_length tokens; standard error from the variance between windows", "jaxgpt.training.evaluation.evaluate", "Cochran 1977, section 6.3"),
    ("bits per character, bits per byte", "loss / log 2 x tokens / characters (bytes) of the same text", "jaxgpt.inspect.summary.summary", ""),
    ("perplexity", "exp(loss)", "jaxgpt.training.evaluation.Evaluation", ""),
    ("uniform baseline", "log V", "jaxgpt.data.baselines.uniform_loss", ""),
    ("unigram baseline", "p(b) = (count(b) + 1) / (N + V), counted in the training text", "jaxgpt.data.baselines.unigram_probs", ""),
    ("bigram baseline", "p(b | a) = (count(ab) + t(a) p(b)) / (count(a) + t(a)), where t(a) is the number of different tokens after a", "jaxgpt.data.baselines.Bigram", "Witten and Bell 1991"),
    ("rank", "1 + the number of tokens with a higher logit", "jaxgpt.inspect.forward.tokens", ""),
    ("entropy", "-sum over v of p(v) log p(v), in nats", "jaxgpt.inspect.analysis.entropies", ""),
    ("next token at temperature s", "p(v) = exp(z_v / s - log sum over all w of exp(z_w / s))", "jaxgpt.inspect.forward.next_tokens", ""),
    ("attention scores", "q k / sqrt(K), before the mask", "jaxgpt.model.attention.attention_scores", "Vaswani et al. 2017, equation 1"),
    ("attention weights", "softmax over the keys that the mask allows; exactly 0 elsewhere", "jaxgpt.model.attention.attention_weights", "Vaswani et al. 2017, equation 1"),
    ("relative entropy of a head", "entropy of a row of weights / log(number of visible keys), mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("mean distance of a head", "sum over keys of weight x distance in tokens, mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("previous-token score", "weight on the previous token, mean over rows", "jaxgpt.inspect.heads.measure", ""),
    ("induction score", "on R random tokens repeated once: weight of position t of the second copy on position t - R + 1, mean over t", "jaxgpt.inspect.heads.measure", "Olsson et al. 2022, prefix matching score, with one repetition"),
    ("weight on a kind of key", "weight on all visible keys of the kind (or on the last one) after the first token of the text, mean over the queries that see one and another key; equal weights: the share of such keys", "jaxgpt.inspect.heads.measure", ""),
    ("job of a head", "a weight above 0.5, above every untrained head's and above twice that of equal weights", "jaxgpt.inspect.attention.named", ""),
    ("copying score", "rank of the most attended token among the text's tokens by what the head adds to their logits, 0 to 1, mean over queries; chance 0.5", "jaxgpt.inspect.attention.copying_scores", "Elhage et al. 2021"),
    ("what happened when", "a change is between the last step with at most a quarter of it and the first from which three quarters stay; smaller changes than the rules ask for are not named", "jaxgpt.inspect.changes.events", ""),
    ("map of tokens over the steps", "projection on the two principal axes of the last step's rows, weighted by the square root of the token's count; each step at the same spread", "jaxgpt.inspect.learning.token_map", "Pearson 1901"),
    ("use of the context", "loss of the last quarter of the positions less that of the first, less the same of the bigram", "jaxgpt.inspect.learning.figures_of", "Olsson et al. 2022, in-context learning score"),
    ("untrained heads", "the same statistics of models with fresh parameters: `untrained` uses this run's seed; low and high are the extremes over all heads of all models", "jaxgpt.inspect.subject.Subject", ""),
    ("loss without a head", "zero: the head's output is replaced by 0; mean: by its mean over this text. Standard error of the paired differences between windows", "jaxgpt.inspect.interventions.ablate_heads", "Michel et al. 2019; Wang et al. 2023"),
    ("ledger", "stream before the final norm = token + position + heads + biases + MLPs", "jaxgpt.inspect.analysis.ledger", "Elhage et al. 2021"),
    ("contribution to a logit", "final norm of the entry, at the scale of the complete stream, times the token's output row; the sum is the logit before the soft cap", "jaxgpt.inspect.analysis.contributions", "Elhage et al. 2021"),
    ("logit lens", "softmax of the logits after each block, by the final norm and the output table", "jaxgpt.inspect.analysis.logit_lens", "nostalgebraist 2020"),
    ("neighbours", "rows with the highest cosine; centred: after subtracting the mean row", "jaxgpt.vectors.nearest.nearest", ""),
    ("map of the embeddings", "projection on the first two principal axes of the shown rows at the end; share of each table's variance along them", "jaxgpt.vectors.geometry.principal_axes", "Pearson 1901"),
    ("related pairs, AUC", "how often a pair has a higher cosine than a word and another pair's word; interval: bootstrap over pairs", "jaxgpt.vectors.word_tests.related_auc", ""),
    ("groups, AUC", "how often two members have a higher cosine than a member and a non-member; interval: bootstrap over members", "jaxgpt.vectors.word_tests.group_auc", ""),
    ("analogies", "the row with the highest cosine to a - b + c (rows of length 1), with a, b, c excluded and with all rows; chance 1 / (V - 3)", "jaxgpt.vectors.word_tests.analogies", "Mikolov et al. 2013, 3CosAdd"),
    ("share of analogies", "right / asked; the interval assumes independent questions, but some share words", "jaxgpt.vectors.word_tests.proportion", "Wilson 1927"),
    ("drift", "cosine and distance of each row to its start; share of its neighbours that it also has at the start and at the end", "jaxgpt.vectors.geometry.drift", ""),
    ("one token in two texts", "cosine of its two vectors after each block, and the mean cosine of different tokens", "jaxgpt.inspect.contexts.contextual", "Ethayarajh 2019"),
    ("position table", "cosine between rows", "jaxgpt.inspect.contexts.positions", ""),
    ("neurons", "hidden units of the MLP after the activation: largest values, share of tokens above 0; dead: never above 0 (gated: always 0)", "jaxgpt.inspect.neurons.fire", ""),
    ("findings", "the strongest finding of each kind; of these the three strongest", "jaxgpt.inspect.findings.findings", ""),
]  # fmt: skip


def methods() -> list[dict[str, str]]:
    """The rows as dictionaries: name, formula, function (dotted), source."""
    return [dict(zip(("name", "formula", "function", "source"), row, strict=True)) for row in METHODS]
