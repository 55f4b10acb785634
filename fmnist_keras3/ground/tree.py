"""Structures of arrays, as models with several inputs or outputs take them: tuples, lists, dicts.

`keras.tree` does the same, but importing it imports Keras and a backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def mapped(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return ``tree`` with ``function`` of each leaf, and of those at its place in ``others``.

    None stays None.
    """
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {key: mapped(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, (tuple, list)):
        parts = zip(tree, *others, strict=True)
        made = [mapped(function, *part) for part in parts]
        return type(tree)(*made) if hasattr(tree, "_fields") else type(tree)(made)  # namedtuple
    return function(tree, *others)


def leaves(tree: Any) -> list[Any]:
    """Return the leaves of ``tree`` in their order; None is no leaf."""
    found: list[Any] = []
    mapped(found.append, tree)
    return found


def packed(tree: Any, values: list[Any]) -> Any:
    """Return ``tree`` with ``values`` for its leaves, the reverse of `leaves`."""
    rest = iter(values)
    return mapped(lambda _: next(rest), tree)
