"""Which parameters are trained, how fast, and which rows of the token table: rules on the paths of parameters.

    optim.trainable=block_*,-*            train the blocks, freeze the rest
    optim.trainable=-token_embedding/*,*  train all but the token table
    optim.rates=block_0/*=0.1,block_*=0.5

A rule is a pattern as for file names (`*` matches any text, also slashes) on the paths that gpt.py lists. The first rule
that matches a path counts. A frozen parameter has no gradient, no optimizer state and no decay: no bit of it changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxgpt import config
from jaxgpt.config import UserError
from jaxgpt.model.paths import map_named, named_leaves


def moves(cfg: config.OptimConfig, params: dict) -> Callable[[str], bool]:
    """The function path -> whether the parameter is trained, for the parameters of one model."""
    if cfg.trainable:
        return lambda path: next(
            (not rule.startswith("-") for rule in cfg.trainable if fnmatchcase(path, rule.removeprefix("-"))),
            False,
        )
    low_rank = any(path.endswith("/lora_a") for path, _ in named_leaves(params))
    return lambda path: not low_rank or path.endswith(("/lora_a", "/lora_b"))


def select(cfg: config.OptimConfig, params: dict) -> dict:
    """The tree of the trained parameters (shapes or arrays); the same tree if all are trained."""
    moving, leaves = moves(cfg, params), flatten_dict(params, sep="/")
    trained = {path: leaf for path, leaf in leaves.items() if moving(path)}
    return params if len(trained) == len(leaves) else unflatten_dict(trained, sep="/")


def merge(params: dict, part: dict) -> dict:
    """The parameters, with those of `part` (a tree of `select`) replaced."""
    return unflatten_dict({**flatten_dict(params, sep="/"), **flatten_dict(part, sep="/")}, sep="/")


def rates(cfg: config.OptimConfig, params: dict) -> dict:
    """The factor that optim.rates gives the learning rate of each parameter: a tree of floats."""
    rules = [(pattern, float(factor)) for pattern, _, factor in (r.rpartition("=") for r in cfg.rates)]

    return map_named(lambda path, _: next((x for rule, x in rules if fnmatchcase(path, rule)), 1.0), params)


# --- rows of the token table ----------------------------------------------------------------------------

# The arrays with a row or column per token, and its axis.
TOKEN_AXES = {"token_embedding": ("embedding", 0), "head": ("kernel", 1)}


def keep_rows(cfg: config.OptimConfig, new: dict, old: dict | None = None) -> dict:
    """`new` with the rows before optim.train_rows_from taken from `old`, bit for bit; zeros without `old`."""
    for owner, (name, axis) in TOKEN_AXES.items():
        if cfg.train_rows_from and owner in new:
            x = new[owner][name]
            kept = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) < cfg.train_rows_from
            x = jnp.where(kept, jnp.zeros_like(x) if old is None else old[owner][name], x)
            new = {**new, owner: {**new[owner], name: x}}
    return new


# --- checks ---------------------------------------------------------------------------------------------


def _near(pattern: str, paths: list[str]) -> str:
    found = difflib.get_close_matches(pattern.replace("*", ""), paths, n=3, cutoff=0.3)
    return ", ".join(found or paths[:3])


def check(cfg: config.OptimConfig, params: dict, vocab_size: int) -> None:
    """Raises UserError with every rule that does not fit the parameters (or shapes) of a model."""
    paths = [path for path, _ in named_leaves(params)]
    problems = []
    for name, patterns in (
        ("trainable", [rule.removeprefix("-") for rule in cfg.trainable]),
        ("rates", [rule.rpartition("=")[0] for rule in cfg.rates]),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in paths):
                problems.append(
                    f"optim.{name}: {pattern!r} matches no parameter; close are {_near(pattern, paths)}"
                )
    moving = moves(cfg, params)
    if not problems and not any(map(moving, paths)):
        problems.append(
            f"optim.trainable={','.join(cfg.trainable)} trains no parameter: add a pattern to train, such as '*' at the end"
        )
    if cfg.train_rows_from >= vocab_size:
        problems.append(
            f"optim.train_rows_from={cfg.train_rows_from} leaves no row of {vocab_size} tokens to train: lower it"
        )
    elif cfg.train_rows_from and not moving("token_embedding/embedding"):
        problems.append(
            f"optim.train_rows_from={cfg.train_rows_from}, but optim.trainable freezes token_embedding/embedding: "
            "train it, or leave train_rows_from out"
        )
    if problems:
        raise UserError("; ".join(problems))
