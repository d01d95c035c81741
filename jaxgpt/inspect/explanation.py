"""The text of `jaxgpt.explain`: one forward pass step by step, with shapes and real numbers.

Every number printed comes from `capture` or `analysis`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from jaxgpt import config
from jaxgpt.common.say import count
from jaxgpt.data import tokenizers
from jaxgpt.inspect import analysis
from jaxgpt.inspect.capture import Capture, names_of
from jaxgpt.inspect.explained import Explained
from jaxgpt.model.linear import LINEAR

LABEL = 11  # characters of a row's name
CELL = 8  # characters of a number
LIKELIEST = 3  # next tokens printed per position
ENTRIES = 24  # minimum rows printed for sums over layers


def _number(x: float) -> str:
    if math.isinf(x):
        return "-inf" if x < 0 else "inf"
    if math.isnan(x):
        return "-"
    return f"{x:.3g}" if abs(x) >= 1_000 else f"{x:.3f}"


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


def _shape(values: np.ndarray) -> str:
    return str(list(np.shape(values)))


def table(
    values: np.ndarray,
    rows: Sequence[str],
    width: int,
    columns: Sequence[str] = (),
    height: int | None = None,
) -> Iterator[str]:
    """An array [rows, columns] as lines, cut to `width` columns and `height` rows (default: width)."""
    height = height or width
    indent, wide = "   ", values.shape[1] > width
    if columns:
        cells = [_fit(name, CELL - 1).rjust(CELL) for name in columns[:width]]
        yield indent + " " * LABEL + "".join(cells) + (" ..." if wide else "")
    for name, row in list(zip(rows, values, strict=True))[:height]:
        cells = [_number(float(x)).rjust(CELL) for x in row[:width]]
        yield indent + _fit(name, LABEL - 1).ljust(LABEL) + "".join(cells) + (" ..." if wide else "")
    if len(values) > height:
        yield f"{indent}... ({len(values)} rows)"


def explain(subject: Explained, seen: Capture, i: int, h: int, width: int) -> Iterator[str]:
    """The forward pass as lines of text, with details of layer i and head h."""
    cfg, layer = subject.cfg, seen.layers[i]
    tokens = names_of(seen.tokens_T, subject.tokenizer)
    T, V = len(tokens), cfg.vocab_size
    yield subject.title
    yield (
        f"{count(cfg.num_layers, 'layer')}, {count(cfg.num_heads, 'head')}, d_model {cfg.d_model}, context {cfg.context_length}, "
        f"vocabulary {V:,}; details of layer {i}, head {h}"
    )
    if cfg.dtype != "float32":
        yield f"(shown in float32; the model computes in {cfg.dtype})"
    yield from ("", f"1. Text -> {count(T, 'token')} -> ids")
    for name, cells in (("position", range(T)), ("token", tokens), ("id", seen.tokens_T)):
        shown = "".join(_fit(str(cell), CELL - 1).rjust(CELL) for cell in list(cells)[:width])
        yield f"   {name:<{LABEL}}{shown}{' ...' if width < T else ''}"
    yield from _embedding(subject, seen, tokens, width)
    yield from _attention(cfg, seen, i, h, tokens, width)
    bias = " + b" if cfg.use_bias else ""
    read = "x, which attention read too" if cfg.parallel_residual else "the stream"
    yield from ("", f"9. MLP: input is {cfg.norm} of {read} {_shape(layer.mlp_input_TD)}")
    yield from table(layer.mlp_input_TD, tokens, width)
    act = cfg.activation
    inactive = f", {np.mean(layer.hidden_TF == 0):.0%} are 0" * act.startswith("relu")
    inner = f"{act}(n W_gate{bias}) x (n W_up{bias})" if cfg.gated else f"{act}(n W_up{bias})"
    yield f"   neurons: {inner} {_shape(layer.hidden_TF)}{inactive}"
    yield from table(layer.hidden_TF, tokens, width)
    yield f"   times W_down{bias}: output {_shape(layer.mlp_change_TD)}"
    yield from table(layer.mlp_change_TD, tokens, width)
    yield f"   the stream after layer {i}: stream + output {_shape(layer.after_TD)}"
    yield from table(layer.after_TD, tokens, width)
    yield from _output(cfg, seen, subject.tokenizer, tokens, width)
    yield from _sums(seen, tokens, width)


def _embedding(subject: Explained, seen: Capture, tokens: list[str], width: int) -> Iterator[str]:
    cfg = subject.cfg
    table_VE = np.asarray(subject.params["token_embedding"]["embedding"])[: cfg.vocab_size]
    one_hot_TV = np.eye(cfg.vocab_size, dtype=np.float32)[seen.tokens_T]
    difference = np.abs(one_hot_TV @ table_VE - seen.token_rows_TE).max()
    yield from (
        "",
        f"2. Token embeddings: each id's row of the table E {_shape(table_VE)} -> {_shape(seen.token_rows_TE)}",
    )
    yield from table(seen.token_rows_TE, tokens, width)
    yield f"   same as one-hot vectors {_shape(one_hot_TV)} x {_shape(table_VE)}: difference {difference:g}"
    if cfg.factorised:
        yield f"   through the projection {[cfg.table_width, cfg.d_model]} -> {_shape(seen.token_vectors_TD)}"
        yield from table(seen.token_vectors_TD, tokens, width)
    yield ""
    if cfg.position in ("rotary", "none"):
        how = "queries and keys are rotated instead" if cfg.position == "rotary" else "the model has none"
        yield f"3. Positions: nothing is added ({how}); the residual stream x {_shape(seen.start_TD)} is the token embeddings"
        return
    yield f"3. Position embeddings ({cfg.position}) {_shape(seen.position_vectors_TD)}"
    yield from table(seen.position_vectors_TD, [f"position {t}" for t in range(len(tokens))], width)
    yield f"   the sum is the residual stream x {_shape(seen.start_TD)}"
    yield from table(seen.start_TD, tokens, width)


def _attention(
    cfg: config.ModelConfig, seen: Capture, i: int, h: int, tokens: list[str], width: int
) -> Iterator[str]:
    layer, bias = seen.layers[i], " + b" if LINEAR["out"].has_bias(cfg) else ""
    q_TK, k_SK, v_SK = layer.q_THK[:, h], layer.k_SHK[:, h], layer.v_SHK[:, h]
    yield ""
    if i or cfg.embedding_residual:
        mixed = f" = {layer.mix[0]:.3f} x + {layer.mix[1]:.3f} embedding" * cfg.embedding_residual
        yield f"4. Layer {i} reads the stream x{mixed} {_shape(layer.before_TD)}"
        yield from table(layer.before_TD, tokens, width)
        yield f"   {cfg.norm} of x {_shape(layer.attention_input_TD)}"
    else:
        yield f"4. Layer {i} reads the stream: {cfg.norm} of x {_shape(layer.attention_input_TD)}"
    yield from table(layer.attention_input_TD, tokens, width)
    yield from ("", f"5. Head {h} of {cfg.num_heads}, head_dim {cfg.head_width}")
    changes = (", root mean square 1" + " times a scale" * cfg.qk_norm_scale) * cfg.qk_norm
    if cfg.position == "rotary":
        part = "" if cfg.rotary_width == cfg.head_width else f"the first {cfg.rotary_width} "
        changes += f", {part}rotated by position"
    mixed = ", mixed with layer 0's" * (cfg.value_residual and i > 0)
    for name, values, after in (("query", q_TK, changes), ("key", k_SK, changes), ("value", v_SK, mixed)):
        yield f"   {name[0]} = norm(x) W_{name}{bias}{after} {_shape(values)}"
        yield from table(values, tokens, width)
    scale = cfg.attention_scale or 1 / math.sqrt(cfg.head_width)
    what = f"{scale:.3f}" + ("" if cfg.attention_scale else f" (1 / sqrt({cfg.head_width}))")
    cap = f", soft-capped to +-{cfg.attention_softcap:g}" if cfg.attention_softcap else ""
    scores_TS = layer.scores_HTS[h]
    yield from ("", f"6. Scores q k^T x {what}{cap} {_shape(scores_TS)}: rows are queries, columns are keys")
    yield from table(scores_TS, tokens, width, tokens)
    if cfg.head_width <= 4 and not cfg.attention_softcap:
        t = min(2, len(tokens) - 1)
        products = " + ".join(f"{a:.3f} x {b:.3f}" for a, b in zip(q_TK[t], k_SK[0], strict=True))
        pair = f"{_fit(tokens[t], LABEL)} with {_fit(tokens[0], LABEL)}"
        yield f"   {pair}: ({products}) x {scale:.3f} = {scores_TS[t, 0]:.3f}"
    window = f", at most {count(cfg.attention_window, 'token')}" if cfg.attention_window else ""
    yield from ("", f"7. Causal mask: -inf at later tokens; a token sees itself and earlier tokens{window}")
    yield from table(layer.masked_scores[h], tokens, width, tokens)
    weights_TS, mixed_TK = layer.weights_HTS[h], layer.heads_THK[:, h]
    yield f"   softmax: exp(score) divided by the sum of its row {_shape(weights_TS)}; every row sums to 1"
    yield from table(weights_TS, tokens, width, tokens)
    for t in range(1, min(len(tokens), width)):
        s = int(weights_TS[t].argmax())
        where = "itself" if s == t else f"{_fit(tokens[s], 24)} at {s}"
        yield f"   {_fit(tokens[t], 24)} at {t} attends most to {where}: {weights_TS[t, s]:.3f}"
    yield from ("", f"8. Weighted sum of the values {_shape(mixed_TK)}")
    yield from table(mixed_TK, tokens, width)
    t = min(2, len(tokens) - 1)
    terms = " + ".join(f"{weights_TS[t, s]:.3f} v[{s}]" for s in range(t + 1))
    yield f"   row {t}, {_fit(tokens[t], 24)}: {terms}"
    out = [cfg.head_width, cfg.d_model]
    for head, change_TD in enumerate(layer.head_changes_HTD[:width]):
        yield f"   head {head}'s output: times its part of W_O {out} -> {_shape(change_TD)}"
        yield from table(change_TD, tokens, width)
    if cfg.num_heads > width:
        yield f"   ... ({count(cfg.num_heads, 'head')})"
    terms = "x + all heads' outputs" + (" + the bias of W_O" if bias else "")
    yield f"   the stream: {terms} {_shape(layer.between_TD)}"
    yield from table(layer.between_TD, tokens, width)


def _output(
    cfg: config.ModelConfig, seen: Capture, tokenizer: tokenizers.Tokenizer, tokens: list[str], width: int
) -> Iterator[str]:
    vocabulary = names_of(np.arange(min(cfg.vocab_size, width)), tokenizer)
    output = "E^T" if cfg.tie_embeddings else "W_head"
    cap = f", soft-capped to +-{cfg.logit_softcap:g}" if cfg.logit_softcap else ""
    yield from ("", f"10. After the last layer: {cfg.norm} {_shape(seen.features_TD)}")
    yield from table(seen.features_TD, tokens, width)
    yield f"   times {output}{cap}: logits of the vocabulary {_shape(seen.logits_TV)}"
    yield from table(seen.logits_TV, tokens, width, vocabulary)
    p_TV = analysis.softmax(seen.logits_TV)
    best_Tk = analysis.most_probable(p_TV, LIKELIEST)
    yield from ("", f"11. Softmax: the probabilities of the next token {_shape(p_TV)}")
    yield from table(p_TV, tokens, width, vocabulary)
    yield from ("", f"12. Loss: -log p(next token), of {count(len(tokens) - 1, 'token')}")
    yield f"   {'after':<{LABEL}}{'next':<{LABEL}}{'p':>7}{'-log p':>8}{'bits':>8}   most probable"
    loss = analysis.losses(seen)
    for t in range(min(len(tokens), width)):
        likely = "  ".join(
            f"{_fit(name, CELL)} {p_TV[t, v]:.3f}"
            for name, v in zip(names_of(best_Tk[t], tokenizer), best_Tk[t], strict=True)
        )
        row = [_fit(name, LABEL - 1).ljust(LABEL) for name in (tokens[t], (*tokens, "?")[t + 1])]
        if t < len(loss.nats):
            cells = f"{loss.probabilities[t]:7.3f}{loss.nats[t]:8.3f}{loss.bits[t]:8.3f}"
        else:
            cells = f"{'-':>7}{'-':>8}{'-':>8}"
        yield f"   {''.join(row)}{cells}   {likely}"
    if len(tokens) > width:
        yield f"   ... ({len(tokens)} rows)"
    yield (
        f"   mean loss {loss.nats.mean():.3f} nats, {loss.bits.mean():.3f} bits per token; "
        f"a uniform guess has log V = {math.log(cfg.vocab_size):.3f}"
    )


def _sums(seen: Capture, tokens: list[str], width: int) -> Iterator[str]:
    """The ledger of the stream, the contributions to the true tokens' logits, and the logit lens."""
    book, after = analysis.ledger(seen), tokens[:-1]
    given = analysis.contributions(seen, book, np.append(seen.tokens_T[1:], seen.tokens_T[-1]))
    yield from (
        "",
        f"13. The stream as a sum of {len(book.names)} entries (error of the sum {book.error:.1e})",
    )
    uncapped = ", before the cap" * bool(seen.config.logit_softcap)
    yield f"   contributions to the next token's logit{uncapped}, through the final norm at fixed scale"
    parts_NT = given.values_NT[:, :-1]
    shown = [n for n, part in enumerate(parts_NT) if given.names[n] != "final bias" or part.any()]
    yield from table(parts_NT[shown], [given.names[n] for n in shown], width, after, max(width, ENTRIES))
    yield from table(parts_NT.sum(axis=0)[None], ["= logit"], width)
    lens = analysis.logit_lens(seen)
    yield from ("", "14. Logit lens: p(next token) read out after each block; the last row is the output")
    yield from table(lens.true_probs_RT, lens.names, width, after, max(width, ENTRIES))
