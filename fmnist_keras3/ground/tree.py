"""Structures of arrays, as models with several inputs or outputs take them: tuples, lists, dicts.

Keras' own `keras.tree`, whose kinds these are, too, imports Keras and a backend. The leaves of a
dict come in the order of its sorted keys, as there; a dict that is made keeps the order it had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return ``tree`` with ``function`` of each leaf, and of those at its place in ``others``.

    None stays None. Raises ValueError for ``others`` of another structure.
    """
    return optree.tree_map(function, tree, *others, namespace="keras")


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of ``tree`` in their order; None is no leaf."""
    return optree.tree_leaves(tree, namespace="keras")


def packed(tree: Any, values: list[Any]) -> Any:
    """Return ``tree`` with ``values`` for its leaves, the reverse of `leaves`."""
    return optree.tree_unflatten(optree.tree_structure(tree, namespace="keras"), values)
