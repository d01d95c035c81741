"""Steps of the GPU configs, compiled for cards that are not here, for tests/training/test_target_programs.py.

python -m tests.gpu_programs FOLDER [NAME ...]

Each program goes to FOLDER/NAME.txt (optimized HLO) and FOLDER/NAME.json (sizes). A process of its own: this one loads a compiler
that the tests' other processes do without.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from jaxgpt.common import cli, jax_settings
from jaxgpt.config import Config, from_config_dict
from jaxgpt.training.lanes import with_values
from jaxgpt.training.target import cards

# By name: the config, the number of layers, the target, changed fields.
STEPS: dict[str, tuple[str, int, str, dict]] = {
    "gpt2": ("configs/gpt2.py", 2, "h100", {}),
    "gpt2_fast": ("configs/gpt2_fast.py", 2, "h100", {}),
    "char_gpu": ("configs/char_gpu.py", 2, "h100", {}),
    "gpt2_x8": ("configs/gpt2.py", 1, "h100x8", {}),
    "gpt2_2_parts_x8": ("configs/gpt2.py", 1, "h100x8", {"train.grad_accumulation_steps": 2}),
    "gpt2_fsdp_x8": ("configs/gpt2.py", 1, "h100x8", {"mesh.data": 2, "mesh.fsdp": 4}),
    "gpt2_tensor_x8": (
        "configs/gpt2.py",
        1,
        "h100x8",
        {"mesh.data": 4, "mesh.tensor": 2, "train.grad_accumulation_steps": 1},
    ),
    "gpt2_fast_x8": ("configs/gpt2_fast.py", 1, "h100x8", {}),
    "char_gpu_x8": ("configs/char_gpu.py", 1, "h100x8", {}),
}
VOCABULARY = {"gpt2": 50_257, "char": 71}


def config_of(name: str) -> Config:
    """A GPU config with few layers, at its own batch, context and width."""
    file, layers, _, changed = STEPS[name]
    cfg = from_config_dict(cli.load_config_dict(file))
    known = {"model.num_layers": layers, "model.vocab_size": VOCABULARY[cfg.data.tokenizer]}
    return with_values(cfg, known | changed)


def compile_all(folder: Path, names: list[str]) -> None:
    """Compile steps and write what the compiler says."""
    from jaxgpt.training.target.compile import compile_dispatch

    for name in names:
        found = compile_dispatch(config_of(name), cards.parse(STEPS[name][2]))
        (folder / f"{name}.txt").write_text(found.text)
        sizes = {
            key: value
            for key, value in dataclasses.asdict(found).items()
            if isinstance(value, int | float | dict)
        }
        sizes.pop("target")
        (folder / f"{name}.json").write_text(json.dumps(sizes))


# --- small programs, each with what a guard is to find --------------------------------------------------


def compile_broken(folder: Path) -> None:
    """Compile programs of a few lines that do what the steps must not do: NAME.txt and NAME.json as above."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxgpt.training.target import compile as target_compile

    devices = target_compile.devices(cards.parse("h100x8"))
    alone, together = Mesh(np.array(devices[:1]), ("data",)), Mesh(np.array(devices), ("data",))

    def array(
        *shape: int, dtype: str = "bfloat16", mesh: Mesh = alone, split: str | None = None
    ) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(split)))

    def attention(implementation: str):
        def loss(q, k, v):
            out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
            return out.astype(jnp.float32).sum()

        return jax.grad(loss, (0, 1, 2))

    def reduced_in_each_part(x, w):
        def part(total, rows):
            gradient = jax.lax.with_sharding_constraint(rows.T @ rows, NamedSharding(together, P()))
            return jnp.tanh(total + gradient), None

        return jax.lax.scan(part, w, x)[0]

    def chain(x):
        for _ in range(100):
            x = jax.lax.optimization_barrier(jnp.sin(x))
        return x

    def gathered(x):
        return jnp.sin(jax.lax.with_sharding_constraint(x, NamedSharding(together, P())))

    square, wide = array(512, 512, dtype="float32"), array(4, 1024, 64)
    heads = array(2, 256, 4, 64)
    programs = {
        "f32_product": (lambda x: jnp.matmul(x, x, precision="highest"), (square,)),
        "tf32_product": (lambda x: x @ x, (square,)),
        "unfused": (attention("xla"), (heads, heads, heads)),
        "fused": (attention("cudnn"), (heads, heads, heads)),
        "logits": (lambda x, w: jnp.exp(x @ w).sum(), (wide, array(64, 8192))),
        "not_donated": (lambda x: x + 1, (square,)),
        "donated": (lambda x: x + 1, (square,)),
        "reduced_in_each_part": (reduced_in_each_part, (
            array(4, 512, 1024, dtype="float32", mesh=together, split=None).update(
                sharding=NamedSharding(together, P(None, "data"))),
            array(1024, 1024, dtype="float32", mesh=together))),
        "gathered": (gathered, (array(4096, 1024, mesh=together, split="data"),)),
        "many_kernels": (jax.named_scope("a/block_0/b")(chain), (square,)),
        "summed_in_float32": (lambda x: jax.lax.with_sharding_constraint(
            (x.astype("float32") * 2).sum(0), NamedSharding(together, P())),
            (array(8, 1024, 1024, mesh=together, split="data"),)),
    }  # fmt: skip
    for name, (function, arguments) in programs.items():
        donated = {"donate_argnums": 0} if name == "donated" else {}
        with target_compile.tracing(cards.CARDS["h100"]):
            lowered = jax.jit(function, **donated).lower(*arguments)
            compiled = lowered.compile(compiler_options=target_compile.GPU_OPTIONS)
        (folder / f"{name}.txt").write_text(compiled.as_text())
        memory = compiled.memory_analysis()
        sizes = {"outputs": memory.output_size_in_bytes, "aliased": memory.alias_size_in_bytes,
                 "temporaries": memory.temp_size_in_bytes}  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    jax_settings.check(compiles=True)
    compile_broken(Path(sys.argv[1]))
    compile_all(Path(sys.argv[1]), sys.argv[2:] or list(STEPS))
