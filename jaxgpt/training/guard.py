"""What becomes of a run when a step is bad or does not end: see config.TrainConfig's on_bad_step and watchdog_seconds."""

from __future__ import annotations

import math
import sys
import threading
import time
from typing import Self

import numpy as np

from jaxgpt.config import Config, UserError
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import trainable

MOST_SKIPPED = 100  # bad steps in a row, after which the run ends even where they are to be skipped


class Guard:
    """Ends a run at a bad step, or lets it be skipped. A bad step has changed nothing: see steps.make_train_step."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self._in_a_row = 0

    def good(self) -> None:
        """A step was good."""
        self._in_a_row = 0

    def bad(self, step: int, loss: float, grad_norms: np.ndarray, params: dict, last_checkpoint: str) -> str:
        """A step was bad: what to say of it. Raises UserError where that is the end of the run."""
        self._in_a_row += 1
        norm = float(np.sqrt(np.square(grad_norms).sum()))
        if self._cfg.train.on_bad_step == "skip" and self._in_a_row <= MOST_SKIPPED:
            return f"step {step:>6}  skipped: loss {loss:.4f}, gradient norm {norm:.4g}"
        paths = [path for path, _ in named_leaves(trainable.select(self._cfg.optim, params))]
        bad_grads = [path for path, norm in zip(paths, grad_norms, strict=True) if not math.isfinite(norm)]
        bad_params = [p for p, leaf in named_leaves(params) if not np.isfinite(np.asarray(leaf)).all()]
        limit = self._cfg.train.bad_grad_norm
        above = (
            f", the gradient norm {norm:.3g} above train.bad_grad_norm={limit}"
            if limit and norm > limit
            else ""
        )
        advice = ", or set train.on_bad_step='skip' there"
        if self._cfg.train.on_bad_step == "skip":
            advice = f": {self._in_a_row} bad steps in a row are not skipped"
        raise UserError(
            f"the loss of step {step} is {loss}{above}: gradients not finite: {_some(bad_grads)}; "
            f"parameters not finite: {_some(bad_params)}; the last good checkpoint is {last_checkpoint}. "
            f"Lower optim.learning_rate (now {self._cfg.optim.learning_rate}) or optim.grad_clip_norm in another "
            f"--workdir{advice}"
        )


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Watchdog:
    """Says on stderr when nothing has moved for `seconds`, and again each time as long has passed. 0: never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._doing, self._since = "the start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def doing(self, what: str) -> None:
        """Something new has begun."""
        self._doing, self._since = what, time.monotonic()

    def _watch(self) -> None:
        told = 0.0
        while not self._over.wait(self._seconds / 10):
            now = time.monotonic()
            if now - max(self._since, told) >= self._seconds:
                told = now
                print(
                    f"warning: {self._doing} has taken {now - self._since:.0f} s and has not ended; a device or a file "
                    "system may hang (what is saved is safe; a kill loses the steps since)",
                    file=sys.stderr,
                    flush=True,
                )

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()
