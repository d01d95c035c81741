"""The answers to the questions of page_tasks: what must be seen on a page, with numbers that jaxgpt computes here."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxgpt.data import prompts
from jaxgpt.inspect import analysis, embeddings, heads, learning
from jaxgpt.inspect.capture import Capture, capture
from jaxgpt.inspect.interventions import Edit, edited_logits
from jaxgpt.inspect.static_tables import visible
from jaxgpt.inspect.subject import encode_written, open_subject, plain, probe_of, windows
from jaxgpt.model import generation
from jaxgpt.model.generation import Sampler, window_start
from jaxgpt.vectors import nearest

# The texts of the elements of a selector that are in the window as a whole and covered by nothing.
SEEN = """
return [...document.querySelectorAll(arguments[0])].filter((node) => {
  const box = node.getBoundingClientRect();
  if (!box.width || box.left < 0 || box.top < 0 || box.right > innerWidth || box.bottom > innerHeight) return false;
  const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  return top !== null && (node.contains(top) || top.contains(node));
}).map((node) => node.innerText.replace(/\\s+/g, " ").trim());
"""
# What the picture of all heads says at every 5th pixel.
READ = """
const canvas = document.querySelector(".all-heads canvas");
const box = canvas.getBoundingClientRect();
const said = new Set();
for (let y = 2; y < box.height; y += 5)
  for (let x = 2; x < box.width; x += 5) {
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y, bubbles: true }));
    said.add(document.querySelector("#attention [role=status]").textContent);
  }
return [...said];
"""
READING = re.compile(r"Layer (\d+), head (\d+).*? at (\d+) gives .* at (\d+) the weight ([\d.]+)\.")


@dataclass(frozen=True)
class Answer:
    """An element that is seen, whose text contains `text` and, if given, passes the check."""

    selector: str
    text: str = ""
    check: Callable[[str], bool] = lambda _: True

    def is_seen(self, run: Callable[..., Any]) -> bool:
        return any(self.text in text and self.check(text) for text in run(SEEN, self.selector))

    def is_right(self, run: Callable[..., Any]) -> bool:
        return True


@dataclass(frozen=True)
class Reading(Answer):
    """The same for a picture that says something where the pointer is. All that it says is checked after the time is taken."""

    readings: Callable[[list[str]], bool] = lambda _: True

    def is_right(self, run: Callable[..., Any]) -> bool:
        return self.readings(run(READ))


def numbers(*values: float, tolerance: float = 0.0) -> Callable[[str], bool]:
    """Whether a text has numbers that are these, as far as their decimals go."""

    def check(text: str) -> bool:
        found = [
            (float(one), 0.501 * 10.0 ** -len(one.partition(".")[2]))
            for one in re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-").replace(",", ""))
        ]
        return all(any(abs(x - value) <= unit + tolerance for x, unit in found) for value in values)

    return check


class Facts:
    """What is true of a run."""

    token = 20  # the selected position of the report's text
    place = 12  # the box of serve's text that another token is chosen for

    def __init__(self, workdir: Path) -> None:
        self.subject = open_subject(workdir)
        self.run = self.subject.run
        self.ids = probe_of(self.subject, None).ids_T

    def word(self, i: int) -> str:
        return visible(self.run.tokenizer.token(int(i)))

    @functools.cached_property
    def seen(self) -> Capture:
        return capture(self.subject.cfg, self.run.params, self.ids)

    # --- the report -----------------------------------------------------------------------------------------

    def previous(self, params: dict) -> np.ndarray:
        """The mean weight of every head on the token before [L, H], on some validation text."""
        texts = windows(self.subject.dataset.valid.ids, 32, self.subject.cfg.context_length)
        return heads.measure(*plain(self.subject.cfg, params), texts, None, None).previous_token_LH

    @functools.cached_property
    def previous_head(self) -> tuple[int, int]:
        scores = self.previous(self.run.params)
        layer, head = np.unravel_index(scores.argmax(), scores.shape)
        return int(layer), int(head)

    @property
    def _name(self) -> str:
        return f"ayer {self.previous_head[0]}, head {self.previous_head[1]}"

    def named(self, selector: str, what: str) -> Answer:
        weight = float(self.previous(self.run.params)[self.previous_head])
        return Answer(
            selector, self._name, lambda text: what in text and numbers(weight, tolerance=0.03)(text)
        )

    def all_heads(self) -> list[Answer]:
        weights = np.stack([layer.weights_HTS[:, self.token] for layer in self.seen.layers])

        def right(said: list[str]) -> bool:
            cells = {tuple(map(int, m.groups()[:4])): float(m[5]) for m in map(READING.search, said) if m}
            return all(
                abs(cells.get((layer, head, self.token, key), np.inf) - weights[layer, head, key]) < 6e-4
                for layer, head in np.ndindex(weights.shape[:2])
                for key in range(self.token + 1)
            )

        return [Reading(".all-heads", readings=right)]

    def last_head(self) -> Answer:
        layer, head = len(self.seen.layers) - 1, self.subject.cfg.num_heads - 1
        weight = float(self.seen.layers[layer].weights_HTS[head, self.token].max())
        text = f"Layer {layer}, head {head}: ‘{self.word(self.ids[self.token])}’ at {self.token} attends to"
        return Answer("#attention .said", text, numbers(weight))

    def lens(self, selector: str) -> list[Answer]:
        lens, t = analysis.logit_lens(self.seen), self.token
        return [
            Answer(
                selector,
                name,
                lambda text, r=r: (
                    self.word(lens.top_ids_RTk[r, t, 0]) in text
                    and numbers(float(lens.top_probs_RTk[r, t, 0]))(text)
                ),
            )
            for r, name in enumerate(lens.names)
        ]

    def neuron(self) -> list[Answer]:
        hidden_F = self.seen.layers[0].hidden_TF[self.token]
        n = int(hidden_F.argmax())
        unit = float(np.abs(self.seen.layers[0].hidden_TF).max()) / 127  # the page keeps 8 bits
        return [
            Answer(
                "#neurons tbody tr:first-child", f"neuron {n}", numbers(float(hidden_F[n]), tolerance=unit)
            )
        ]

    def neighbours(self) -> list[Answer]:
        tables = embeddings.both_tables(self.subject)
        i, answers = int(self.ids[self.token]), []
        for place, (when, count) in enumerate((("start", 1), ("end", 3)), 1):
            table = tables[when]
            (rows,), (scores,) = nearest.nearest(table, table[[i]], count, exclude_QE=np.array([[i]]))
            for k, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
                selector = f"#embeddings .view table:nth-of-type({place}) tbody tr:nth-of-type({k})"
                selector += f", #embeddings .view div:nth-of-type({place}) > table tbody tr:nth-of-type({k})"
                answers.append(Answer(selector, self.word(row), numbers(float(score))))
        return answers

    @functools.cached_property
    def saved(self) -> learning.Saved:
        return learning.Saved(self.run)

    def formed(self) -> list[Answer]:
        def between(text: str) -> bool:
            """The change is before its first quarter at the first step, and past the third at the second."""
            found = re.search(r"between steps ([\d,]+) and ([\d,]+)", text)
            if "turned into a previous-token head" not in text or found is None:
                return False
            early, late = (int(x.replace(",", "")) for x in found.groups())
            start, a, b, end = (
                self.previous(self.saved[step])[self.previous_head]
                for step in (min(self.saved), early, late, max(self.saved))
            )
            return bool((a - start) / (end - start) < 0.3 and (b - start) / (end - start) > 0.7)

        return [Answer(".events li", self._name, functools.cache(between))]

    @functools.cached_property
    def early_step(self) -> int:
        """A step with an event: that of the first test that the token table passes, the 10th of 24 saved ones."""
        return sorted(self.saved)[9]

    def two_steps(self) -> list[Answer]:
        """What the model writes at a step, with its loss there and at the end."""
        cfg, run = self.subject.cfg, self.run
        prompt = prompts.sample_ids(run.tokenizer, run.config.train.sample_prompt, cfg.context_length)
        texts = windows(
            self.subject.dataset.valid.ids, learning.TEXTS, min(cfg.context_length, learning.LENGTH) + 1
        )
        early, late = (
            float(learning.losses_by_window(*plain(cfg, self.saved[step]), texts).mean())
            for step in (self.early_step, run.step)
        )
        pieces = generation.generate_ids(
            run.model, self.saved[self.early_step], [prompt], 40, num_samples=learning.SAMPLES,
            sampler=Sampler(temperature=learning.TEMPERATURE), seed=0,
        )  # fmt: skip
        written = " ".join(run.tokenizer.decode(np.concatenate(list(pieces), axis=1)[0]).split())
        return [
            Answer(".sample", written[:30]),
            Answer(".loss-now", f"step {self.early_step:,}:", numbers(early)),
            Answer(".story", f"{run.step:,}", numbers(late)),
        ]

    # --- serve ----------------------------------------------------------------------------------------------

    def own_text(self, text: str) -> list[Answer]:
        ids = encode_written(self.run.tokenizer, text)
        losses = capture(self.subject.cfg, self.run.params, ids).losses
        return [
            Answer(f"#probe .strip .cell:nth-of-type({t + 1})", self.word(ids[t]), numbers(float(losses[t])))
            for t in (0, len(ids) // 2, len(ids) - 2)
        ]

    def _continued(self, ids: np.ndarray, count: int) -> np.ndarray:
        """A text with what the local page writes after it, with its default settings."""
        pieces = generation.generate_ids(
            self.run.model, self.run.params, [ids], count, sampler=Sampler(0.8), seed=0
        )
        return np.concatenate([ids, np.concatenate(list(pieces), axis=1)[0]])

    @functools.cached_property
    def own(self) -> np.ndarray:
        """The text that the local page opens with."""
        prompt = prompts.default(self.run.tokenizer, self.run.config.train.sample_prompt)
        return self._continued(encode_written(self.run.tokenizer, prompt), 200)

    def without_head(self, head: int) -> list[Answer]:
        """What may come after the text, with the head and without."""
        cfg, ids = self.subject.cfg, self.own
        seen = ids[window_start(len(ids), cfg.context_length) :]
        off = {("heads", self.previous_head[0]): Edit(scale=0.0, at=head)}
        p, edited = (
            analysis.softmax(
                np.asarray(edited_logits(*plain(cfg, self.run.params), seen[None], edits))[0, -1]
            )
            for edits in ({}, off)
        )
        return [
            Answer("#choices tbody tr", self.word(i), numbers(float(p[i]), float(edited[i]), tolerance=1e-3))
            for i in np.argsort(-p)[:3]
        ]

    @functools.cached_property
    def other(self) -> tuple[int, str]:
        """The most probable letter for the place that is not in the text."""
        before = self.own[: self.place]
        p = analysis.softmax(capture(self.subject.cfg, self.run.params, before).logits_TV[-1])
        words = ((int(i), self.word(i)) for i in np.argsort(-p) if i != self.own[self.place])
        return next((i, word) for i, word in words if word.isalpha())

    def continued(self) -> list[Answer]:
        ids = self._continued(np.append(self.own[: self.place], self.other[0]), 8)
        return [
            Answer(f"#written .cell:nth-of-type({t + 1})", check=lambda text, t=t: text.startswith(self.word(ids[t])))
            for t in range(len(ids))
        ]  # fmt: skip
