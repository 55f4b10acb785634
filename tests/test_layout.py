"""How the package is laid out: who may import whom, and how much there is to read."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fmnist_keras3"
FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [  # what one person reads in an afternoon: plan, engines, loop, checkpoints
    "data/dataset data/plan data/datamodule",
    "engines/base engines/chunk engines/step engines/metrics engines/averages",
    "training/trainer training/session training/fit training/loop training/feeds training/pace",
    "training/callback training/averaging",
    "runs/rundir runs/checkpoint runs/keeper",
]
PRIVATE = PACKAGE / "layers/keras_private.py"


def names(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=names)
def test_private_names_of_keras_stand_in_one_file(path):
    """What keras_private.py asks Keras for is asked for nowhere else."""
    source = PRIVATE.read_text()
    private = set(re.findall(r'_get\([^"]*, "(_\w+)"\)', source)) | {"_functional"}
    assert {"_flatten_layers", "_compile_loss", "_keras_history"} <= private
    if path == PRIVATE:
        return
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & private
    modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    modules += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not any(module.startswith("keras.src") for module in modules)
    assert "keras.src." not in path.read_text()


def test_a_private_name_that_is_gone_is_named_with_the_version():
    import keras

    from fmnist_keras3.layers import keras_private

    with pytest.raises(ImportError, match=rf"Keras {keras.__version__} has no Odd\._inbound_nodes"):
        keras_private.was_called(type("Odd", (), {})())
    with pytest.raises(ImportError, match=r"no keras\.src\.nowhere"):
        keras_private._source("nowhere")


@pytest.mark.parametrize("path", FILES, ids=names)
def test_no_file_has_more_than_400_lines(path):
    assert path.read_text().count("\n") <= 400


def test_the_core_is_read_in_an_afternoon():
    """At most 3,300 lines; what it imports is held by the contract in pyproject.toml."""
    files = [PACKAGE / f"{name}.py" for line in CORE for name in line.split()]
    assert sum(path.read_text().count("\n") for path in files) <= 3300
