"""The report of `--dry_run --target`: what a run needs and at best reaches on a card that is not here."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from jaxgpt.common.numbers import as_bytes, as_duration, as_flop
from jaxgpt.common.say import say
from jaxgpt.config import Config
from jaxgpt.data.dataset import prepare_dataset
from jaxgpt.model import sharding
from jaxgpt.model.attention import fused_obstacle, uses_fused_attention
from jaxgpt.model.parameters import count_params, param_shapes
from jaxgpt.training import costs, starting, traffic
from jaxgpt.training.state_memory import StateBytes, state_bytes
from jaxgpt.training.target import bounds, cards, fits, hlo
from jaxgpt.training.target.cards import Target
from jaxgpt.training.target.collectives import Collective, collectives
from jaxgpt.training.target.compile import (
    ON_DEVICE_TOKENS,
    Compiled,
    check_installed,
    compile_dispatch,
    mesh_sizes,
    quiet,
    tracing,
)
from jaxgpt.training.target.kernels import ATTENTION, Kernel, kernels


@dataclass(frozen=True)
class Fit:
    """The most windows that a device computes at once."""

    windows: int
    parts: int  # train.grad_accumulation_steps
    memory: int  # bytes of the compiled step
    next_windows: int | None  # the next number that is possible, which does not fit
    next_memory: float | None  # bytes that it needs, by extrapolation


class Report:
    """What the compiled dispatch of a resolved config says. Times, bytes and FLOPs are those of one step and one device."""

    def __init__(
        self, cfg: Config, compiled: Compiled, fit: Fit | None, price_per_hour: float | None
    ) -> None:
        self.cfg, self.compiled, self.fit, self.price_per_hour = cfg, compiled, fit, price_per_hour
        self.card, self.count = compiled.target.card, compiled.target.count
        self.steps = cfg.train.steps_per_dispatch
        module = hlo.read(compiled.text)
        self.kernels: list[Kernel] = kernels(module)
        self.collectives: list[Collective] = collectives(module, self.count)
        self.parts = bounds.parts(self.card, self.kernels, self.steps)
        self.sending = bounds.sending(self.card, self.collectives, self.steps)
        self.seconds = bounds.step_seconds(self.parts, self.sending)
        self.state: StateBytes = state_bytes(cfg, compiled.sizes)
        self.traffic = traffic.traffic(cfg, compiled.sizes)
        self.tokens_per_step = cfg.data.batch_size * cfg.model.context_length
        with tracing(self.card):
            self.fused = uses_fused_attention(cfg.model, cfg.train.attention)
            self.not_fused = (
                ""
                if self.fused
                else (
                    f"train.attention={cfg.train.attention!r}"
                    if cfg.train.attention == "explicit"
                    else fused_obstacle(cfg.model)
                )
            )
            self.cost = costs.step_cost(cfg, self.card.backend.kind)
        self.predicted = costs.memory_per_device(cfg, self.cost.memory, compiled.sizes)

    @property
    def products(self) -> dict[str, float]:
        """FLOPs of a step by dtype, on one device."""
        found: dict[str, float] = collections.defaultdict(float)
        for kernel in self.kernels:
            if kernel.flops:
                found[kernel.dtype] += kernel.times * kernel.flops / self.steps
        return dict(found)

    @property
    def launches(self) -> float:
        """Kernels of a step on one device, collectives included."""
        return sum(part.launches for part in self.parts) + sum(x.launches for x in self.sending)

    @property
    def tokens_per_second(self) -> tuple[float, ...]:
        """Of all devices, for each of bounds.SHARES."""
        return tuple(self.tokens_per_step / seconds for seconds in self.seconds)

    @property
    def hours(self) -> tuple[float, ...]:
        """Of the run's steps, without evaluations, saves and compilation."""
        return tuple(seconds * self.cfg.train.num_steps / 3600 for seconds in self.seconds)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        compiled, names = self.compiled, [share.name for share in bounds.SHARES]
        return {
            "target": str(compiled.target),
            "card": dataclasses.asdict(self.card),
            "devices": self.count,
            "mesh": compiled.sizes,
            "jax": jax.__version__,
            "compile_seconds": compiled.seconds,
            "parameters": count_params(param_shapes(self.cfg.model)),
            "memory": {
                "arguments": compiled.arguments,
                "temporaries": compiled.temporaries,
                "outputs_not_donated": compiled.outputs - compiled.aliased,
                "total": compiled.memory,
                "of_the_card": self.card.memory,
                "usable": fits.usable(self.card),
                "state_by_formula": dataclasses.asdict(self.state),
                "step_by_formula": dataclasses.asdict(self.predicted),
            },
            "windows_at_once": fits.windows(self.cfg, compiled.sizes),
            "largest": None if self.fit is None else dataclasses.asdict(self.fit),
            "fused_attention": self.fused,
            "attention_not_fused": self.not_fused,
            "products": self.products,
            "flops_by_formula": {
                "model": self.cost.model_flops / self.count,
                "recomputed": self.cost.recomputed_flops / self.count,
                "optimizer": self.cost.optimizer_flops / self.count,
            },
            "launches": self.launches,
            "shares": [dataclasses.asdict(share) for share in bounds.SHARES],
            "parts": [
                {**dataclasses.asdict(part), "seconds": dict(zip(names, part.seconds, strict=True))}
                for part in self.parts
            ],
            "collectives": [dataclasses.asdict(x) for x in self.sending],
            "overlap": [{**dataclasses.asdict(x), "part": x.part} for x in bounds.overlaps(self.sending)],
            "traffic_by_formula": dataclasses.asdict(self.traffic),
            "tokens_per_step": self.tokens_per_step,
            "step_seconds": dict(zip(names, self.seconds, strict=True)),
            "tokens_per_second": dict(zip(names, self.tokens_per_second, strict=True)),
            "hours": dict(zip(names, self.hours, strict=True)),
            "price_per_hour": self.price_per_hour,
        }

    def as_text(self) -> str:
        """The report as text."""
        lines = [*self._head(), "", *self._memory(), "", *self._products(), "", *self._table()]
        if self.sending:
            lines += ["", *self._sending()]
        return "\n".join([*lines, "", *self._times(), "", *self._unknown()])

    def _head(self) -> list[str]:
        cfg, sizes = self.cfg, self.compiled.sizes
        mesh = f", mesh {sharding.as_text(sizes)}" if self.count > 1 else ""
        return [
            f"target                 {self.compiled.target}: {self.count} x {self.card.device_kind}{mesh}; compiled in "
            f"{as_duration(self.compiled.seconds)}, nothing was run",
            f"model                  {count_params(param_shapes(cfg.model)):,} parameters; "
            f"{self.tokens_per_step:,} tokens a step x {cfg.train.num_steps:,} steps",
        ]

    def _memory(self) -> list[str]:
        compiled, card, G = self.compiled, self.card, as_bytes
        usable, share = fits.usable(card), fits.share_of_memory(card)
        count, total = fits.windows(self.cfg, compiled.sizes), compiled.memory
        lines = [
            f"memory                 {G(total)} on each device: {G(compiled.arguments)} arguments, "
            f"{G(compiled.temporaries)} temporaries",
            f"  arguments            parameters {G(self.state.params)}, optimizer {G(self.state.opt_state)}, the rest is data",
            f"  by formula           {G(self.predicted.total)}, without compiling",
            f"  the card             {G(card.memory)}"
            + ("" if share == 1 else f"; JAX takes {share:.0%} of it, {G(usable)} (XLA_PYTHON_CLIENT_MEM_FRACTION)"),
            f"  windows at once      {count}"
            + ("" if total <= usable else f": {G(total - usable)} more than JAX takes by default, set "
               f"XLA_PYTHON_CLIENT_MEM_FRACTION={fits.LARGEST_SHARE}"),
        ]  # fmt: skip
        if self.fit is not None:
            fit = self.fit
            lines.append(
                f"  largest that fits    {fit.windows} windows at once (train.grad_accumulation_steps={fit.parts}), "
                f"{G(fit.memory)} as compiled"
                + ("" if fit.next_memory is None else f"; {fit.next_windows} would need about {G(fit.next_memory)}")
            )  # fmt: skip
        unfinished = compiled.outputs - compiled.aliased
        lines.append(
            "  donation             "
            + ("complete" if unfinished < 2**20 else f"{G(unfinished)} of the state are not donated")
        )
        return lines

    def _products(self) -> list[str]:
        found, total = self.products, sum(self.products.values())
        fused = [k for k in self.kernels if k.dtype == ATTENTION]
        reason = self.not_fused
        forward = sum(k.times for k in fused if k.text.startswith("forward"))
        backward = sum(k.times for k in fused) - forward
        attention = (
            f"fused, {forward // self.steps:,} kernels forward and {backward // self.steps:,} backward in a step"
            if fused
            else f"not fused: {reason}"
        )
        lines = [f"attention              {attention}", f"products               {as_flop(total)} in a step"]
        lines += [
            f"  {name:<20} {as_flop(flops):>14}  {flops / total:>6.1%}"
            for name, flops in sorted(found.items(), key=lambda pair: -pair[1])
        ]
        cost = self.cost
        by_formula = cost.hardware_flops / self.count
        lines.append(
            f"  by formula           {as_flop(by_formula)}, with the full square of attention; fused attention with a causal mask "
            "leaves out half and computes the scores twice"
        )
        return lines

    def _table(self) -> list[str]:
        lines = [f"{'milliseconds of a step':<29}{'kernels':>9}{'GB':>9}{'TFLOP':>9}" + "".join(
            f"{share.name:>15}" for share in bounds.SHARES)]  # fmt: skip
        lines += [
            f"  {part.name:<27}{part.launches:>9,.0f}{part.bytes / 1e9:>9.2f}{part.flops / 1e12:>9.2f}"
            + "".join(f"{x * 1e3:>15,.2f}" for x in part.seconds)
            for part in self.parts
        ]
        if self.sending:
            exposed = [
                math.fsum(x.seconds - x.hidden[i] for x in self.sending) for i in range(len(bounds.SHARES))
            ]
            sent = sum(x.bytes for x in self.sending)
            lines.append(
                f"  {'sending that is not hidden':<27}{sum(x.launches for x in self.sending):>9,.0f}{sent / 1e9:>9.2f}{'':>9}"
                + "".join(f"{x * 1e3:>15,.2f}" for x in exposed)
            )
        lines.append(
            f"  {'sum':<27}{self.launches:>9,.0f}{'':>18}"
            + "".join(f"{x * 1e3:>15,.2f}" for x in self.seconds)
        )
        return lines

    def _sending(self) -> list[str]:
        lines = [
            f"traffic of a step      {as_bytes(sum(x.bytes for x in self.sending))} sent by each device, "
            f"{as_bytes(self.traffic.total)} by formula; {self.card.link / 1e9:,.0f} GB/s of each device within a machine"
        ]
        lines += [
            f"  {x.op:<20} {as_bytes(x.bytes):>14} in {x.launches:,.0f} operations, {x.overlapped:,.0f} of them next to "
            f"other kernels; {x.seconds * 1e3:,.2f} ms, {x.hidden[1] * 1e3:,.2f} ms hidden behind kernels"
            for x in sorted(self.sending, key=lambda x: -x.bytes)
        ]
        found = bounds.overlaps(self.sending)
        lines.append(
            f"  overlap              of {found[0].seconds * 1e3:,.2f} ms the schedule hides "
            + ", ".join(f"{x.hidden * 1e3:,.2f} ms ({x.part:.0%}; {x.share})" for x in found)
        )
        return lines

    def _times(self) -> list[str]:
        flops = self.cost.model_flops / self.count
        width = max(len(share.name) for share in bounds.SHARES)
        lines = ["speed"]
        for share, seconds, tokens, hours in zip(
            bounds.SHARES, self.seconds, self.tokens_per_second, self.hours, strict=True
        ):
            price = ""
            if self.price_per_hour is not None:
                price = f", {self.price_per_hour * self.count * hours:,.2f} at {self.price_per_hour:g} an hour for each card"
            lines.append(
                f"  {share.name:<{width}}  {tokens:>12,.0f} tokens/s, {flops / seconds / self.card.bf16:>5.1%} of the peak; "
                f"the run {as_duration(hours * 3600)}{price}"
            )
        lines += [f"    {share.name:<{width}} = {share.text()}" for share in bounds.SHARES[1:]]
        return lines

    def _unknown(self) -> list[str]:
        between = self.launches * LAUNCH_SECONDS
        return [
            "not known without the card: which kernels are chosen for the products (they are timed on it), memory of cuDNN, "
            "real clocks",
            f"not counted: {as_duration(between)} a step if each kernel starts {LAUNCH_SECONDS * 1e6:g} us late; evaluations, "
            "saves and compilation",
        ]


LAUNCH_SECONDS = 1.5e-6  # between two kernels on one stream, about


def largest_fit(cfg: Config, compiled: Compiled, compile_for: Callable[[Config], Compiled]) -> Fit | None:
    """The most windows at once that fit, verified by a second compilation; None: nothing fits."""
    possible, limit = fits.choices(cfg, compiled.sizes), fits.usable(compiled.target.card)
    count = fits.windows(cfg, compiled.sizes)
    line = fits.Line.through(cfg, compiled)
    best = fits.largest(line, possible, limit)
    if best is None:
        return None
    found = compiled
    while best != count:
        found = compile_for(fits.with_windows(cfg, compiled.sizes, best))
        line = fits.Line.through(cfg, compiled, (best, found))
        if found.memory <= limit:
            break
        smaller = [x for x in possible if x < best]
        if not smaller:
            return None
        best = max(smaller)
    else:
        found = compiled
    more = min((x for x in possible if x > best), default=None)
    return Fit(best, possible[best], found.memory, more, None if more is None else line.at(more))


def make(
    cfg: Config, target: Target, price_per_hour: float | None = None, tokens: int = ON_DEVICE_TOKENS,
    largest: bool = True,
) -> Report:  # fmt: skip
    """Compile a resolved config's dispatch for a target and report on it. Raises UserError, also for what can't fit.

    largest: compile up to a few more times to find the most windows at once.
    """

    def compile_for(changed: Config) -> Compiled:
        return compile_dispatch(changed, target, tokens)

    compiled = compile_for(cfg)
    fits.check(cfg, compiled)
    fit = largest_fit(cfg, compiled, compile_for) if largest else None
    return Report(cfg, compiled, fit, price_per_hour)


def dry_run(cfg: Config, target: str, price_per_hour: float | None = None, as_json: bool = False) -> str:
    """The report on a run on a target such as `h100x8`, as text or JSON. Only the token ids in the cache are written."""
    wanted = cards.parse(target)
    check_installed(wanted.card)
    with quiet():
        jax.devices()
    dataset = prepare_dataset(cfg.data)
    cfg = starting.resolve(cfg, dataset.tokenizer)
    mesh_sizes(cfg, wanted)
    say(f"compiling for {wanted}; a model of GPT-2's size takes a minute or more", sys.stderr)
    report = make(cfg, wanted, price_per_hour, len(dataset.train.ids))
    return json.dumps(report.as_dict(), indent=2) if as_json else report.as_text()
