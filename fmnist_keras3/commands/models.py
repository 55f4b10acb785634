"""`fmnist models`: what there is to train."""

from __future__ import annotations

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen


def show(chosen: list[str]) -> int:
    """Print parameters and multiply-accumulates of the models, and the options of each.

    Of all that are registered, or of those ``chosen``, as "airnet:widths=16-32". Raises UserError
    for unknown ones.
    """
    from rich.table import Table

    from fmnist_keras3.ground.specs import written
    from fmnist_keras3.models import MODELS, build_model, check_model, macs

    texts = {text: check_model(text)[0] for text in chosen or MODELS}
    runtime.prepare()
    table = Table(title="models for 28x28 grey images, 10 classes")
    table.add_column("name", style="bold")
    table.add_column("parameters", justify="right")
    table.add_column("MACs an image", justify="right")
    table.add_column("dropout", justify="right")
    table.add_column("L2", justify="right")
    table.add_column("about")
    for text, name in texts.items():
        model, entry = build_model(text), MODELS[name]
        table.add_row(
            text,
            f"{model.count_params():,}",
            f"{macs(model):,}",
            f"{entry.dropout:g}",
            f"{entry.l2:g}",
            entry.about,
        )
    console = screen.console()
    console.print(table)
    options = Table(title="their options: --model NAME:OPTION=VALUE,OPTION=VALUE")
    options.add_column("name", style="bold")
    options.add_column("option")
    options.add_column("default", justify="right")
    options.add_column("about")
    for name in dict.fromkeys(texts.values()):
        for key, option in MODELS[name].options.items():
            options.add_row(name, key, written(option.default), option.about)
    if options.row_count:
        console.print(options)
    return 0
