"""Two guards of a run: against steps that are bad, and against steps that hang.

The fields are TrainConfig's on_bad_step, bad_grad_norm and watchdog_seconds.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Self

import numpy as np

from jaxgpt.common.say import warn
from jaxgpt.config import Config, UserError
from jaxgpt.model.paths import named_leaves
from jaxgpt.training import trainable

MOST_SKIPPED = 100  # bad steps in a row; one more ends the run


class Guard:
    """Watches the steps of one run: a bad step ends it, or is skipped.

    A bad step has changed no parameter (see steps.make_train_step).
    """

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self._in_a_row = 0

    def check(
        self,
        step: int,
        metrics: dict[str, np.ndarray],
        params: Callable[[], dict],
        last_checkpoint: Callable[[], str],
    ) -> str:
        """Look at one step's `bad`, `loss` and `grad_norms`. Returns "" for a good step, a line for a skipped one.

        Raises UserError where the step ends the run; only then are `params` and `last_checkpoint` called.
        """
        if not metrics["bad"]:
            self._in_a_row = 0
            return ""
        self._in_a_row += 1
        loss, grad_norms = float(metrics["loss"]), np.asarray(metrics["grad_norms"])
        norm = float(np.sqrt(np.square(grad_norms).sum()))
        skips = self._cfg.train.on_bad_step == "skip"
        if skips and self._in_a_row <= MOST_SKIPPED:
            return f"step {step:>6}  skipped: loss {loss:.4f}, gradient norm {norm:.4g}"
        advice = ", or set train.on_bad_step='skip' there"
        if skips:
            advice = f": {self._in_a_row} bad steps in a row are not skipped"
        limit, above = self._cfg.train.bad_grad_norm, ""
        if limit and norm > limit:
            above = f", the gradient norm {norm:.3g} above train.bad_grad_norm={limit}"
        tree = params()
        trained = [path for path, _ in named_leaves(trainable.select(self._cfg.optim, tree))]
        bad_grads = [path for path, norm in zip(trained, grad_norms, strict=True) if not math.isfinite(norm)]
        bad_params = [p for p, leaf in named_leaves(tree) if not np.isfinite(np.asarray(leaf)).all()]
        raise UserError(
            f"the loss of step {step} is {loss}{above}: gradients not finite: {_some(bad_grads)}; "
            f"parameters not finite: {_some(bad_params)}; the last good checkpoint is {last_checkpoint()}. "
            f"Lower optim.learning_rate (now {self._cfg.optim.learning_rate}) or optim.grad_clip_norm in another "
            f"--workdir{advice}"
        )


def _some(names: list[str], most: int = 5) -> str:
    if not names:
        return "none"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class Watchdog:
    """Warns on stderr when nothing has happened for `seconds`, and again after each further `seconds`. 0: never."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._doing, self._since = "the start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def doing(self, what: str) -> None:
        """Something new has started: the name that a warning will give it."""
        self._doing, self._since = what, time.monotonic()

    def _watch(self) -> None:
        warned = 0.0
        while not self._over.wait(self._seconds / 10):
            now = time.monotonic()
            if now - max(self._since, warned) >= self._seconds:
                warned = now
                warn(
                    f"{self._doing} has taken {now - self._since:.0f} s and has not ended; a device or a file "
                    "system may hang (what is saved is safe; a kill loses the steps since)"
                )

    def __enter__(self) -> Self:
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._seconds:
            self._thread.join()
