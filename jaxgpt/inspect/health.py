"""The health of a run over its steps, and what is unusual in it: the lines of train.stats_every, for the report.

The rules are fixed numbers, stated here and in every sentence that they give. They say what to look at, not what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxgpt.inspect.plain import plain

RATIO = 0.1  # an update of a tenth of the parameters; training that goes well has about 1e-3 (Karpathy 2022)
SCORE = 50.0  # attention scores grow past this before runs diverge (Dehghani et al. 2023, section 3.1)
DRIFT = 10.0  # nats that the mean logsumexp of the logits may be away from 0 beyond log V (Chowdhery et al. 2022, z-loss)
DEAD = 0.5  # share of neurons
JUMP, BEFORE = 5.0, 5  # times the median of so many measured steps before
GROWTH = 10.0  # times the first value

Values = Sequence[float | None]
Found = tuple[int, float | None, str]  # step, value, sentence


def health(lines: Sequence[dict[str, Any]], vocab_size: int) -> dict[str, Any] | None:
    """The statistics of a run as series, and what is unusual. None for a run without train.stats_every.

    `lines` are those of metrics.jsonl (`metrics_log.read`). The result, of plain JSON values:

        steps     [N], ascending
        series    {kind: {name: [N]}}, such as series["gradient_norm"]["block_2"]; None for a number that is not finite. The kinds
                  are those of training/stats.py, gradient_norm parameter_norm update_norm update_ratio residual_rms attention_max
                  dead logsumexp logsumexp_max. The names are the run's own, in its order ("" for the logits').
        unusual   [{kind, name, step, value, text}], in the order of steps; `step` is the first at which it is so
    """
    own = sorted((line for line in lines if line["split"] == "stats"), key=lambda line: line["step"])
    if not own:
        return None
    steps = [line["step"] for line in own]
    series: dict[str, dict[str, list[float | None]]] = {}
    for key in dict.fromkeys(key for line in own for key in line if key not in ("step", "split")):
        name, _, kind = key.rpartition("/")
        values = [line.get(key) for line in own]
        series.setdefault(kind, {})[name] = [x if isinstance(x, int | float) else None for x in values]
    unusual = [
        {"kind": kind, "name": name, "step": step, "value": value, "text": text}
        for kind, rules in RULES.items()
        for name, values in series.get(kind, {}).items()
        for rule in rules
        for step, value, text in rule(name or "logits", steps, values, vocab_size)
    ]
    unusual.sort(key=lambda found: found["step"])
    return {
        "steps": steps,
        "series": {kind: {name: plain(x) for name, x in of.items()} for kind, of in series.items()},
        "unusual": [found | {"value": plain(found["value"])} for found in unusual],
    }


def _first(steps: Sequence[int], values: Values, is_so: Callable[[float], bool]) -> tuple[int, float] | None:
    """The first step whose value is so."""
    pairs = zip(steps, values, strict=True)
    return next(((step, x) for step, x in pairs if x is not None and is_so(x)), None)


def _not_finite(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    """Not finite, after it was."""
    known = [x is not None for x in values]
    if any(known) and not all(known):
        step = steps[known.index(False)]
        yield step, None, f"The gradient of {name} is not finite at step {step:,}."


def _jump(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    """JUMP times the median of the BEFORE values before."""
    for at in range(BEFORE, len(values)):
        before = sorted(x for x in values[at - BEFORE : at] if x is not None)
        now = values[at]
        if now is not None and len(before) == BEFORE and now > JUMP * (usual := before[BEFORE // 2]) > 0:
            yield (
                steps[at],
                now,
                f"The gradient of {name} jumps at step {steps[at]:,}: its norm is {now:.3g}, {now / usual:.0f} times the median of "
                f"the {BEFORE} measured steps before ({usual:.3g}).",
            )
            return


def _large_updates(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    """Above RATIO in the second half of the steps: at the start parameters of 0 have no size yet."""
    half = len(steps) // 2
    if len(steps) > 1 and (found := _first(steps[half:], values[half:], lambda x: x > RATIO)):
        step, value = found
        yield step, value, (
            f"Step {step:,} changes {name} by {value:.2g} of its size; above {RATIO:g} in the second half of a run is unusual (about "
            "0.001 is common): is the learning rate too high?"
        )  # fmt: skip


def _frozen(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    """0 at every measured step from one to the last but one: the last step of a schedule may have a rate of 0."""
    inner = list(values[:-1])
    if len(inner) < 2 or any(x is None for x in inner) or inner[-1] != 0:
        return
    at = next((i for i in range(len(inner), 0, -1) if inner[i - 1] != 0), 0)
    if len(inner) - at >= 2:
        since = "at no measured step" if at == 0 else f"at no measured step from {steps[at]:,} on"
        yield steps[at], 0.0, f"{name} changes {since}: it is not trained there."


def _large_scores(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    if found := _first(steps, values, lambda x: x > SCORE):
        step, value = found
        yield step, value, (
            f"The largest attention score of {name} is {value:.3g} at step {step:,}; above {SCORE:g} a softmax is nearly one key, and "
            "runs often diverge soon after: model.qk_norm=true keeps scores small."
        )  # fmt: skip


def _dead(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    if found := _first(steps, values, lambda x: x >= DEAD):
        step, value = found
        yield step, value, (
            f"{value:.0%} of the neurons of {name} fire at no position of the batch of step {step:,}; {DEAD:.0%} or more is unusual."
        )  # fmt: skip


def _grows(name: str, steps: Sequence[int], values: Values, _vocab: int) -> Iterator[Found]:
    start = next((x for x in values if x is not None), None)
    if start and (found := _first(steps, values, lambda x: x > GROWTH * start)):
        step, value = found
        yield step, value, (
            f"The residual stream after {name} is {value / start:.0f} times as large at step {step:,} as at step {steps[0]:,} (root mean "
            f"square {value:.3g}, it was {start:.3g}); more than {GROWTH:g} times is unusual."
        )  # fmt: skip


def _drifts(name: str, steps: Sequence[int], values: Values, vocab: int) -> Iterator[Found]:
    usual = math.log(vocab)
    if found := _first(steps, values, lambda x: not -DRIFT <= x <= usual + DRIFT):
        step, value = found
        yield step, value, (
            f"The mean logsumexp of the {name} is {value:.3g} at step {step:,}, more than {DRIFT:g} outside 0 to log V ({usual:.2f}): the "
            "logits drift; optim.z_loss=1e-4 holds them."
        )  # fmt: skip


# By kind of statistic. Each gives at most one finding for a name.
RULES: dict[str, tuple[Callable[..., Iterator[Found]], ...]] = {
    "gradient_norm": (_not_finite, _jump),
    "update_ratio": (_large_updates,),
    "update_norm": (_frozen,),
    "attention_max": (_large_scores,),
    "dead": (_dead,),
    "residual_rms": (_grows,),
    "logsumexp": (_drifts,),
}
