"""A run as a model of lm-evaluation-harness (the package lm_eval), with the numbers of its own Hugging Face model.

    python -m jaxgpt.lm_eval --workdir runs/char --tasks my_task --include_path tasks

or, in a program: `lm_eval.simple_evaluate(model=JaxGPT("runs/char"), tasks=[...])`. Texts are encoded as transformers encodes
them: the text of a special token is that token.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from jaxgpt.config import UserError
from jaxgpt.data import conversations, special_tokens
from jaxgpt.data.tokenizers import fingerprint
from jaxgpt.model import generation
from jaxgpt.model.generation import STREAM_TOKENS, Sampler, generate_ids
from jaxgpt.model.parameters import count_params
from jaxgpt.runs.load import Run, load
from jaxgpt.training import scoring

MAX_GEN_TOKS = 256  # the harness's default
# What a task may say of generation, and the only values of what is not done here.
_GENERATION = ("until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks")
_MOST_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_WITHOUT_EFFECT = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1, "use_cache": True}


@register_model("jaxgpt")
class JaxGPT(TemplateLM):
    """A trained model, answering the harness's three kinds of requests.

    workdir: a run's folder, or an open run. batch_size: rows of a batch. prefix_token_id: what a text without context
    begins after; default: the tokenizer's token before each text, or its end of text.
    """

    def __init__(
        self,
        workdir: str | Path | Run,
        step: int | str | None = None,
        batch_size: int | str = 16,
        prefix_token_id: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if device is not None:
            raise UserError(
                f"device={device!r}: leave it out, and choose JAX's with JAX_PLATFORMS=cpu or cuda"
            )
        self.run = workdir if isinstance(workdir, Run) else load(workdir, step)
        self.max_length = self.run.config.model.context_length
        self.batch_size = rows(batch_size, self.max_length, max_batch_size)
        self.max_gen_toks = int(max_gen_toks)
        tokenizer = self.run.tokenizer
        if not self.run.model.cfg.causal:
            raise UserError(
                "this model has no causal mask (model.causal=false): it sees each token that it predicts, so its scores "
                "say nothing"
            )
        self._encoder = special_tokens.reader(tokenizer) if tokenizer.special_ids.size else tokenizer
        if prefix_token_id is not None and not 0 <= int(prefix_token_id) < tokenizer.vocab_size:
            raise UserError(
                f"prefix_token_id={prefix_token_id}: give an id from 0 to {tokenizer.vocab_size - 1}"
            )
        self._encode = functools.lru_cache(1 << 14)(
            self._encoder.encode
        )  # a context has several continuations
        self._prefix = prefix_token_id
        self._programs = self._compiled()

    # --- what the harness asks --------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int | None:
        return self.run.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        tokenizer = self.run.tokenizer
        own = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        found = own if self._prefix is None else int(self._prefix)
        if found is None:
            raise UserError(
                f"this {tokenizer.kind} tokenizer has no end of text, which a text without context begins after: "
                "name another token with prefix_token_id (--prefix_token_id 0 is "
                f"{tokenizer.token(0)!r})"
            )
        return found

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, after the run's token before each text where it has one and the text does not begin with it."""
        ids, tokenizer = self._encode(string), self.run.tokenizer
        started = ids[:1].tolist() == [tokenizer.bos_id]
        return (ids if started or add_special_tokens is False else tokenizer.with_start(ids)).tolist()

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids, without special tokens."""
        ids = np.array(list(tokens), np.int64)
        if skip_special_tokens:
            ids = ids[~np.isin(ids, self.run.tokenizer.special_ids)]
        return self.run.tokenizer.decode(ids)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy) of each request's continuation after its context."""
        with self._naming_the_task(requests):
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        texts = []
        for (_, continuation), context_ids, ids in requests:
            if not ids:
                raise UserError(
                    f"the continuation {continuation[:40]!r} has no tokens: nothing can be scored"
                )
            texts.append(scoring.Text.of(context_ids, ids, self.max_length))
        found = self._scores(texts, "log-likelihoods", disable_tqdm)
        answers = [(score.log_likelihood, score.greedy) for score in found]
        for (request, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, of any length: in windows, each token predicted once."""
        with self._naming_the_task(requests):
            parts = [
                scoring.windows(self.tok_encode(text), self.prefix_token_id, self.max_length)
                for (text,) in (request.args for request in requests)
            ]
        scores = iter(self._scores([text for several in parts for text in several], "windows", disable_tqdm))
        totals = [sum(next(scores).log_likelihood for _ in several) for several in parts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first of its stop texts or the end of text."""
        with self._naming_the_task(requests):
            for request in requests:
                self.tok_encode(request.args[0])
        # Requests with the same settings are generated together. A repeated one is another sample, with a seed of its own.
        groups: dict[tuple[str, int], list[int]] = {}
        seen: collections.Counter[tuple[str, str]] = collections.Counter()
        for number, request in enumerate(requests):
            settings_of = json.dumps(request.args[1], sort_keys=True, default=str)
            groups.setdefault((settings_of, seen[settings_of, request.args[0]]), []).append(number)
            seen[settings_of, request.args[0]] += 1
        found = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="jaxgpt: texts") as bar:
            for (_, seed), numbers in groups.items():
                settings = Generation.of(requests[numbers[0]].args[1], self.max_gen_toks)
                room = self.max_length - settings.most
                if room < 1:
                    raise UserError(
                        f"max_gen_toks={settings.most} leaves no room for a context in context_length={self.max_length}: set "
                        "a smaller one (--gen_kwargs max_gen_toks=N, or generation_kwargs of the task)"
                    )
                contexts = {n: self.tok_encode(requests[n].args[0])[-room:] for n in numbers}
                numbers = sorted(numbers, key=lambda n: -len(contexts[n]))
                for start in range(0, len(numbers), self.batch_size):
                    batch = numbers[start : start + self.batch_size]
                    texts = self._texts([contexts[n] for n in batch], settings, seed)
                    for number, text in zip(batch, texts, strict=True):
                        found[number] = text
                        self.cache_hook.add_partial("generate_until", requests[number].args, text)
                    bar.update(len(batch))
        return found

    # --- conversations ----------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """What tells the requests of two runs apart in the harness's cache."""
        return f"jaxgpt-{fingerprint(self.run.tokenizer)[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template of the run's conversations: its name, or the text of the tokenizer's own."""
        if chat_template is False or chat_template is None:
            return ""
        own = self._template()
        if isinstance(chat_template, str) and chat_template not in ("True", "true", own.name):
            raise UserError(f"--apply_chat_template {chat_template}: this run has the template {own.name}")
        return getattr(own, "source", own.name)

    def _template(self) -> conversations.Template:
        found = conversations.of_run(self.run.config.data, self.run.workdir, self.run.tokenizer)
        if found is None:
            raise UserError(
                f"{self.run.workdir} has no chat template (data.template, or that of an imported tokenizer): leave "
                "--apply_chat_template out"
            )
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Turns as text, up to where the assistant speaks; without it, up to the end of what the last turn says."""
        template = self._template()
        turns = conversations.checked(chat_history, template, "a prompt of this task")
        if add_generation_prompt:
            return "".join(template.prompt(turns))
        *before, (role, content) = turns
        opened = "".join(template.turns([*before, (role, content)]))
        return opened[: opened.rindex(content.strip()) + len(content.strip())]

    # --- how ------------------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the model."""
        cfg = self.run.config.model
        return {
            "model_num_parameters": count_params(self.run.params),
            "model_dtype": cfg.dtype,
            "model_revision": f"step {self.run.step}",
            "model_sha": fingerprint(self.run.tokenizer),
        }

    @property
    def programs(self) -> int:
        """Programs that were compiled for this model's requests."""
        return self._compiled() - self._programs

    @staticmethod
    def _compiled() -> int:
        jitted: tuple[Any, ...] = (scoring.score_batch, generation.prefill, generation.decode)
        return sum(function._cache_size() for function in jitted)

    def _scores(self, texts: list[scoring.Text], what: str, disable_tqdm: bool) -> list[scoring.Score]:
        with tqdm(total=len(texts), disable=disable_tqdm, desc=f"jaxgpt: {what}") as bar:
            return scoring.score(self.run.model, self.run.params, texts, self.batch_size, bar.update)

    def _texts(self, contexts: list[list[int]], settings: Generation, seed: int) -> list[str]:
        """The texts after contexts, at most a batch of them."""
        empty = [self.prefix_token_id] if any(not context for context in contexts) else []
        rows = [context or empty for context in contexts]
        rows += [rows[-1]] * (self.batch_size - len(rows))  # a shape that is compiled already
        end = self.run.tokenizer.eos_id
        stops = settings.until + ([] if end is None else [self.run.tokenizer.token(end)])
        ids: list[list[int]] = [[] for _ in contexts]
        texts, ended = [""] * len(contexts), [False] * len(contexts)
        pieces = generate_ids(
            self.run.model, self.run.params, rows, settings.most,
            sampler=settings.sampler, seed=seed, chunk=STREAM_TOKENS,
        )  # fmt: skip
        for piece in pieces:
            for row, own in enumerate(ids):
                if ended[row]:
                    continue
                own.extend(piece[row].tolist())
                if end in own:
                    del own[own.index(end) :]
                    ended[row] = True
                text = self.tok_decode(own)
                found = [at for stop in stops if (at := text.find(stop)) >= 0]
                texts[row] = text[: min(found, default=len(text))]
                ended[row] = ended[row] or bool(found)
            if all(ended):
                pieces.close()
                break
        return texts

    @contextlib.contextmanager
    def _naming_the_task(self, requests: Sequence[Any]) -> Iterator[None]:
        """Adds the task to the error of a text that the tokenizer can't encode."""
        try:
            yield
        except UserError:
            for request in requests:
                try:
                    for text in request.args:
                        if isinstance(text, str):
                            self.tok_encode(text)
                except UserError as error:
                    raise UserError(f"task {request.task_name}: {error}") from error
            raise


class Generation:
    """What a task says of its generation: `generation_kwargs`."""

    def __init__(self, until: list[str], most: int, sampler: Sampler) -> None:
        self.until, self.most, self.sampler = until, most, sampler

    @classmethod
    def of(cls, given: dict[str, Any], most: int) -> Generation:
        """Raises UserError for what can't be done here."""
        given = {
            name: value
            for name, value in given.items()
            if name not in _WITHOUT_EFFECT or value != _WITHOUT_EFFECT[name]
        }
        until = given.pop("until", None) or []
        lengths = [given.pop(name) for name in _MOST_NAMES if given.get(name) is not None]
        most = int(lengths[0]) if lengths else most
        if most < 1:
            raise UserError(f"max_gen_toks={most}: give 1 or more")
        if unknown := sorted(set(given) - set(_GENERATION)):
            raise UserError(
                f"generation_kwargs has {unknown[0]}={given[unknown[0]]!r}, which is not done here: possible are "
                f"{', '.join(_GENERATION)}"
            )
        temperature = float(given.get("temperature") or 0.0)
        samples = temperature > 0 if given.get("do_sample") is None else bool(given["do_sample"])
        if samples and given.get("temperature") is None:
            temperature = 1.0  # transformers' default
        sampler = Sampler(temperature if samples else 0, given.get("top_k") or None, given.get("top_p"))
        stops = [until] if isinstance(until, str) else list(until)
        return cls([stop for stop in stops if stop], most, sampler)


def rows(batch_size: int | str, context_length: int, most: int | None = None) -> int:
    """The rows of a batch: a number, or `auto` (also `auto:N`): 16,384 tokens, from 1 row to 64."""
    if isinstance(batch_size, str) and batch_size.partition(":")[0] == "auto":
        return min(max(16_384 // context_length, 1), 64, most or 64)
    try:
        number = int(batch_size)
    except ValueError:
        number = 0
    if not 1 <= number <= 1 << 16:
        raise UserError(f"--batch_size={batch_size}: give a number from 1 to {1 << 16:,}, or auto")
    return number
