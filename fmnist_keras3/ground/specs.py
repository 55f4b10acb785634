"""Names with options in one text: ``airnet:widths=32-128-128,whiten=0``.

Needs no Keras, so that a wrong option is told at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.setting import KINDS, Range


@dataclass(frozen=True)
class Option(Range):
    """An option: its default, which gives the type (bool, int, float, str, tuple of int).

    A range is that of each number of a tuple.
    """

    default: Any
    about: str

    def read(self, name: str, given: Any) -> Any:
        """Return ``given``, a text or a value, in the option's type; raises UserError."""
        try:
            value = _typed(given, self.default)
        except (ValueError, TypeError, KeyError, OverflowError):
            value = ()
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers or not all(map(self.has, numbers)):
            several = f"whole numbers with - between, as {written(self.default)}"
            kind = type(self.default)
            words = several if kind is tuple else KINDS[kind][0]
            raise UserError(self.refusal(name, written(given), words))
        return value


def _typed(given: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        parts = given.split("-") if isinstance(given, str) else given
        return tuple(_typed(part, 0) for part in parts)
    if isinstance(default, bool):
        return {"0": False, "1": True, "False": False, "True": True}[str(given)]
    value = type(default)(given)
    if not isinstance(given, str) and value != given:
        raise ValueError(given)
    return value


def written(value: Any) -> str:
    """Return a value as it is typed: 32-128-128, 1, 0.5."""
    if isinstance(value, (tuple, list)):
        return "-".join(map(written, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def split(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and the options, as texts, of ``name:option=value,option=value``.

    Raises UserError for what is not of this form.
    """
    name, _, rest = text.partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key in given:
            what = "twice" if key in given else "without a value"
            raise UserError(f"{text!r} has {key!r} {what}. Type {name}:option=value,option=value")
        given[key] = value
    return name, given


def read(name: str, options: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all ``options`` of ``name``, in their types, those ``given`` first.

    Raises UserError for an unknown option, with the nearest, and for a value that is not allowed.
    """
    for key in given:
        if key not in options:
            has = f"Its options: {', '.join(options)}." if options else "It has no options."
            raise UserError(f"{name} has no option {key!r}.{nearest(key, options)} {has}")
    defaults = {key: option.default for key, option in options.items()}
    return defaults | {
        key: options[key].read(f"{name}:{key}", value) for key, value in given.items()
    }


def label(name: str, options: Mapping[str, Option], values: Mapping[str, Any]) -> str:
    """Return the name with the values that are not the defaults, as a part of a file's name."""
    others = [(k, v) for k, v in values.items() if v != options[k].default]
    return "_".join([name, *(f"{key}-{written(value)}" for key, value in others)])
