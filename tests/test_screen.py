"""What is printed is text: nothing of a user's is lost or read as markup."""

import io

import pytest
from rich.panel import Panel
from rich.table import Table

from fmnist_keras3.ground import screen

ODD = "sweep[lr=0.01] exp[/a] [bold] :fire: $x_1$ \\[b]"


@pytest.mark.parametrize("how", [str, Panel, lambda text: screen.styled((text, "bold"))])
def test_text_stays_what_it_is(how):
    console = screen.console(file=io.StringIO(), width=100)
    console.print(how(ODD))
    assert ODD in console.file.getvalue()


def test_so_it_is_in_tables():
    console = screen.console(file=io.StringIO(), width=100)
    table = Table(ODD, title=ODD, caption=ODD)
    table.add_row(ODD)
    console.print(table)
    assert console.file.getvalue().count(ODD) == 4


def test_styles_are_given_apart():
    console = screen.console(file=io.StringIO(), force_terminal=True)
    console.print(screen.styled("a ", ("[b]", "bold")))
    assert console.file.getvalue() == "a \x1b[1m[b]\x1b[0m\n"
