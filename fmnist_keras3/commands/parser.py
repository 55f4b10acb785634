"""The parser of the command line, and options that are made from the table of settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from fmnist_keras3 import settings
from fmnist_keras3.ground.errors import UserError, nearest
from fmnist_keras3.ground.lightning import option_here
from fmnist_keras3.ground.setting import Setting


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s that name the nearest option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}. Type {self.prog} --help")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse all of ``words``; raises UserError for any that is not known."""
        known, unknown = self.parse_known_args(words)
        for word in unknown:
            if word.startswith("-"):
                options = [o for action in self._actions for o in action.option_strings]
                here = option_here(word, [option.lstrip("-") for option in options])
                guess = here or nearest(word.split("=")[0], options)
                raise UserError(f"There is no option {word}.{guess} Type {self.prog} --help")
        if unknown:
            guess = _named(unknown[0])
            raise UserError(f"Unexpected {unknown[0]!r}.{guess} Type {self.prog} --help")
        return known


def _named(word: str) -> str:
    """Return what to type for a model's or recipe's name without its option, else ""."""
    from fmnist_keras3 import recipes
    from fmnist_keras3.models import MODELS

    known = {"model": MODELS, "recipe": recipes.names()}
    options = [f"--{option} {word}" for option, names in known.items() if word in names]
    return f" Perhaps {' or '.join(options)}." if options else ""


def add_option(parser: Any, name: str, **options: Any) -> None:
    """Add ``--some_name``, also spelled ``--some-name``."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    parser.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, **options)


def setting_options(parser: Parser) -> None:
    add_option(parser, "config", metavar="FILE", help="YAML file with any of these settings")
    groups = dict.fromkeys(setting.group for setting in settings.SETTINGS.values())
    for group in groups:
        inside = [name for name, s in settings.SETTINGS.items() if s.group == group]
        add_settings(parser.add_argument_group(group), *inside)


def add_settings(
    parser: Any, *names: str, table: Mapping[str, Setting] = settings.SETTINGS
) -> None:
    """Add settings of a ``table`` as options, with their help, range and default."""
    for setting in map(table.__getitem__, names):
        notes = [] if setting.choices else setting.notes()
        text = f"{setting.help} ({', '.join(notes)})" if notes else setting.help
        default = setting.unset if setting.default is None else setting.default
        text += f" [{default}]" if default != "" else ""
        more: dict[str, Any] = {"metavar": setting.metavar, "help": text.replace("%", "%%")}
        if setting.flag is not None:
            more |= {"nargs": "?", "const": setting.flag}
        add_option(parser, setting.name, **more)
