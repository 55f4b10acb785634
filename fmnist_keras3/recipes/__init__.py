"""Recipes: settings under a name, and what they were measured to give; one YAML file each.

A recipe's ``header`` tells about it: what it is for, the command, hardware and time, the accuracy
with its deviation over n seeds, and the files in which these figures are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.settings import mapping, typed

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the settings of a recipe, or of a file of one's own, by its path.

    A file needs no header. Raises UserError for an unknown name, with the nearest one, and
    for a file that is no recipe.

    Example: ``header, settings = read("baseline")``
    """
    if name.endswith((".yaml", ".yml")):
        values = mapping(name)
        header = values.pop("header", None) or {}
        return {"about": f"the recipe {name}", **header}, typed(values, name)
    if name not in names():
        raise UserError(
            f"There is no recipe {name!r}.{nearest(name, names())} "
            f"Recipes: {', '.join(names())} (see `fmnist recipes`), "
            "or the path of a YAML file."
        )
    path = FOLDER / f"{name}.yaml"
    values = mapping(path)
    return values.pop("header"), typed(values, path)


def layered(*layers: dict[str, Any]) -> dict[str, Any]:
    """Return settings of which later layers rule, over those of the recipe that they name."""
    given = {name: value for layer in layers for name, value in layer.items()}
    recipe = given.get("recipe")
    return given if recipe is None else read(recipe)[1] | given
