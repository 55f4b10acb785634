"""`fmnist recipes`: settings under a name, and what they were measured to give."""

from __future__ import annotations

from fmnist_keras3 import recipes


def show() -> int:
    """Print the headers of all recipes."""
    from rich.console import Console

    console = Console(highlight=False)
    for name in recipes.names():
        header, _ = recipes.read(name)
        accuracy = header["test_accuracy"]
        console.print(
            f"[bold]{name}[/]  {header['about']}\n"
            f"  test accuracy {100 * accuracy['mean']:.2f} % ± {100 * accuracy['std']:.2f} "
            f"(n={accuracy['n']}), {header['seconds'] / 60:.1f} minutes on {header['hardware']}, "
            f"backends {' and '.join(header['backends'])}\n"
            f"  {header['command']}\n"
            f"  figures in {header['results']}",
            soft_wrap=True,
        )
    return 0
