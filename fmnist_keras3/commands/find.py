"""`fmnist find`: a learning rate or a batch size for a training with the same options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fmnist_keras3 import runtime
from fmnist_keras3.commands.train import build, command_line
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.settings import TrainConfig

ROWS = 12  # of the table of learning rates


def find(what: str, config: TrainConfig, options: list[str], output: Path) -> int:
    """Search, and print what was found and the `fmnist train` command that takes it.

    ``what`` is "lr" or "batch_size"; ``options`` are the words of the command line for train.
    The plot of the learning rates goes to ``output``.
    """
    console = screen.console()
    data, model, trainer = build(config, console)
    from fmnist_keras3.tuning.finders import Tuner

    search = _learning_rate if what == "lr" else _batch_size
    best = search(console, Tuner(trainer), model, data, output)
    words = command_line(runtime.choose_backend(), "train", *options, f"--{what}", best)
    console.print(f"To train with it:\n  {words}", soft_wrap=True)
    return 0


def _learning_rate(console: Any, tuner: Any, model: Any, data: Any, output: Path) -> str:
    from rich.table import Table

    found = tuner.lr_find(model, data)
    rates, losses = found.results["lr"], found.results["loss"]
    if rates:
        table = Table("learning rate", "averaged loss")
        for i in np.unique(np.linspace(0, len(rates) - 1, ROWS).astype(int)):
            table.add_row(f"{rates[i]:.2g}", f"{losses[i]:.4f}")
        console.print(table)
    if found.stopped:
        console.print(f"Ended early: {found.stopped}.")
    console.print(f"Plot: {found.plot(output)}", soft_wrap=True)
    best = found.suggestion()
    if best is None:
        raise UserError(
            "There is no learning rate to suggest: the loss fell nowhere before it diverged, or "
            "too few steps were taken. Look at the plot, and try --lr 1e-3 or another --optimizer."
        )
    about = "Suggested learning rate, where the loss falls most steeply: "
    console.print(screen.styled(about, (f"{best:.2g}", "bold")))
    return f"{best:.2g}"


def _batch_size(console: Any, tuner: Any, model: Any, data: Any, output: Path) -> str:
    found = tuner.scale_batch_size(model, data)
    console.print(str(found))
    best = found.suggestion()
    if best is None:
        raise UserError("No batch size fits into memory. Take a smaller --model.")
    about = "Suggested batch size, the smallest that is nearly as fast as any: "
    console.print(screen.styled(about, (str(best), "bold")))
    console.print("A much larger batch than before wants another learning rate: fmnist find lr.")
    return str(best)
