"""Parameters by path: `block_0/mlp/up/kernel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) of every leaf, in the tree's own order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of function(path, leaf)."""
    return jax.tree.unflatten(jax.tree.structure(tree), [function(*named) for named in named_leaves(tree)])
