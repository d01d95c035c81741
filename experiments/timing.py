"""Times from fresh processes, one after another with pauses: what differs from process to process is part of the interval."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from experiments.claim import Amendment, Setting
from jaxgpt import config
from jaxgpt.config import Config, UserError

PROCESSES = 5
PAUSE = 20  # seconds between processes, so that they do not share one busy minute of the machine
# Claims about times have these.
AMENDMENTS = (
    Amendment(
        "2026-11-21 (f59831e)", "Of every few times in a row the fastest counts; before, each counted.",
        "After a first look: other work on the machine made the intervals wide.", "not kept",
    ),
    Amendment(
        "2026-11-26", "The interval is over five fresh processes; before, over the repeats in one process.",
        "Repeats in one process share its memory layout and the minute in which it ran.", "holds",
    ),
)  # fmt: skip


def in_processes(setting: Setting, module: str, function: str, *arguments: Any) -> list[Any]:
    """What experiments.<module>.<function>(*arguments) returns in each of five processes; all is passed as JSON.

    quick: twice in this process, which tests the function and gives no result.
    """
    if setting.scale == "quick":
        call = getattr(importlib.import_module(f"experiments.{module}"), function)
        return [json.loads(json.dumps(call(*json.loads(json.dumps(arguments))))) for _ in range(2)]
    code = (
        "import json, sys; from jaxgpt.common import cli; cli.set_up_process(); "
        f"from experiments import {module} as m; print(json.dumps(m.{function}(*json.load(sys.stdin))))"
    )
    found = []
    for number in range(PROCESSES):
        if number:
            time.sleep(PAUSE)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"])[-1]
            raise UserError(f"a process that measures times failed: {last}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


def steps_of(configs: dict[str, Any], rounds: int) -> dict[str, float]:
    """The median seconds of a training step of each config (as JSON), one step of each in turns."""
    from experiments import comparing

    times = comparing.step_times(
        {label: config.from_config_dict(values) for label, values in configs.items()}, rounds
    )
    return {label: statistics.median(found) for label, found in times.items()}


def step_times(setting: Setting, configs: dict[str, Config], rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step of each config, one number per process."""
    as_json = {label: config.to_json(cfg) for label, cfg in configs.items()}
    found = in_processes(setting, "timing", "steps_of", as_json, rounds)
    return {label: [row[label] for row in found] for label in configs}
