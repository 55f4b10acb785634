"""Writes what the Trainer's docstring and the README say of the settings, from their table.

Type: PYTHONPATH=. python tests/write_settings.py
"""

import re
import textwrap
from pathlib import Path

from fmnist_keras3.ground.setting import KINDS
from fmnist_keras3.settings import ARGUMENTS, SETTINGS

PACKAGE = Path(__file__).parents[1] / "fmnist_keras3"
GROUPS = list(dict.fromkeys(setting.group for setting in SETTINGS.values()))
# A file, and what stands before and behind the part of it that is written.
DOCSTRING = (
    PACKAGE / "training/trainer.py",
    "follow Lightning where they exist.\n\n",
    "\n\n    Raises UserError",
)
TABLE = (PACKAGE / "training/README.md", "<!-- settings -->\n\n", "\n\n<!-- /settings -->")


def docstring():
    """The Trainer's arguments, a line each."""
    lines = []
    for group in GROUPS:
        inside = [s for s in (*SETTINGS.values(), *ARGUMENTS) if s.group == group]
        taken = [s.in_python("Trainer") for s in inside if s.argument("Trainer")]
        lines += [f"    {group.capitalize()}:"] * bool(taken)
        for setting in taken:
            notes = f" ({', '.join(setting.notes())})" if setting.notes() else ""
            more = f"; {setting.more}" if setting.more else ""
            text = f"- ``{setting.name}``: {setting.help}{notes}{more}"
            lines += textwrap.wrap(
                text, 100, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
    return "\n".join(lines)


def table():
    """All settings, a row each."""
    rows = [
        "| `fmnist train` | in Python | default | allowed | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group in GROUPS:
        rows.append(f"| **{group}** | | | | |")
        for setting in (s for s in (*SETTINGS.values(), *ARGUMENTS) if s.group == group):
            option = f"`--{setting.name}`" if setting.name in SETTINGS else "-"
            owners = [place.partition(".")[0] for place in setting.takers.split()]
            taken = ", ".join(f"`{owner}({setting.argument(owner)})`" for owner in owners)
            default = f"`{setting.default}`" if setting.default is not None else setting.unset
            kind = "" if setting.kind in (str, bool, object) else KINDS[setting.kind][0]
            allowed = ", ".join(filter(None, (kind * (not setting.choices), setting.bounds)))
            cells = (option, taken or "-", default or "-", allowed, setting.help)
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def replaced(place, made):
    """The text of a file with the part between its marks as it should be, and as it is."""
    path, before, behind = place
    text = path.read_text()
    found = re.search(f"{re.escape(before)}(.*?){re.escape(behind)}", text, re.DOTALL)
    assert found, f"{path} has no {before!r}"
    return text[: found.start(1)] + made + text[found.end(1) :], text


if __name__ == "__main__":
    for place, made in ((DOCSTRING, docstring()), (TABLE, table())):
        place[0].write_text(replaced(place, made)[0])
