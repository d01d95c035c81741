"""What a mesh costs on paper: bytes moved, time and memory for GPT-2 XL and a 7B shape on 8 and 64 GPUs.

    python -m experiments.scaling

The traffic is `jaxgpt.traffic`'s formula, which tests hold against the collectives that XLA puts into the compiled step of
eight simulated devices. Computing is the step's operations at 45 % of the 989 TFLOP/s that an H100's or H200's data sheet
has for bfloat16 without sparsity; the links are those of `traffic.INSIDE` and `traffic.BETWEEN`. No GPU was measured.
"""

from __future__ import annotations

import dataclasses

from jaxgpt import cli, config, costs, sharding, traffic
from jaxgpt.presets import PRESETS

FLOPS = 0.45 * 989e12
ROWS = 8  # windows a device
MESHES = {
    8: [(8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 4, 2)],
    64: [(64, 1, 1), (1, 64, 1), (8, 8, 1), (8, 1, 8), (4, 8, 2)],
}


def table(name: str) -> str:
    """A Markdown table: a row a mesh."""
    model = dataclasses.replace(PRESETS[name], dtype="bfloat16", vocab_multiple=128, use_bias=False)
    lines = [
        f"**{name}**: {costs.matmul_params(model):,} matrix parameters, {ROWS} windows of {model.context_length:,} a device",
        "",
        "| devices | data x fsdp x tensor | params + optimizer a device | sent a device and step | computing | sending | efficiency |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for count, meshes in MESHES.items():
        for mesh in meshes:
            sizes = dict(zip(sharding.AXES, mesh, strict=True))
            cfg = config.Config(model=model, data=config.Data(batch_size=ROWS * count))
            cost = costs.step_cost(cfg, "gpu")
            memory = costs.memory_a_device(cfg, cost.memory, sizes)
            sent = traffic.traffic(cfg, sizes)
            computing, sending = cost.hardware_flops / count / FLOPS, traffic.seconds(sent, sizes)
            low, high = traffic.efficiency(computing, sending)
            lines.append(
                f"| {count} | {' x '.join(map(str, mesh))} | {(memory.params + memory.opt_state) / 2**30:,.1f} GiB "
                f"| {sent.total / 2**30:,.2f} GiB | {computing:,.2f} s | {sending:,.3f} s | {low:.0%} to {high:.0%} |"
            )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """The command line: see --help."""
    cli.Parser(prog="python -m experiments.scaling", description=__doc__.splitlines()[0]).parse_args(argv)
    print("\n\n".join(table(name) for name in ("gpt2-xl", "gpt3-6.7b")))


if __name__ == "__main__":
    cli.run(main)
