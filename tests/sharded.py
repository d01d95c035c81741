"""Results on 8 devices for tests/model/test_sharding.py, from a process that has them; JSON on the last line.

JAX_NUM_CPU_DEVICES=8 python -m tests.sharded FOLDER [few] [documents] [frozen] [everything] [plain] [mixture] [lookups] [traffic] [elastic] [elastic4]
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt import config
from jaxgpt.data.batches import Batches, marked
from jaxgpt.model import layers, parameters, sharding
from jaxgpt.runs.load import load
from jaxgpt.training import loop, programs, state_memory, steps, traffic
from tests.small_runs import metrics, small_config, write_text

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 2, 1), (2, 1, 4)]
FEW = [(2, 2, 2)]  # all others: slow tests
# One run: until which step, on which mesh.
TURNS = {
    "elastic": [(10, (8, 1, 1)), (None, (2, 1, 2))],
    "elastic4": [(6, (8, 1, 1)), (12, (1, 1, 1)), (18, (2, 1, 2)), (None, (1, 2, 1))],
}
CFG = config.Config(
    model=config.ModelConfig(
        vocab_size=61, vocab_multiple=8, context_length=16, d_model=64, num_layers=2, num_heads=8, dropout_rate=0.1, dropout_bits=8,
        tie_embeddings=False, position="rotary", qk_norm=True, qk_norm_scale=True, rotary_fraction=0.5, activation="swiglu", use_bias=False, norm="rmsnorm_plain",
    ),
    data=config.DataConfig(batch_size=16),
    optim=config.OptimConfig(name="muon", learning_rate=3e-3, warmup_steps=5, ema_decay=0.9),
    train=config.TrainConfig(num_steps=20, grad_accumulation_steps=2, loss_chunk=8),
)  # fmt: skip
PLAIN = dataclasses.replace(
    CFG,
    # No biases: a key's has no effect on the softmax, its gradient is noise, and Adam makes steps of it.
    model=config.ModelConfig(
        vocab_size=64, context_length=16, d_model=64, num_layers=2, num_heads=8, use_bias=False
    ),
    optim=config.OptimConfig(learning_rate=3e-3, warmup_steps=5),
    train=config.TrainConfig(num_steps=20),
)
# Trained are: the last rows of a narrow table, low-rank matrices, and one block of two.
FROZEN = dataclasses.replace(
    PLAIN,
    model=dataclasses.replace(
        PLAIN.model, embedding_dim=32, lora_rank=4, lora_targets=("query", "out", "up", "down")
    ),
    train=config.TrainConfig(num_steps=20, grad_accumulation_steps=2),
    optim=config.OptimConfig(
        # eps: Adam makes steps of the noise in gradients as small as those of A while B is near 0.
        learning_rate=3e-3, warmup_steps=5, ema_decay=0.9, train_rows_from=32, eps=1e-4,
        trainable=("block_1/*", "*/lora_?", "token_embedding/*"), rates=("*/lora_b=0.5",),
    ),
)  # fmt: skip
# Documents in windows, each with targets that do not count.
DOCUMENTS = dataclasses.replace(
    CFG,
    model=dataclasses.replace(CFG.model, document_mask=True, document_end=3, dropout_rate=0.0),
    data=config.DataConfig(batch_size=16, windows="documents"),
    train=config.TrainConfig(num_steps=20, grad_accumulation_steps=2, loss_chunk=8),
)
# A tied table, learned positions, all logits at once, a penalty on them: with and without targets that do not count.
TIED = dataclasses.replace(
    DOCUMENTS,
    model=dataclasses.replace(PLAIN.model, dropout_rate=0.1, document_mask=True, document_end=3),
    optim=config.OptimConfig(learning_rate=3e-3, warmup_steps=5, z_loss=1e-2),
    train=config.TrainConfig(num_steps=20, grad_accumulation_steps=2),
)
RUNS = {
    "documents": (DOCUMENTS, [(8, 1, 1), (2, 2, 2)]),
    "few": (CFG, FEW),
    "frozen": (FROZEN, [(2, 2, 2)]),
    "tied": (TIED, [(8, 1, 1), (2, 2, 2)]),
    "everything": (CFG, MESHES),
    "plain": (PLAIN, MESHES),
}
TRAFFIC = dataclasses.replace(
    PLAIN,
    model=config.ModelConfig(
        vocab_size=128, context_length=64, d_model=64, num_layers=3, num_heads=8, use_bias=False, position="rotary",
        norm="rmsnorm_plain", tie_embeddings=False,
    ),
)  # fmt: skip


def run(cfg: config.Config, sizes: tuple[int, int, int]) -> dict:
    """20 steps: the losses, the parameters, and the bytes of the state that one device is given."""
    mesh = sharding.make_mesh(config.MeshConfig(*sizes))
    shapes = parameters.param_shapes(cfg.model)
    sharding.check(mesh.shape, shapes, cfg)
    parts = steps.build(cfg)
    B, T = cfg.data.batch_size, cfg.model.context_length
    rng = np.random.default_rng(0)
    batches = rng.integers(cfg.model.vocab_size, size=(20, B, T + 1), dtype=np.int32)
    if cfg.data.marks_targets:  # more in some rows than in others
        batches = marked(batches, rng.random(batches.shape) < rng.random((20, B, 1)))
    key, losses = jax.random.key(7), []
    with sharding.use_mesh(mesh):
        state = steps.init_state(parts.model, parts.optimizer, key)
        step = jax.jit(parts.train_step, donate_argnums=0)
        places = sharding.with_shardings(mesh, shapes, steps.state_shapes(parts.model, parts.optimizer))
        for at in range(20):
            batch = sharding.put_batch(mesh, (B, T + 1), lambda rows, at=at: batches[at][rows], axis=0)
            if at == 0:
                compiled = step.lower(places, batch, key).compile()
            state, found = compiled(state, batch, key)
            losses.append(float(found["loss"]))
    on_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    predicted = state_memory.state_bytes(cfg, mesh.shape)
    return {
        "losses": losses,
        "params": [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)],
        "bytes": on_one,
        "predicted": predicted.params + predicted.opt_state + state.step.nbytes,
        "arguments": compiled.memory_analysis().argument_size_in_bytes,
    }


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Of the parameter that differs most: the length of the difference over its own."""
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a)) for a, b in zip(one, other, strict=True))


def sent(cfg: config.Config, sizes: tuple[int, int, int]) -> dict:
    """Of a step: the bytes of the arrays in the compiled program's collectives, by kind; and the formula's traffic."""
    mesh = sharding.make_mesh(config.MeshConfig(*sizes))
    shapes, parts = parameters.param_shapes(cfg.model), steps.build(cfg)
    B, T = cfg.data.batch_size, cfg.model.context_length
    with sharding.use_mesh(mesh):
        places = sharding.with_shardings(mesh, shapes, steps.state_shapes(parts.model, parts.optimizer))
        tokens = np.zeros((B, T + 1), np.int32)
        batch = sharding.put_batch(mesh, tokens.shape, lambda rows: tokens[rows], axis=0)
        text = jax.jit(parts.train_step).lower(places, batch, jax.random.key(0)).compile().as_text()
    found = {"all-reduce": 0, "all-gather": 0, "all-to-all": 0, "collective-permute": 0, "reduce-scatter": 0}
    for shapes_text, kind in re.findall(
        rf"^.*? = (.*?) ({'|'.join(found)})(?:-start)?\(", text, re.MULTILINE
    ):
        for dims in re.findall(r"[fsu]32\[([\d,]*)\]", shapes_text):
            found[kind] += 4 * int(np.prod([int(n) for n in dims.split(",") if n]))
    predicted = traffic.traffic(cfg, dict(zip(sharding.AXES, sizes, strict=True)))
    return {"found": found, "predicted": dataclasses.asdict(predicted)}


def compare(one: dict, other: dict) -> dict:
    """How far the runs are apart, and what one device of the other holds as a share of what the one does."""
    return {
        "loss": max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=True)),
        "params": apart(one["params"], other["params"]),
        "bytes": other["bytes"] / one["bytes"],
        "predicted": other["predicted"] - other["bytes"],
        "arguments": other["arguments"] / one["arguments"],
    }


def elastic(folder: Path, turns: list) -> dict:
    """One run over several meshes in turn, and the same run on one device."""
    text = write_text(folder / "text.txt")
    cfg = small_config(
        text, model__dropout_rate=0.2, data__batch_size=8, train__eval_batch_size=8, model__d_model=32,
        model__use_bias=False, train__num_steps=24, train__sample_tokens=0,
    )  # fmt: skip

    def under(*sizes: int) -> config.Config:
        return dataclasses.replace(cfg, mesh=config.MeshConfig(*sizes))

    loop.train(under(1, 1, 1), folder / "one")
    for stop, sizes in turns:
        loop.train(under(*sizes), folder / "many", stop_at=stop)
    losses = [[line["loss"] for line in metrics(folder / name)] for name in ("one", "many")]
    params = [jax.tree.leaves(load(folder / name).params) for name in ("one", "many")]
    return {"losses": losses, "params": apart(*(list(map(np.asarray, leaves)) for leaves in params))}


def mixture() -> dict:
    """For each mesh, how many of the batches on its devices are those of the mixture."""
    model = dataclasses.replace(PLAIN.model, context_length=8)
    data = config.DataConfig(mixture="a=p:0.7@0 0.2@30, b=q:0.3, c=r:0.1", batch_size=16, seed=3)
    ids, lengths = np.arange(5_000, dtype=np.uint16), (3_000, 1_500, 500)
    found = {}
    for sizes in MESHES:
        cfg = dataclasses.replace(PLAIN, model=model, data=data, mesh=config.MeshConfig(*sizes))
        program, expected = programs.SingleRun(cfg, ids, lengths), Batches.of(cfg, ids, lengths)
        with program.context():
            found[str(sizes)] = sum(
                np.array_equal(program.feed(step)[1], expected.stack(step, 1)) for step in (0, 7, 31, 10**6)
            )
    return found


def lookups() -> dict:
    """For tables whose rows are split: are rows in bfloat16, and the gradient of the table, those without a mesh?"""
    rng = np.random.default_rng(0)
    table, ids = rng.normal(size=(64, 8)).astype(np.float32), rng.integers(0, 64, (16, 5))
    slopes = rng.integers(-8, 8, (16, 5, 8)).astype(jnp.bfloat16)  # their sums are exact in any order
    read = layers.Table(CFG.model, "token_embedding/embedding", table.shape)

    def rows(table):
        return read.apply({"params": {"embedding": table}}, ids, jnp.bfloat16)

    def spread(table):
        return rows(
            sharding.spread_tables({"token_embedding": {"embedding": table}})["token_embedding"]["embedding"]
        )

    found = {}
    expected, back = jax.vjp(rows, table)
    for sizes in [(2, 2, 2), (1, 1, 8)]:
        with sharding.use_mesh(sharding.make_mesh(config.MeshConfig(*sizes))):
            for name, function in (("one table", rows), ("a table for each part of the rows", spread)):
                got, pull = jax.jit(lambda x, of=function: jax.vjp(of, x))(table)
                same = np.array_equal(got, expected) and np.array_equal(
                    jax.jit(pull)(slopes)[0], back(slopes)[0]
                )
                found[f"{sizes}, {name}"] = bool(same)
    return found


if __name__ == "__main__":
    folder, *parts = sys.argv[1:]
    found = {"devices": jax.device_count()}
    for name, (cfg, meshes) in RUNS.items():
        if name in parts:
            one = run(cfg, (1, 1, 1))
            found[name] = {str(sizes): compare(one, run(cfg, sizes)) for sizes in meshes}
    if "mixture" in parts:
        found["mixture"] = mixture()
    if "lookups" in parts:
        found["lookups"] = lookups()
    if "traffic" in parts:
        found["traffic"] = {str(sizes): sent(TRAFFIC, sizes) for sizes in [(8, 1, 1), (1, 8, 1), (1, 1, 8)]}
    for name in TURNS.keys() & set(parts):
        found[name] = elastic(Path(folder), TURNS[name])
    print(json.dumps(found))
