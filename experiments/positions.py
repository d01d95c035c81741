"""Do models need positions? Four kinds, on text and on a question about order alone.

    python -m experiments.positions [--quick | --full] [--seeds 5]

The question: eight letters in random order, then two of them. Which of the two came first? The model answers after the
last token, and only that answer is trained and scored, so that a model without a causal mask can be asked as well.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import claim, comparing, tuning
from experiments.claim import Amendment, Check, Effect, Result, Setting
from jaxgpt import config
from jaxgpt.config import Config
from jaxgpt.model.gpt import GPT
from jaxgpt.model.parameters import init_params
from jaxgpt.training import optim
from jaxgpt.training.steps import token_losses

NOTE = "From the original paper we can we that they have added the two embeddings, we want to do that cause a single embedding will not hold the order."
CLAIM = "Token embeddings alone do not hold the order of the tokens; adding a vector for each position does."
PREDICTION = "Without positions and mask a model is at chance about the order; each table of positions lowers the loss of a text."
REFUTED_BY = (
    "Answers above chance without positions and mask; or a text on which positions gain less than 0.01 nats."
)
DESIGN = (
    "Character models of Shakespeare with no, learned, sinusoidal and rotary positions. Then small models that are asked "
    "which of two letters came first among eight, with and without a causal mask; chance is 0.5. Without positions and "
    "mask, the answers must not depend on the order of the letters; this is checked. On text each kind has its own best learning rate of at least five, chosen "
    "with other seeds; each kind is a condition, as is the causal mask, without positions, for the letters."
)
MARGINS = {"share": 0.05, "loss": 0.01}
AMENDMENTS = (
    Amendment(
        "2026-11-26", "Each kind of positions on text is a part, with its own rate; and what a mask lets through counts against the claim.",
        "Sinusoids on text were 0.001 [-0.004, 0.006] nats better than none, which was said nowhere.", "holds",
    ),
)  # fmt: skip
KINDS = ("none", "learned", "sinusoidal", "rotary")
LETTERS = 8


def questions(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, 10], eight letters in random order and then two of them, and which of the two came first [B]."""
    order_key, pair_key, swap_key = jax.random.split(key, 3)

    def shuffled(key):
        keys = jax.random.split(key, count)
        return jax.vmap(lambda k: jax.random.permutation(k, LETTERS))(keys)

    order_B8, places_B2 = shuffled(order_key), jnp.sort(shuffled(pair_key)[:, :2], axis=1)
    pair_B2 = jnp.take_along_axis(order_B8, places_B2, axis=1)
    swapped_B = jax.random.bernoulli(swap_key, shape=(count,))
    asked_B2 = jnp.where(swapped_B[:, None], pair_B2[:, ::-1], pair_B2)
    return jnp.concatenate([order_B8, asked_B2], axis=1), pair_B2[:, 0]


def order_config(setting: Setting, position: str, causal: bool) -> Config:
    """The model that is asked about the order."""
    return Config(
        model=config.ModelConfig(
            vocab_size=LETTERS, context_length=LETTERS + 2, d_model=setting.pick(8, 32, 64), num_layers=setting.pick(1, 2, 2),
            num_heads=setting.pick(1, 4, 4), activation="relu", position=position, causal=causal,
        ),
        optim=config.OptimConfig(learning_rate=4e-3, final_learning_rate_ratio=0.025, warmup_steps=setting.pick(1, 50, 50)),
        train=config.TrainConfig(num_steps=setting.pick(3, 400, 3_000), sample_tokens=0),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("cfg", "batch_size"))
def answered(cfg: Config, keys_S: jax.Array, batch_size: int) -> tuple[dict, jax.Array]:
    """For each seed's key: the trained parameters, and the share of correct answers to 1,024 new questions [S]."""
    model, schedule = GPT(cfg.model), optim.make_schedule(cfg.optim, cfg.train.num_steps)
    optimizer = optim.make_optimizer(cfg.optim, schedule)

    def loss(params, key):
        tokens_BT, answer_B = questions(key, batch_size)
        logits_BTV = model.apply({"params": params}, tokens_BT)
        return token_losses(logits_BTV[:, -1], answer_B).mean()

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    def one(params, key):
        keys = jax.random.split(key, cfg.train.num_steps + 1)
        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys[1:])
        tokens_BT, answer_B = questions(keys[0], 1024)
        logits_BV = model.apply({"params": params}, tokens_BT)[:, -1]
        return params, (logits_BV.argmax(axis=-1) == answer_B).mean()

    starts = [init_params(model, key) for key in keys_S]
    return jax.lax.map(lambda s: one(*s), (jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), keys_S))


def order_effect(cfg: Config, params: dict) -> float:
    """The largest change of a logit of the answer when the eight letters are reordered, over all seeds."""
    tokens_BT = np.asarray(questions(jax.random.key(1), 32)[0])
    other_BT = np.concatenate([tokens_BT[:, LETTERS - 1 :: -1], tokens_BT[:, LETTERS:]], axis=1)
    say = jax.vmap(lambda p, tokens: GPT(cfg.model).apply({"params": p}, tokens)[:, -1], (0, None))
    return float(jnp.abs(say(params, tokens_BT) - say(params, other_BT)).max())


def measure(setting: Setting) -> dict[str, Any]:
    """Losses on text by kind; shares of correct answers by kind, with and without the mask."""
    kinds = setting.pick(("none", "learned"), KINDS, KINDS)
    variants = {kind: {"model.position": kind} for kind in kinds}
    rows, chosen = tuning.train(setting, "positions", comparing.base(setting), variants)
    keys_S = jnp.stack([jax.random.key(seed) for seed in setting.seed_numbers])
    shares: dict[str, dict[str, list[float]]] = {"mask": {}, "no mask": {}}
    differs = math.nan
    for mask, by_kind in shares.items():
        for kind in kinds:
            cfg = order_config(setting, kind, mask == "mask")
            params, share_S = answered(cfg, keys_S, setting.pick(4, 64, 128))
            by_kind[kind] = np.asarray(share_S, float).tolist()
            if (mask, kind) == ("no mask", "none"):
                differs = order_effect(cfg, params)
    losses = {kind: comparing.losses(found) for kind, found in rows.items()}
    return {"losses": losses, "shares": shares, "reordered": differs, "tuning": chosen}


def conclude(measurements: dict[str, Any]) -> Result:
    """See DESIGN."""
    losses, shares = measurements["losses"], measurements["shares"]
    chosen = measurements.get("tuning", {})
    gained = {
        kind: claim.difference(losses["none"], found) for kind, found in losses.items() if kind != "none"
    }
    told = {mask: claim.difference(by_kind["learned"], by_kind["none"]) for mask, by_kind in shares.items()}
    neither, learned, masked = (
        claim.show(claim.mean(shares[mask][kind]))
        for mask, kind in (("no mask", "none"), ("no mask", "learned"), ("mask", "none"))
    )
    listed = ", ".join(f"{claim.show(found)} ({kind})" for kind, found in gained.items())
    weakest = min(gained, key=lambda kind: gained[kind].value)
    return Result(
        parts=(
            *(
                Effect(
                    "correct answers with learned positions minus those with none", found, "of all", margin=MARGINS["share"],
                    under="asked about the order, with a causal mask" if mask == "mask" else "asked about the order, without a mask",
                )
                for mask, found in told.items()
            ),
            Check("change of the answer's logits when the letters are reordered, no positions, no mask", measurements["reordered"], 1e-4),
            *(
                Effect("loss without positions minus loss with", found, "nats a character", under=f"on text, {kind}", margin=MARGINS["loss"])
                for kind, found in gained.items()
            ),
        ),
        says=(
            f"Asked about the order, a model without mask and positions answers correctly in {neither} of the cases; with learned "
            f"positions in {learned}; with a causal mask and no positions in {masked}. On text, positions lower the loss of none "
            f"by {listed} nats a character. {tuning.says(chosen) if chosen else ''}"
        ).strip(),
        seeds=len(losses["none"]),
        untold=tuning.at_the_edge(chosen),
        varies="the mask, the task and the kind of positions",
        headline=f"With a causal mask and no positions, {masked} of the answers about the order are right (without a mask {neither}); on text, the loss without positions "
        f"minus that with {weakest} ones is {claim.show(gained[weakest], 'nats')}.",
    )  # fmt: skip


def draw(figure: Any, measurements: dict[str, Any]) -> None:
    """Losses on text; correct answers with and without the mask."""
    text, masked, unmasked = figure.subplots(1, 3)
    comparing.draw_seeds(text, measurements["losses"], "validation loss,\nnats a character", long=True)
    text.set_title("Shakespeare")
    for axis, mask in ((masked, "mask"), (unmasked, "no mask")):
        comparing.draw_seeds(axis, measurements["shares"][mask], "correct answers", long=True)
        axis.axvline(0.5, color="#7a7a7a", linewidth=1, linestyle="--")
        axis.set_xlim(0, 1.05)
        axis.set_title(f"which came first? ({'causal mask' if mask == 'mask' else 'no mask'})")


if __name__ == "__main__":
    claim.run()
