"""The program that XLA compiles for an H100, of this tree and of an older one: where the bound's milliseconds are.

    python -m experiments.gpu_program --before CHECKOUT [--out FILE]

Nothing runs on a GPU; jax-cuda12-pjrt has the compiler (extra gpu-compile). Batches of 64 x 1,024 tokens without
accumulation for configs/gpt2.py and gpt2_fast.py, configs/char_gpu.py as it is. Times are the bound of
training/target/bounds.py in which large kernels reach 790 TFLOP/s and attention 500. Further columns have one choice more.
Measured on the CPU: the error of the token table's gradient in bfloat16, by how often a token stands in the batch.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.common import cli, jax_settings
from jaxgpt.common.files import write_json
from jaxgpt.training.target import bounds, cards, collectives, compile, hlo, kernels

SHARE = next(i for i, share in enumerate(bounds.SHARES) if share.name == "large kernels")
ONE_BATCH = ("data.batch_size=64", "train.grad_accumulation_steps=1")
EIGHT = ("data.batch_size=512", "train.grad_accumulation_steps=1", "model.num_layers=2")
# Name: (config, devices, overrides, whether the older tree has the fields).
PROGRAMS: dict[str, tuple[str, int, tuple[str, ...], bool]] = {
    "gpt2": ("gpt2", 1, ONE_BATCH, True),
    "gpt2, logits in float32": ("gpt2", 1, (*ONE_BATCH, "train.logits_dtype=float32"), False),
    "gpt2, deterministic": ("gpt2", 1, (*ONE_BATCH, "train.deterministic=true"), False),
    "gpt2_fast": ("gpt2_fast", 1, ONE_BATCH, True),
    "gpt2_fast, logits in float32": ("gpt2_fast", 1, (*ONE_BATCH, "train.logits_dtype=float32"), False),
    "char_gpu": ("char_gpu", 1, (), True),
    "gpt2 with 2 layers, data=8": ("gpt2", 8, EIGHT, True),
    "gpt2 with 2 layers, data=8, 2 parts": ("gpt2", 8, (*EIGHT, "train.grad_accumulation_steps=2"), True),
    "gpt2 with 2 layers, data=4, tensor=2": ("gpt2", 8, (*EIGHT, "mesh.data=4", "mesh.tensor=2"), True),
    "gpt2 with 2 layers, fsdp=8": ("gpt2", 8, (*EIGHT, "mesh.data=1", "mesh.fsdp=8"), True),
    "gpt2 with 2 layers, fsdp=8, 2 parts": (
        "gpt2",
        8,
        (*EIGHT, "mesh.data=1", "mesh.fsdp=8", "train.grad_accumulation_steps=2"),
        True,
    ),
}

# Run with the package of a tree on the path: config, vocabulary, devices, description of the card, overrides -> HLO.
COMPILE = """
import dataclasses, json, sys
config, vocabulary, count, card, target, options, out, *overrides = sys.argv[1:]
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import jax._src.cudnn.fused_attention_stablehlo as fused
fused.check_cudnn_version = lambda: 92800
from jaxgpt.common import cli
from jaxgpt.model import attention, sharding
from jaxgpt.training import steps
attention.uses_fused_attention = lambda cfg, name: name != "explicit" and not cfg.cudnn_obstacle
devices = topologies.get_topology_desc(platform="cuda", target_config=card, topology=f"1x1x{count}").devices
cfg = cli.read_config(config, dict(text.split("=", 1) for text in overrides))
cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=int(vocabulary)))
sizes = sharding.mesh_sizes(cfg.mesh, int(count))
mesh = Mesh(np.array(devices).reshape(tuple(sizes.values())), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
def shape(x, *where):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P(*where)))
parts = steps.build(cfg)
state = steps.state_shapes(parts.model, parts.optimizer)
state = jax.tree.map(lambda x, where: shape(x, *where), state, sharding.specs(state.params, state))
n, B, T = cfg.train.steps_per_dispatch, cfg.data.batch_size, cfg.model.context_length
ids = shape(jax.ShapeDtypeStruct((1_000_000,), jnp.uint16)) if cfg.data.on_device else None
rows = jax.ShapeDtypeStruct((n, B) if cfg.data.on_device else (n, B, T + 1), jnp.int32)
key = shape(jax.eval_shape(lambda: jax.random.key(0)))
options = json.loads(options) | (steps.compiler_options(cfg) if hasattr(steps, "compiler_options") else {})
with sharding.use_mesh(mesh):
    step = jax.jit(steps.make_dispatch(parts.train_step, cfg), donate_argnums=0)
    done = step.lower(state, ids, shape(rows, None, sharding.BATCH), key).compile(compiler_options=options)
open(out, "w").write(done.as_text())
print(n, B * T, done.memory_analysis().temp_size_in_bytes)
"""


def compiled(tree: Path, name: str) -> dict[str, Any]:
    """Parts, bound, memory and traffic of one of PROGRAMS, compiled from a tree."""
    config, count, overrides, _ = PROGRAMS[name]
    target = cards.parse("h100" if count == 1 else f"h100x{count}")
    environment = os.environ | {
        "PYTHONPATH": str(tree), "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": "",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "program.hlo")
        done = subprocess.run(
            [
                sys.executable, "-c", COMPILE, f"configs/{config}.py", "65" if config == "char_gpu" else "50257", str(count),
                target.card.target_config, str(target), json.dumps(compile.GPU_OPTIONS), str(out), *overrides,
            ],
            cwd=tree, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        module = hlo.read(out.read_text())
    steps, tokens, temporaries = map(int, done.stdout.split()[-3:])
    found = bounds.parts(target.card, kernels.kernels(module), steps)
    sent = bounds.sending(target.card, collectives.collectives(module, count), steps)
    bound = sum(part.seconds[SHARE] for part in found)
    return {
        "milliseconds": {part.name: round(1e3 * part.seconds[SHARE], 2) for part in found}
        | {"sum": round(1e3 * bound, 2)},
        "tokens_per_second": round(tokens / bound),
        "launches": round(sum(part.launches for part in found)),
        "temporary_GiB": round(temporaries / 2**30, 2),
        "sent_MB": {x.op: round(x.bytes / 1e6, 1) for x in sent},
        "collectives": {x.op: round(x.launches, 1) for x in sent},
    }


def table_rows(seed: int = 0) -> dict[str, list[float]]:
    """Relative error of the token table's gradient, by occurrences of a row: summed in bfloat16, and in float32.

    65,536 tokens with frequencies as 1 / rank, gradients of 64 normal numbers a token with a common part.
    """
    rng = np.random.default_rng(seed)
    rows = 50_257
    chances = 1 / np.arange(1, rows + 1)
    tokens = rng.choice(rows, size=65_536, p=chances / chances.sum())
    common = rng.normal(size=(rows, 64))
    slopes = jnp.asarray(0.3 * common[tokens] + rng.normal(size=(len(tokens), 64)), jnp.bfloat16)
    exact = np.zeros((rows, 64))
    np.add.at(exact, tokens, np.asarray(slopes, np.float64))
    table = jnp.zeros((rows, 64))
    lookups = {
        "before": lambda table: jnp.take(table.astype(jnp.bfloat16), tokens, axis=0),
        "after": lambda table: jnp.take(table, tokens, axis=0).astype(jnp.bfloat16),
    }
    counts, found = np.bincount(tokens, minlength=rows), {"occurrences": [1.0, 2.0, 8.0, 64.0, 512.0]}
    edges = [*found["occurrences"], np.inf]
    for name, lookup in lookups.items():
        got = np.asarray(jax.vjp(lookup, table)[1](slopes)[0], np.float64)
        found[name] = []
        for low, high in itertools.pairwise(edges):
            there = (counts >= low) & (counts < high)
            error = np.linalg.norm(got[there] - exact[there]) / np.linalg.norm(exact[there])
            found[name].append(float(f"{error:.2g}"))
    return found


def main(argv: list[str]) -> None:
    """Run the command line; see --help."""
    parser = cli.Parser(prog="python -m experiments.gpu_program", description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="checkout of an older version")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu_program.json")
    parser.add_argument("--only", nargs="*", default=list(PROGRAMS), choices=list(PROGRAMS), metavar="NAME")
    args = parser.parse_args(argv)
    jax_settings.check()
    here = Path(__file__).parents[1]
    stored = json.loads(args.out.read_text()) if args.out.exists() else {"programs": {}}
    stored["card"], stored["jax"] = "h100", jax.__version__

    def commit(tree: Path) -> str:
        command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    stored["table_gradient_error"] = table_rows()
    write_json(args.out, stored)
    for name in args.only:
        trees = {"before": args.before if PROGRAMS[name][3] else None, "after": here}
        for when, tree in trees.items():
            if tree is not None:
                found = {"commit": commit(tree), **compiled(tree, name)}
                stored["programs"].setdefault(name, {})[when] = found
                print(
                    f"{name}, {when}: {found['milliseconds']['sum']} ms, {found['tokens_per_second']:,} tokens/s",
                    flush=True,
                )
        write_json(args.out, stored)


if __name__ == "__main__":
    cli.run(main)
