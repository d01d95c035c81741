"""A trace of a few training steps: the use of time on the host and on the device.

It is written to the folder `profile` of a run, for TensorBoard (`tensorboard --logdir runs/char/profile`) and, as
`perfetto_trace.json.gz`, for https://ui.perfetto.dev.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax

from jaxgpt.config import UserError


class ProfileSteps:
    """Traces the steps START to STOP - 1 of the spec `START:STOP`; None: no steps.

    The loop calls `at(step)` before it dispatches a step (counted from 0), and `close()` at its end. Choose steps
    after the first dispatch, which compiles.
    """

    def __init__(self, spec: str | None, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._steps = None if spec is None else _parse(spec)
        self._running = False

    def at(self, step: int) -> None:
        """Start or stop the trace if this step is in the range. A dispatch may skip steps."""
        if self._steps is None:
            return
        start, stop = self._steps
        if self._running and step >= stop:
            self.close()
        elif not self._running and start <= step < stop:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder), create_perfetto_trace=True)
            self._running = True

    def close(self) -> None:
        """Write the trace, if one is running, after waiting for the device."""
        if not self._running:
            return
        jax.effects_barrier()
        # This small result comes after all earlier work of the device.
        jax.block_until_ready(jax.device_put(0) + 1)
        jax.profiler.stop_trace()
        self._running = False


def _parse(spec: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", spec.strip())
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"--profile_steps={spec}: give START:STOP with START below STOP, such as 10:15")
    return int(match[1]), int(match[2])
