"""Text from a trained model: a batched prefill, then token by token with a cache, on the device.

    python -m jaxgpt.generate --workdir runs/char --prompt "ROMEO:" --max_new_tokens 400

A sample is a function of (params, prompt, settings, seed, sample number): it is the same alone and in a batch, with
a cache and without.

Past context_length the window moves in jumps: when it is full, the older half is dropped and the rest is read again
from position 0 (`window_start`). So every token sees the last context_length / 2 to context_length tokens, or all
tokens of a shorter text.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.config import UserError
from jaxgpt.model.gpt import GPT, KVCache
from jaxgpt.model.sampling import PLAIN, Sampler, Scores, power_of_two, scores_of
from jaxgpt.model.sharding import replicate
from jaxgpt.model.stopping import Stops, TextUntil

STREAM_TOKENS = 16  # tokens per dispatch of streamed text: few for the reader, many for the device


MOST_TOKENS, MOST_SAMPLES = 10_000_000, 1_000_000
ROWS = 64  # samples that are drawn together


def window_start(length: int, context_length: int) -> int:
    """The first token that the model sees when it continues a text of `length` tokens.

    0 up to context_length; then jumps such that the window holds context_length // 2 tokens (at least 1) after
    a jump and context_length before the next.
    """
    if length <= context_length:
        return 0
    jump = context_length + 1 - max(1, context_length // 2)
    return ((length - context_length - 1) // jump + 1) * jump


def window_size(tokens: int) -> int:
    """The number of tokens to which a window is padded, so that few programs read texts of any length.

    A causal model's predictions do not depend on the padding, which is at the right.
    """
    return power_of_two(max(16, tokens))


@functools.partial(jax.jit, static_argnames=("model", "slots", "scored"))
def prefill(
    model: GPT,
    params,
    tokens_BT,
    length_B,
    keys_B,
    index_B,
    *,
    sampler: Sampler,
    slots: int,
    scored: bool = False,
):
    """Read windows [B, T], padded at the right, in one pass; draw the next token of each row.

    Returns the cache (`slots` slots per row, padding not counted), the tokens [B] and, if `scored`, their Scores (else
    None).
    """
    empty = KVCache.empty(model.cfg, tokens_BT.shape[0], slots)
    found: Any = model.apply(
        {"params": params}, tokens_BT, cache=empty, cache_is_empty=True, method=GPT.features
    )
    x_BTD, cache = found
    last_BD = jnp.take_along_axis(x_BTD, (length_B - 1)[:, None, None], axis=1)[:, 0]
    logits_BV: Any = model.apply({"params": params}, last_BD, method=GPT.unembed)
    token_B = sampler(logits_BV, keys_B, index_B)
    scores = replicate(scores_of(logits_BV, token_B)) if scored else None
    return cache._replace(length_B=length_B), replicate(token_B), scores


@functools.partial(
    jax.jit,
    static_argnames=("model", "size", "scored"),
    donate_argnames="cache",
    # Without this option XLA's CPU backend copies the complete cache for every token, which halves the speed: it does
    # not see that the keys of a layer are read before the new one is written.
    compiler_options={"xla_cpu_copy_insertion_use_region_analysis": True},
)
def decode(
    model: GPT,
    params,
    cache,
    token_B,
    keys_B,
    index_B,
    count,
    *,
    sampler: Sampler,
    size: int,
    scored: bool = False,
):
    """Draw `count` (at most `size`) more tokens per row, without the host.

    token_B is the last token drawn, not yet in the cache; index_B is the index of the next one. Returns the cache, the
    tokens [B, size] (the first `count` are set) and, if `scored`, their Scores (else None).
    """
    B = token_B.shape[0]
    # Each use casts them to this dtype: once before the loop, and a token reads half as many bytes.
    params = jax.tree.map(lambda x: x.astype(model.cfg.dtype), params)

    def one_more(i, carry):
        cache, token_B, out_BT, kept_TBV = carry
        logits_BTV, cache = model.apply({"params": params}, token_B[:, None], cache=cache)
        token_B = sampler(logits_BTV[:, 0], keys_B, index_B + i)
        if scored:  # scores are computed once, after the loop: the fastest way
            kept_TBV = kept_TBV.at[i].set(logits_BTV[:, 0])
        return cache, token_B, out_BT.at[:, i].set(token_B), kept_TBV

    kept_TBV = jnp.zeros((size, B, model.cfg.vocab_size), jnp.float32) if scored else None
    carry = (cache, token_B, jnp.zeros((B, size), jnp.int32), kept_TBV)
    cache, _, out_BT, kept_TBV = jax.lax.fori_loop(0, count, one_more, carry)
    if not scored:
        return cache, replicate(out_BT), None
    scores = scores_of(kept_TBV.reshape(size * B, -1), out_BT.T.reshape(-1))
    return cache, replicate(out_BT), replicate(Scores(*(x.reshape(size, B).T for x in scores)))


class Piece(NamedTuple):
    """The next tokens of every row [B, n]."""

    ids: np.ndarray
    scores: Scores | None  # NumPy arrays [B, n]


def generate_ids(*args, **settings) -> Generator[np.ndarray]:
    """The ids of `generate_pieces`, which has the same arguments: arrays [B, n]."""
    return (piece.ids for piece in generate_pieces(*args, **settings))


def generate_pieces(
    model: GPT,
    params: dict,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    sampler: Sampler = PLAIN,
    num_samples: int = 1,
    first_sample: int = 0,
    seed: int = 0,
    chunk: int | None = None,
    scored: bool = False,
    slots: int | None = None,
) -> Iterator[Piece]:
    """New ids in pieces [B, n], max_new_tokens in all; B = prompts x samples; samples of a prompt are consecutive.

    Prompts may differ in length. Samples are numbered from `first_sample`; a sample depends on its number only. `chunk` limits the tokens of every piece after the first, for streaming. With `scored`
    a piece also has the Scores of its tokens. The cache has as many slots as the text needs, rounded up to a power of two; with a
    chunk and `slots` (context_length: enough for any text) the programs depend on neither length, and on few kinds of samplers.
    """
    T = model.cfg.context_length
    if max_new_tokens < 1 or num_samples < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}, num_samples={num_samples}: give 1 or more of each")
    if max_new_tokens > MOST_TOKENS or num_samples > MOST_SAMPLES:
        raise UserError(
            f"max_new_tokens={max_new_tokens}, num_samples={num_samples}: give at most {MOST_TOKENS:,} and {MOST_SAMPLES:,}"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: give a number from 0 to {2**32 - 1}")
    for prompt in prompts:
        if len(prompt) == 0:
            raise UserError("empty prompt: give at least one character")
        if len(prompt) > T:
            raise UserError(f"the prompt has {len(prompt)} tokens, context_length={T}: shorten the prompt")
    samples = range(first_sample, first_sample + num_samples)
    rows = [(np.asarray(p, np.int32), s) for p in prompts for s in samples]
    # By sample number, not by row: the samples of a prompt do not depend on the rest of the batch.
    root = jax.random.key(seed)
    keys_B = jnp.stack([jax.random.fold_in(root, sample) for _, sample in rows])
    lengths = np.array([len(prompt) for prompt, _ in rows])
    ids = np.zeros((len(rows), lengths.max() + max_new_tokens), np.int32)
    for row, (given, _) in enumerate(rows):
        ids[row, : len(given)] = given
    few = bool(chunk and slots)
    size = chunk if chunk and slots else min(chunk or T, power_of_two(max_new_tokens))
    slots = min(T, slots or power_of_two(ids.shape[1]))
    first = sampler.of_any_kind() if few else sampler
    drawn: dict[str, Any] = {"sampler": sampler.of_few_kinds() if few else sampler, "scored": scored}

    def dispatched(out_BT: jax.Array, scores: Scores | None, count: int) -> Callable[[], Piece]:
        """The next tokens, when called: the device may still be computing them."""
        starts = lengths.copy()
        lengths[:] += count

        def piece() -> Piece:
            new_BT = np.asarray(out_BT)[:, :count]
            for row, start in enumerate(starts):
                ids[row, start : start + count] = new_BT[row]
            parts = scores and Scores(*(np.asarray(x).reshape(len(rows), -1)[:, :count] for x in scores))
            return Piece(new_BT, parts)

        return piece

    done, last = 0, None
    while done < max_new_tokens:
        starts = np.array([window_start(length, T) for length in lengths])
        widths = lengths - starts
        # Until the window of the longest row moves. Then all rows are read again, in one pass.
        budget = min(max_new_tokens - done, T + 1 - int(widths.max()))
        tokens_BT = np.zeros((len(rows), min(slots, window_size(int(widths.max())))), np.int32)
        for row in range(len(rows)):
            tokens_BT[row, : widths[row]] = ids[row, starts[row] : lengths[row]]
        cache, token_B, scores = prefill(
            model, params, tokens_BT, jnp.asarray(widths, jnp.int32), keys_B,
            jnp.asarray(lengths, jnp.int32), slots=slots, **drawn | {"sampler": first},
        )  # fmt: skip
        if last is not None:
            yield last
        waiting = dispatched(token_B[:, None], scores, 1)
        made = 1
        while made < budget:
            count = min(size, budget - made)
            cache, out_BT, scores = decode(
                model, params, cache, token_B, keys_B,
                jnp.asarray(lengths, jnp.int32), count, size=size, **drawn,
            )  # fmt: skip
            token_B = out_BT[:, count - 1]
            # While the caller works on these tokens, the device computes the next.
            yield waiting()
            waiting = dispatched(out_BT, scores, count)
            made += count
        last = waiting()  # the next window is read before the caller works on these tokens
        done += made
    if last is not None:
        yield last


def stream(
    model: GPT,
    params: dict,
    tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    sampler: Sampler = PLAIN,
    seed: int = 0,
    chunk: int = STREAM_TOKENS,
    stops: Stops | None = None,
) -> Iterator[str]:
    """The text of one sample piece by piece, without the prompt. An incomplete character waits for its last byte.

    It ends at `stops`; None: at the tokenizer's end of text, where it has one.
    """
    text = TextUntil(tokenizer, Stops(tokenizer.eos_id) if stops is None else stops)
    pieces = generate_ids(
        model,
        params,
        [tokenizer.encode_prompt(prompt)],
        max_new_tokens,
        sampler=sampler,
        seed=seed,
        chunk=chunk,
    )
    with contextlib.closing(pieces):
        for piece in pieces:
            if more := text.add(piece[0]):
                yield more
            if text.ended:
                break
    if more := text.rest():
        yield more


def generate(
    model: GPT,
    params: dict,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    sampler: Sampler = PLAIN,
    num_samples: int = 1,
    seed: int = 0,
    stops: Stops | None = None,
) -> list[list[str]]:
    """num_samples texts per prompt, without the prompt: result[prompt][sample]. They end as in `stream`."""
    groups = sample_groups(
        model, params, tokenizer, prompts, max_new_tokens,
        sampler=sampler, num_samples=num_samples, seed=seed, stops=stops,
    )  # fmt: skip
    return [[text for part in texts for text in part] for texts in zip(*groups, strict=True)]


def sample_groups(
    model: GPT,
    params: dict,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    sampler: Sampler = PLAIN,
    num_samples: int = 1,
    seed: int = 0,
    stops: Stops | None = None,
) -> Iterator[list[list[str]]]:
    """The texts of `generate` in groups of samples, as they are drawn: each group has [prompt][sample]."""
    stops = Stops(tokenizer.eos_id) if stops is None else stops
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    step = max(1, ROWS // max(1, len(prompts)))
    for first in range(0, max(num_samples, 1), step):
        count = min(step, num_samples - first)
        pieces = generate_ids(
            model,
            params,
            encoded,
            max_new_tokens,
            sampler=sampler,
            num_samples=count,
            first_sample=first,
            seed=seed,
        )
        ends = [TextUntil(tokenizer, stops) for _ in range(len(prompts) * count)]
        texts = ["" for _ in ends]
        with contextlib.closing(pieces):
            for piece in pieces:
                texts = [text + end.add(row) for text, end, row in zip(texts, ends, piece, strict=True)]
                if all(end.ended for end in ends):
                    break
        texts = [text + end.rest() for text, end in zip(texts, ends, strict=True)]
        yield [texts[i * count : (i + 1) * count] for i in range(len(prompts))]
