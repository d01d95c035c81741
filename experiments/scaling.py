"""What a mesh costs, on paper: bytes sent, time and memory for GPT-2 XL and a 7B shape on 8 and 64 GPUs.

    python -m experiments.scaling [--write experiments/scaling.md]

The traffic is the formula of jaxgpt/training/traffic.py, which tests compare with the collectives in the compiled step of
eight simulated devices. Computing time is the step's operations at 45 % of 989 TFLOP/s, the bfloat16 speed without sparsity
in the data sheet of an H100 or H200; link speeds are INSIDE and BETWEEN. No GPU was measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jaxgpt import config
from jaxgpt.common import cli
from jaxgpt.config.presets import PRESETS
from jaxgpt.model import sharding
from jaxgpt.model.parameters import param_shapes
from jaxgpt.training import costs, traffic

FLOPS = 0.45 * 989e12
# Bytes per second that a device can send: inside a machine of eight (NVLink 4, half of the 900 GB/s that NVIDIA's data sheet
# of the H100 and H200 counts in both directions), and between machines (one 400 Gbit/s adapter for each device).
INSIDE, BETWEEN, A_MACHINE = 450e9, 50e9, 8
ROWS = 8  # windows per device
MESHES = {
    8: [(8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2)],
    64: [(64, 1, 1), (1, 64, 1), (8, 8, 1), (8, 1, 8), (4, 8, 2)],
}


def shape(name: str) -> config.ModelConfig:
    """A preset with the settings for training on GPUs."""
    return dataclasses.replace(PRESETS[name], dtype="bfloat16", vocab_multiple=128, use_bias=False)


PAGE = """# What a mesh costs, on paper

Made by `python -m experiments.scaling --write experiments/scaling.md`. No GPU was measured for it.

## The formula

In a ring of n devices, each sends 2 (n - 1) / n of an array's bytes to sum it (all-reduce: a sum into shares, which are then sent
round), and (n - 1) / n to gather it from equal shares (all-gather) or to sum it into shares (reduce-scatter).
Let G be the bytes of all matrices and of their gradients, those of the blocks in bfloat16 and the token table in float32; and A those of the residual stream of one device's windows in bfloat16: windows x context x d_model x 2. Then each device sends, per step,

| axis | what | bytes |
| --- | --- | --- |
| data | the gradients that the device keeps are summed | 2 (data - 1) / data x G / (fsdp x tensor) |
| fsdp | parameters are gathered for the forward pass, and those of the blocks again for the backward pass if `train.remat` is on | (fsdp - 1) / fsdp x G / tensor |
| fsdp | their gradients are summed into shares | (fsdp - 1) / fsdp x G / tensor |
| tensor | the stream is summed twice per layer forward and twice backward, once for the embedding and once for the head's gradient | (4 layers + 2) x 2 (tensor - 1) / tensor x A |

With gradient accumulation, the two rows of fsdp occur once per part, but for the token table: once per step. The code is [`jaxgpt/training/traffic.py`](../jaxgpt/training/traffic.py), and `--dry_run` prints it
for any config. [`tests/model/test_sharding.py`](../tests/model/test_sharding.py) compiles the step for eight simulated devices and adds up its
collectives. The formula agrees with them within 1 % along each axis, except for two differences of XLA's CPU backend: it sums complete gradients
where a GPU sums them into shares, and it sums the gradients of query, key and value separately (2 more sums per layer).

## An example, by hand

{example}

## The tables

Computing time: the step's operations at 45 % of 989 TFLOP/s (the data sheet of an H100 or H200, bfloat16, without sparsity). Links:
{inside:.0f} GB/s per device within a machine of {machine}, {between:.0f} GB/s between machines; an axis that spans machines has the lower speed.
Efficiency is the share of the time spent computing: from no sending hidden behind computing to all of it.

{tables}

Within one machine, `fsdp` costs what `data` costs and stores an eighth; `tensor` sends more the larger the batch, and is for
models whose layers do not fit otherwise. Between machines the gradients take longest: `data` between machines and `fsdp` within them sends
least over the slow links.
"""


def example() -> str:
    """The formula with numbers, for a mesh with all three axes."""
    model, sizes = shape("gpt3-6.7b"), {"data": 4, "fsdp": 8, "tensor": 2}
    cfg = config.Config(model=model, data=config.DataConfig(batch_size=ROWS * 64))
    sent = traffic.traffic(cfg, sizes)
    stream = ROWS * 64 // (4 * 8) * model.context_length * model.d_model * 2
    table = model.table_rows * model.d_model
    matrices = costs.matmul_params(model)  # the tied table is one of them
    G, GiB = 2 * (matrices - table) + 4 * table, 2**30
    return f"""gpt3-6.7b on 64 devices as data 4 x fsdp 8 x tensor 2, {ROWS * 64} windows of {model.context_length:,} tokens:

- G = {G / GiB:.2f} GiB, A = {ROWS * 64 // 32} x {model.context_length:,} x {model.d_model:,} x 2 = {stream / GiB:.3f} GiB
- data: 2 x 3/4 x {G / GiB:.2f} / (8 x 2) = {2 * 3 / 4 * G / 16 / GiB:.2f} GiB (the code: {sent.data / GiB:.2f})
- fsdp: 7/8 x 2 x {G / GiB:.2f} / 2 = {7 / 8 * G / GiB:.2f} GiB (the code: {sent.fsdp / GiB:.2f})
- tensor: ({4} x {model.num_layers} + 2) x 2 x 1/2 x {stream / GiB:.3f} = {(4 * model.num_layers + 2) * stream / GiB:.2f} GiB (the code: {sent.tensor / GiB:.2f})

Norms and the position table are in the code and not in these numbers, so some last digits differ."""


def seconds(sent: traffic.Traffic, sizes: Mapping[str, int]) -> float:
    """The time of the traffic, one axis after the other, on machines of eight devices.

    The devices of a machine are neighbours along `tensor`, then `fsdp`, then `data`. An axis that spans machines runs at
    the speed between machines.
    """
    total, span = 0.0, 1
    for axis in reversed(sharding.AXES):
        span *= sizes[axis]
        total += getattr(sent, axis) / (INSIDE if span <= A_MACHINE else BETWEEN)
    return total


def table(name: str) -> str:
    """A Markdown table with a row per mesh."""
    model = shape(name)
    lines = [
        f"**{name}**: {costs.matmul_params(model):,} matrix parameters, {ROWS} windows of {model.context_length:,} per device",
        "",
        "| devices | data x fsdp x tensor | params + optimizer per device | sent per device and step | computing | sending | efficiency |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count, meshes in MESHES.items():
        for mesh in meshes:
            sizes = dict(zip(sharding.AXES, mesh, strict=True))
            cfg = config.Config(model=model, data=config.DataConfig(batch_size=ROWS * count))
            try:
                sharding.check(sizes, param_shapes(model), cfg)
            except config.UserError:
                words = f"{model.num_heads} heads are not a multiple of {sizes['tensor']}"
                lines.append(f"| {count} | {' x '.join(map(str, mesh))} | refused: {words} | | | | |")
                continue
            cost = costs.step_cost(cfg, "gpu")
            memory = costs.memory_per_device(cfg, cost.memory, sizes)
            sent = traffic.traffic(cfg, sizes)
            computing, sending = cost.hardware_flops / count / FLOPS, seconds(sent, sizes)
            low, high = computing / (computing + sending), computing / max(computing, sending)
            lines.append(
                f"| {count} | {' x '.join(map(str, mesh))} | {(memory.params + memory.opt_state) / 2**30:,.1f} GiB "
                f"| {sent.total / 2**30:,.2f} GiB | {computing:,.2f} s | {sending:,.3f} s | {low:.0%} to {high:.0%} |"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=None, help="write the page to this file")
    args = parser.parse_args(argv)
    tables = "\n\n".join(table(name) for name in ("gpt2-xl", "gpt3-6.7b"))
    print(tables)
    if args.write:
        links = {
            "inside": INSIDE / 1e9,
            "between": BETWEEN / 1e9,
            "machine": A_MACHINE,
        }
        args.write.write_text(PAGE.format(example=example(), tables=tables, **links), "utf-8")


if __name__ == "__main__":
    cli.run(main)
