"""`fmnist models`: what there is to train."""

from __future__ import annotations

from fmnist_keras3 import runtime


def show() -> int:
    """Print the registry with parameters and multiply-accumulates of each model."""
    from rich.console import Console
    from rich.table import Table

    runtime.prepare()
    from fmnist_keras3.models import MODELS, build_model, macs

    table = Table(title="models for 28x28 grey images, 10 classes")
    table.add_column("name", style="bold")
    table.add_column("parameters", justify="right")
    table.add_column("MACs an image", justify="right")
    table.add_column("dropout", justify="right")
    table.add_column("L2", justify="right")
    table.add_column("about")
    for name, entry in MODELS.items():
        model = build_model(name)
        table.add_row(
            name,
            f"{model.count_params():,}",
            f"{macs(model):,}",
            f"{entry.dropout:g}",
            f"{entry.l2:g}",
            entry.about,
        )
    Console().print(table)
    return 0
