"""What a value may be, and a setting: to read it, to check it, and to tell about it in words."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.leaves import named

_BOUNDS = {
    "least": ("at least", operator.ge),
    "above": ("more than", operator.gt),
    "below": ("less than", operator.lt),
    "most": ("at most", operator.le),
}


def amount(value: Any) -> int | float:
    """Return a number of things as int, a fraction of them as float: "10", "0.1", "1.0"."""
    if isinstance(value, (int, float)):
        return value
    return int(value) if value.strip().lstrip("+-").isdigit() else float(value)


# By the type: words for it, what to type where there is no default, and what Python may give.
KINDS: dict[Any, tuple[str, str, Any]] = {
    bool: ("0 or 1", "1", object),
    int: ("a whole number", "10", Integral),
    float: ("a number", "0.1", Real),
    str: ("a text", "...", object),
    object: ("given", "...", object),
    amount: (
        "a fraction above 0, at most 1.0, or a whole number",
        "10, or 0.1 for a tenth",
        (int, float),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, which is then finite, or ``choices``: all that is allowed."""

    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    choices: tuple[Any, ...] = ()

    def has(self, value: Any) -> bool:
        """Return whether ``value`` is allowed; of texts only choices say that."""
        if self.choices:
            return value in self.choices
        if not isinstance(value, Real):
            return True
        limits = ((good, getattr(self, name)) for name, (_, good) in _BOUNDS.items())
        inside = all(limit is None or good(value, limit) for good, limit in limits)
        return inside and math.isfinite(value)

    @property
    def bounds(self) -> str:
        """The range in words: "at least 0 and less than 1", "one of a, b", or ""."""
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        limits = ((words, getattr(self, name)) for name, (words, _) in _BOUNDS.items())
        return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)

    def refusal(self, name: str, value: Any, kind: str) -> str:
        """Return what to say of a ``value`` of ``name`` that is no ``kind`` in this range."""
        if self.choices:
            guess = nearest(str(value), [c for c in self.choices if isinstance(c, str)])
            return f"{name} is {value!r}.{guess} It must be {self.bounds}."
        return f"{name} is {value!r}; it must be {', '.join(filter(None, (kind, self.bounds)))}."


@dataclass(frozen=True, kw_only=True)
class Setting(Range):
    """A row of the table in `settings`."""

    name: str
    kind: Any  # a key of KINDS
    optional: bool = False  # may be None
    default: Any = None
    unset: str = ""  # what holds where the default is None
    example: Any = None  # of what is typed, where that is not the default
    takers: str = "Trainer"  # with the name there if it is another: "Trainer.max_epochs Other"
    parser: str = ""  # where lies what reads a text further, and refuses it
    fixed: bool = False  # may not change on resume
    flag: Any = None  # what the option means without a value
    needs: str = ""  # the setting without which this one does nothing
    group: str = ""
    help: str
    more: str = ""  # besides, in Python
    typed: bool = True  # as an option, not as an argument of Python

    def argument(self, taker: str) -> str | None:
        """Return what ``taker`` calls it, or None where it does not take it."""
        for place in self.takers.split():
            owner, _, name = place.partition(".")
            if owner == taker:
                return name or self.name
        return None

    def in_python(self, taker: str) -> Setting:
        """Return it as an argument of ``taker``."""
        choices = tuple(map(self.value, self.choices))
        if self.flag is not None and choices and False not in choices:
            choices += (False,)
        name = self.argument(taker) or self.name
        return replace(self, name=name, choices=choices, typed=False)

    def value(self, value: Any) -> Any:
        """Return ``value`` as Python takes it: True for the choice that is the flag."""
        switch = self.flag is not None and self.choices
        return {self.flag: True, 0: False}.get(value, value) if switch else value

    def read(self, value: Any) -> Any:
        """Return ``value``, from the command line or YAML, in its type; else raise UserError."""
        if value is None or (self.optional and value == "none"):
            if self.optional:
                return None
            words = KINDS[self.kind][0]
            raise UserError(f"{self.name} has no value. Give {words}, or leave the line out.")
        if isinstance(value, bool) and self.flag is not None:
            return self.flag if value else self.default
        whole = not isinstance(value, float) or value.is_integer() or self.kind is not int
        if whole and not isinstance(value, (bool, list, dict)):
            try:
                return self.kind(value)
            except (ValueError, OverflowError):
                pass
        raise self.error(value)

    def check(self, value: Any) -> None:
        """Raise UserError unless ``value`` is allowed; None is."""
        if value is None:
            return
        if not (isinstance(value, KINDS[self.kind][2]) and self.has(value)):
            raise self.error(value)
        if self.parser:
            named(self.parser)(value)

    def has(self, value: Any) -> bool:
        if self.kind is amount and isinstance(value, float):
            return 0 < value <= 1 or value == self.least == 0
        return super().has(value)

    @property
    def metavar(self) -> str:
        """What stands for a value in the help of the command line: INT, auto|stream."""
        return "|".join(map(str, self.choices)) or self.kind.__name__.upper()

    def notes(self) -> list[str]:
        """Return what is to be said of its value besides ``help``: the range, an example."""
        fraction = ", or a fraction up to 1.0" if self.kind is amount else ""
        example = "" if self.example is None else f"as {self.example:g}"
        return list(filter(None, (self.bounds + fraction, example)))

    def error(self, value: Any) -> UserError:
        """Return the error that says what ``value`` is, what is allowed, and what to type."""
        words, example, _ = KINDS[self.kind]
        message = self.refusal(self.name, value, words)
        if self.choices:
            return UserError(message)
        known = (self.example, None if self.kind is amount else self.default, example)
        shown = next(v for v in known if v is not None)
        shown = f"{shown:g}" if isinstance(shown, float) else shown
        how = f"--{self.name} " if self.typed else f"{self.name}="
        return UserError(f"{message} Type {how}{shown}")
