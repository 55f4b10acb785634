"""Structures of arrays: kept as they are, with leaves in Keras' order."""

import subprocess
import sys
from collections import namedtuple

import pytest

from fmnist_keras3.ground.tree import leaves, mapped, packed

Pair = namedtuple("Pair", "left right")
TREE = {"z": [1, None, (2,)], "a": Pair(3, {"y": 4, "x": 5})}


def test_a_structure_keeps_its_kinds_and_the_order_of_its_keys():
    made = mapped(lambda a, b: a + b, TREE, TREE)
    assert made == {"z": [2, None, (4,)], "a": Pair(6, {"y": 8, "x": 10})}
    assert list(made) == ["z", "a"]
    assert list(made["a"].right) == ["y", "x"]
    assert packed(TREE, leaves(made)) == made
    assert mapped(abs, None) is None
    assert leaves((None, [])) == []


def test_leaves_come_in_the_order_of_keras():
    import keras

    tree = {"z": [1, (2,)], "a": Pair(3, {"y": 4, "x": 5})}
    assert leaves(tree) == keras.tree.flatten(tree) == [3, 5, 4, 1, 2]


def test_what_keras_keeps_of_a_models_lists_and_dicts_is_a_structure():
    import keras

    model = keras.Model()
    model.given = {"z": [1, 2], "a": (3,)}
    assert leaves(model.given) == [3, 1, 2]
    assert mapped(abs, model.given) == {"z": [1, 2], "a": (3,)}


@pytest.mark.parametrize("other", [(1,), (1, 2, 3), {"a": 1, "b": 2}, 1])
def test_another_structure_is_refused(other):
    with pytest.raises(ValueError, match=r"arity mismatch; expected: 2|Expected an instance of"):
        mapped(max, (1, 2), other)


def test_importing_it_imports_neither_keras_nor_numpy():
    code = (
        "import sys, fmnist_keras3.ground.tree\n"
        "print({'keras', 'jax', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
