"""The endpoints of the local page, without the network. Requests and answers are documented in server.py."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxgpt.common.cli import command_line
from jaxgpt.common.say import warn
from jaxgpt.config import UserError, first_line
from jaxgpt.data import conversations, prompts
from jaxgpt.inspect import attention, chat, reading, steering
from jaxgpt.inspect import subject as subjects
from jaxgpt.inspect.interventions import edited
from jaxgpt.inspect.payload import (
    LATER,
    RunFigures,
    first_figures,
    more_figures,
    payload,
    run_figures,
    slow_parts,
)
from jaxgpt.inspect.plain import rounded, token_entry
from jaxgpt.inspect.subject import (
    Probe,
    Subject,
    checked_ids,
    encode_written,
    probe_of,
    probe_of_ids,
    windows,
)
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler, window_start
from jaxgpt.model.parameters import count_params
from jaxgpt.model.sampling import power_of_two
from jaxgpt.model.stopping import Stops, TextUntil

BODY_BYTES = 65_536  # maximum size of a request
MOST_TOKENS = 10_000
FRAME = 1 / 60  # seconds: nobody sees tokens that arrive in smaller parts
PREPARED = 1_024  # tokens: longer texts compile their programs when they are asked for
PREPARED_LARGE = 256  # of a large model, whose programs take long to compile
FEW_TOKENS = 60  # of a large model's first text: it takes seconds
# One setting for each kind of sampler that has its own program, besides temperature alone.
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0}, {"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}, {"top_k": 100},
)  # fmt: skip
WAIT = 0.1  # seconds
LARGE = 50_000_000  # parameters; a larger model streams its tokens in smaller chunks, and has one program for all samplers
EXAMPLES, EXAMPLE_LENGTH = 4, 24  # prompts from the validation text, and their characters at most
DEFAULTS: dict[str, Any] = {
    "prompt": "\n", "ids": None, "max_new_tokens": 200, "temperature": 0.8, "top_k": None, "top_p": None, "seed": 0,
    "stop": None, "stop_at_eot": True, "messages": None, "edits": [],
}  # fmt: skip
NEXT_DEFAULTS: dict[str, Any] = {"prompt": "", "ids": None, "edits": []}
LOOK_DEFAULTS: dict[str, Any] = {"ids": [], "temperature": 1, "at": 0}
REPORT_DEFAULTS: dict[str, Any] = {"text": "", "text2": None, "ids": None, "temperature": 1}
TYPES: dict[str, tuple[type, ...]] = {
    "prompt": (str,), "max_new_tokens": (int,), "temperature": (int, float), "top_k": (int, type(None)),
    "top_p": (int, float, type(None)), "seed": (int,), "stop": (list, type(None)), "stop_at_eot": (bool,),
    "messages": (list, type(None)), "text": (str,), "text2": (str, type(None)), "ids": (list, type(None)),
    "edits": (list,), "at": (int,),
}  # fmt: skip


def checked(given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """A request's fields, with defaults for omitted ones. Raises UserError for an invalid request."""
    if not isinstance(given, dict):
        raise UserError(f"give a JSON object with {', '.join(defaults)}")
    for name, value in given.items():
        if name not in defaults:
            raise UserError(f"unknown field {name[:40]!r}: choose one of {', '.join(defaults)}")
        if not isinstance(value, TYPES[name]) or (isinstance(value, bool) and bool not in TYPES[name]):
            kinds = " or ".join(
                {
                    str: "text",
                    int: "an integer",
                    float: "a number",
                    list: "a list",
                    bool: "true or false",
                }.get(t, "null")
                for t in TYPES[name]
            )
            raise UserError(f"{name} is of type {type(value).__name__}: give {kinds}")
    return defaults | given


class Service:
    """The endpoints of one run, as functions from JSON values to JSON values."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._counting = threading.Lock()
        self._reporting = threading.Lock()  # one report at a time: it uses all cores
        self._run_figures: RunFigures | None = None
        self._prepares = False  # while warm_up computes the figures of the run, a look does not wait for them
        run = subject.run
        self._large = count_params(run.params) > LARGE
        self._template = conversations.of_run(run.config.data, run.workdir, run.tokenizer)
        self._token = functools.lru_cache(1 << 14)(functools.partial(token_entry, run.tokenizer))
        self.ready: list[str] = []  # see warm_up
        self._asked = 0  # requests that are being answered: warm_up waits for them

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """While a request is answered: programs that nobody waits for are compiled afterwards."""
        with self._counting:
            self._asked += 1
        try:
            yield
        finally:
            with self._counting:
                self._asked -= 1

    def about(self) -> dict[str, Any]:
        """The answer of /api/run."""
        run, cfg = self.subject.run, self.subject.cfg
        prompt = prompts.default(run.tokenizer, run.config.train.sample_prompt)
        return {
            "title": f"{run.workdir.name}, step {run.step:,}",
            "step": run.step,
            "workdir": str(run.workdir),
            "command": command_line("serve", workdir=run.workdir),
            "tokenizer": run.tokenizer.kind,
            "vocab_size": cfg.vocab_size,
            "num_params": count_params(run.params),
            "context_length": cfg.context_length,
            "template": "" if self._template is None else self._template.name,
            "examples": self.examples(),
            "sites": {"layers": cfg.num_layers, **steering.sites(cfg)},
            "limits": {"body_bytes": BODY_BYTES, "max_new_tokens": MOST_TOKENS},
            "defaults": DEFAULTS
            | {"prompt": prompt}
            | ({"max_new_tokens": FEW_TOKENS} if self._large else {}),
        }

    def examples(self) -> list[str]:
        """Starts of lines, as prompts: of the validation text, or of an English text where the tokenizer knows it."""
        dataset, tokenizer = self.subject.dataset, self.subject.run.tokenizer
        if dataset is None and prompts.is_known(tokenizer, prompts.ENGLISH):
            lines = prompts.ENGLISH.split("\n")[:EXAMPLES]
            return [line[:EXAMPLE_LENGTH].rpartition(" ")[0] for line in lines]
        if dataset is None:
            return []
        found: list[str] = []
        for ids in windows(dataset.valid.ids, 4 * EXAMPLES, min(len(dataset.valid.ids), 200)):
            text = tokenizer.decode(ids)
            # The first line and the last may be parts; a text without lines starts at a word.
            for line in text.split("\n")[1:-1] or [text.partition(" ")[2]]:
                short = line[:EXAMPLE_LENGTH]
                short = short if len(line) <= EXAMPLE_LENGTH else short.rpartition(" ")[0]
                if len(short) >= 4 and short not in found and "\ufffd" not in short:
                    found.append(short)
                    break
            if len(found) == EXAMPLES:
                break
        return found

    def _ids(self, settings: dict[str, Any]) -> np.ndarray:
        """The ids of a request: given as ids, or of its prompt."""
        if settings["ids"] is None:
            tokenizer = self.subject.run.tokenizer
            return tokenizer.with_start(encode_written(tokenizer, settings["prompt"]))
        return checked_ids(self.subject, settings["ids"])

    def _edited(self, given: list[Any]) -> tuple[Any, Any]:
        """The model and its parameters, with the edits of a request."""
        run = self.subject.run
        if not given:
            return run.model, run.params
        return edited(
            run.model, run.params, steering.edits_of(run.model.cfg, run.params, run.tokenizer, given)
        )

    def next(self, given: Any) -> dict[str, Any]:
        """The answer of /api/next."""
        settings, run = checked(given, NEXT_DEFAULTS), self.subject.run
        ids = self._ids(settings)
        if not len(ids):
            raise UserError("empty prompt: give at least one character")
        edits = None
        if settings["edits"]:
            edits = steering.edits_of(run.model.cfg, run.params, run.tokenizer, settings["edits"])
        return reading.read(run.model, run.params, run.tokenizer, ids, edits)

    def generate(self, given: Any) -> Iterator[list[dict[str, Any]]]:
        """The objects of /api/generate, in lists as they are generated. Raises UserError for an invalid request at once."""
        settings = checked(given, DEFAULTS)
        if settings["max_new_tokens"] > MOST_TOKENS:
            raise UserError(f"max_new_tokens={settings['max_new_tokens']}: give at most {MOST_TOKENS}")
        texts = settings["stop"] or []
        if not all(isinstance(text, str) and text for text in texts) or len(texts) > 16:
            raise UserError("stop: give a list of at most 16 texts that are not empty")
        run, T = self.subject.run, self.subject.cfg.context_length
        stops = Stops(run.tokenizer.eos_id if settings["stop_at_eot"] else None, tuple(texts))
        if settings["messages"] is None:
            ids = self._ids(settings)
        else:
            ids, stops = chat.prompt_ids(settings["messages"], self._template, run.tokenizer, stops)
        sampler = Sampler(settings["temperature"], settings["top_k"], settings["top_p"])
        began = time.perf_counter()
        pieces = generation.generate_pieces(
            *self._edited(settings["edits"]), [ids[window_start(len(ids), T) :]], settings["max_new_tokens"],
            sampler=sampler.of_any_kind() if settings["edits"] or self._large else sampler,
            seed=settings["seed"], chunk=2 if self._large else generation.STREAM_TOKENS,
            scored=True, slots=max(PREPARED, power_of_two(len(ids) + settings["max_new_tokens"])),
        )  # fmt: skip
        first = next(pieces)  # before the stream starts, so that an error still has a status
        seen = {"prompt": ids[window_start(len(ids), T) :].tolist()}
        return self._lines([seen, *self._notes(ids)], first, pieces, began, stops)

    def warm_up(self) -> None:
        """Compile the programs for texts of any length and compute the figures of the run, so that answers come at once.

        The most likely requests come first. `ready` grows by "write" and "look" for short texts, "lengths", "figures", and
        "edits".
        """
        self._prepares = not attention.uses_probe(self.subject)
        T = self.subject.cfg.context_length
        ids = self._ids({"prompt": self.about()["defaults"]["prompt"], "ids": None})
        lengths = [16]
        while lengths[-1] < min(T, PREPARED_LARGE if self._large else PREPARED):
            lengths.append(2 * lengths[-1])
        texts = [np.resize(ids, min(length, T)).tolist() for length in lengths]
        looked_at = [text for text in texts if len(text) <= subjects.MOST_TOKENS]
        off = [{"site": "heads", "layer": 0, "at": 0, "scale": 0}]
        tasks: dict[str, list[tuple[Callable, dict[str, Any]]]] = {
            "write": [(self._write, {"ids": texts[0]}), (self.next, {"ids": texts[0]})],
            "look": [(self.look, {"ids": text}) for text in looked_at[:1]],
            "lengths": [(do, {"ids": text}) for do in (self._write, self.next) for text in texts[1:]]
            + [(self.look, {"ids": text}) for text in looked_at[1:]]
            + [(self._write, {"ids": texts[0]} | kind) for kind in KINDS if not self._large],
            "figures": [(self._compute_figures, {})] * len(LATER) * self._prepares,
            "edits": [(do, {"ids": text, "edits": off}) for do in (self._write, self.next) for text in texts],
        }
        for name, calls in tasks.items():
            for do, given in calls:
                while self._asked:
                    time.sleep(WAIT)
                try:
                    do(given)
                except UserError:  # what this model can't do is said to who asks for it
                    pass
                except Exception as error:
                    warn(f"not prepared ({first_line(error)}): the page works, its first answers take longer")
            self.ready.append(name)
            self._prepares &= name != "figures"

    def _write(self, given: dict[str, Any]) -> None:
        for _ in self.generate(given | {"max_new_tokens": 2}):
            pass

    def _notes(self, ids: np.ndarray) -> list[dict[str, Any]]:
        notes, start = [], window_start(len(ids), self.subject.cfg.context_length)
        if start:
            notes.append(
                f"The prompt has {len(ids):,} tokens; the model sees only the last {len(ids) - start}."
            )
        unk_id = getattr(self.subject.run.tokenizer, "unk_id", None)
        if unk_id is not None and (unknown := int((ids == unk_id).sum())):
            notes.append(f"{unknown} of the prompt's words are unknown to the tokenizer and become <unk>.")
        return [{"note": note} for note in notes]

    def _lines(
        self,
        notes: list[dict],
        first: generation.Piece,
        pieces: Iterator[generation.Piece],
        began: float,
        stops: Stops,
    ) -> Iterator[list[dict[str, Any]]]:
        tokenizer = self.subject.run.tokenizer
        written = TextUntil(tokenizer, stops)
        lines, piece, sent = notes, first, -FRAME
        with contextlib.closing(pieces):
            while piece is not None and not written.ended:
                for i, p, rank, entropy in zip(piece.ids[0], *(x[0] for x in piece.scores), strict=True):
                    text = written.add([int(i)])
                    if written.ended:
                        if text:
                            lines.append({"text": text})
                        break
                    token = {"id": int(i), **self._token(int(i))}
                    numbers = {"p": rounded(p), "rank": int(rank), "entropy": rounded(entropy)}
                    lines.append({"token": token, "piece": text, **numbers})
                if (now := time.perf_counter()) - sent >= FRAME:
                    yield lines
                    lines, sent = [], now
                piece = next(pieces, None)
        if rest := written.rest():
            if rest.endswith("\ufffd"):
                lines.append({"note": f"The text ends in the middle of a character: {rest}"})
            else:
                lines.append({"text": rest})
        yield [
            *lines,
            {"done": True, "tokens": written.tokens, "seconds": round(time.perf_counter() - began, 3)},
        ]

    def report(self, given: Any) -> dict[str, Any]:
        """The payload of /api/report. The figures of the run itself are computed once."""
        settings = checked(given, REPORT_DEFAULTS)
        temperature = float(Sampler(settings["temperature"]).temperature)
        if settings["ids"] is None:
            probe = probe_of(self.subject, settings["text"])
        else:
            probe = probe_of_ids(self.subject, settings["ids"])
        other = None if settings["text2"] is None else probe_of(self.subject, settings["text2"])
        with self._reporting:
            known = self._known(probe)
            return payload(self.subject, probe, other, known=known, temperature=temperature)

    def look(self, given: Any) -> dict[str, Any]:
        """The answer of /api/look: of a large model the parts that are quick; `rest` has the others."""
        settings = checked(given, LOOK_DEFAULTS)
        temperature = float(Sampler(settings["temperature"]).temperature)
        probe, at = probe_of_ids(self.subject, settings["ids"]), settings["at"]
        if not 0 <= at < len(probe.ids_T):
            raise UserError(f"at={at}: give a position from 0 to {len(probe.ids_T) - 1}")
        with self._reporting:
            known = self._known(probe)
            at = at if self._large else None
            figures = payload(self.subject, probe, known=known, temperature=temperature, quick_at=at)
        return figures | {"rest": self._large}

    def rest(self, given: Any) -> dict[str, Any]:
        """The answer of /api/rest: what a look at the same ids left out."""
        probe = probe_of_ids(self.subject, checked(given, {"ids": []})["ids"])
        with self._reporting:
            known = self._known(probe)
        return slow_parts(self.subject, probe, known)

    def _known(self, probe: Probe) -> RunFigures:
        """The figures of the run: all, or, while `warm_up` computes them, those that there are."""
        if attention.uses_probe(self.subject):
            return run_figures(self.subject, probe)
        known = self._run_figures or first_figures(self.subject)
        while known.pending and not self._prepares:
            known = more_figures(self.subject, known, probe)
        self._run_figures = known
        return known

    def _compute_figures(self, _given: dict[str, Any]) -> None:
        """Compute the next of the figures of the run. Looks go on meanwhile, with those before it."""
        if self._run_figures is not None and self._run_figures.pending:
            probe = Probe("", "", np.zeros(0, np.int32))  # it is not used, see attention.uses_probe
            self._run_figures = more_figures(self.subject, self._run_figures, probe)
