"""What a person sees of a training: bar, table of layers, one line about trainer and result."""

import io

import keras
import numpy as np
import pytest
from everything import EPOCHS, STEPS, data, everything_model, trainer
from rich.console import Console

from fmnist_keras3 import (
    EarlyStopping,
    ModelSummary,
    RichProgressBar,
    Trainer,
    UserError,
    load_run,
)
from fmnist_keras3.callbacks import progress
from fmnist_keras3.callbacks.model_summary import model_table
from fmnist_keras3.ground import screen
from fmnist_keras3.models import macs


def terminal(**options):
    return Console(file=io.StringIO(), force_terminal=True, width=120, **options)


def log():
    return Console(file=io.StringIO(), width=40)


def said(console):
    return console.file.getvalue()


def fit(path, *callbacks, **options):
    made = trainer(path, *callbacks, **options)
    return made.fit(everything_model(), data())


def test_a_log_gets_one_line_an_epoch(tmp_path):
    console = log()
    fit(tmp_path / "run", RichProgressBar(console=console), ModelSummary(0, console=console))
    lines = said(console).splitlines()
    assert [line[:11] for line in lines] == [f"epoch   {n}/4" for n in (1, 2, 3, 4)]


def test_a_terminal_gets_a_bar(tmp_path):
    console = terminal()
    fit(tmp_path / "run", RichProgressBar(console=console), max_epochs=1)
    assert "epoch 1/1" in said(console)
    assert "5/5" in said(console)
    assert "\x1b[?25h" in said(console)  # the cursor is back


def test_a_refresh_rate_of_0_is_no_bar(tmp_path):
    console = terminal()
    fit(tmp_path / "run", RichProgressBar(0, console=console), max_epochs=1)
    assert said(console).count("\n") == 1


class Bar:
    """Notes where the bar is moved to."""

    def __init__(self, console):
        self.moves = []
        bars.append(self)

    def begin(self, title, total, done):
        self.moves.append(title)

    def move(self, done, values):
        self.moves.append(done)

    def stop(self):
        self.moves.append("stop")


bars = []


def test_the_bar_is_moved_each_so_many_steps(tmp_path, monkeypatch):
    from test_callbacks import Every

    monkeypatch.setattr(progress, "TerminalBar", Bar)
    fit(tmp_path / "run", RichProgressBar(2, console=terminal()), Every(), max_epochs=2)
    assert bars[-1].moves == ["epoch 1/2", 2, 4, STEPS, "epoch 2/2", 2, 4, STEPS, "stop"]


def test_a_notebook_gets_a_bar_that_is_replaced(tmp_path, monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, html):
            shown.append(html.data)

    monkeypatch.setattr(display, "display", lambda *what, **options: Handle())
    console = terminal(force_jupyter=True)
    fit(tmp_path / "run", RichProgressBar(console=console), max_epochs=1)
    assert shown[0].startswith("<code>epoch 1/1 <progress value=0 max=5></progress> 0/5")
    assert "value=5 max=5" in shown[-2]
    assert "loss" in shown[-2]
    assert shown[-1] == ""


def test_a_negative_refresh_rate_is_refused():
    with pytest.raises(UserError, match="refresh_rate is -1"):
        RichProgressBar(-1)


@pytest.mark.parametrize("on_screen", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_model_is_summarized_on_a_screen_unless_disabled(
    tmp_path, monkeypatch, capsys, on_screen, enabled
):
    monkeypatch.setattr("fmnist_keras3.ground.screen.on_screen", lambda: on_screen)
    fit(tmp_path / "run", max_epochs=1, enable_model_summary=enabled)
    assert ("Dense" in capsys.readouterr().out) == (on_screen and enabled)


@pytest.mark.parametrize("on_screen", [True, False])
def test_a_summary_that_is_asked_for_is_printed_anywhere_and_once(
    tmp_path, monkeypatch, capsys, on_screen
):
    monkeypatch.setattr("fmnist_keras3.ground.screen.on_screen", lambda: on_screen)
    fit(tmp_path / "run", ModelSummary(), max_epochs=1)
    assert capsys.readouterr().out.count("BatchNormalization") == 1


def test_a_log_is_no_screen(monkeypatch):
    assert not screen.on_screen()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert screen.on_screen()


def rows(model, max_depth=1):
    """The table's lines, each as its cells."""
    console = log()
    console.width = 120
    console.print(model_table(model, max_depth))
    lines = [line for line in said(console).splitlines() if "│" in line]
    *_, totals = said(console).strip().splitlines()
    return [[c.strip() for c in line.strip("│").split("│")] for line in lines], totals.strip()


def test_the_layers_of_a_model_with_shapes_parameters_and_macs():
    found, totals = rows(everything_model())
    assert [row[1] for row in found][-4:] == ["Dense", "BatchNormalization", "Dropout", "Dense"]
    assert found[1] == ["average_pooling2d", "AveragePooling2D", "7 x 7 x 1", "0", ""]
    assert found[3] == ["hidden", "Dense", "16", "800", "784"]
    assert totals == "1,034 parameters (1,002 trainable, 32 not), 0.00 MB, 944 MACs an image"
    assert macs(everything_model()) == 944


class Block(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.conv = keras.layers.Conv2D(4, 3, strides=2, name="conv")

    def build(self, shape):
        self.conv.build(shape)

    def call(self, x):
        return self.conv(x)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.block, self.flat = Block(name="block"), keras.layers.Flatten(name="flat")
        self.out = keras.layers.Dense(10, name="out")

    def build(self, shape):
        self.block.build(shape)
        self.out.build((None, 676))

    def call(self, x):
        return self.out(self.flat(self.block(x)))


def test_of_a_subclassed_model_there_is_what_is_known():
    model = Subclassed()
    model.build((None, 28, 28, 1))
    found, totals = rows(model, -1)
    assert found == [
        ["block", "Block", "", "40", "6,084"],  # does not tell its output's shape
        ["conv", "Conv2D", "13 x 13 x 4", "40", "6,084"],
        ["flat", "Flatten", "", "", ""],
        ["out", "Dense", "10", "6,770", "6,760"],
    ]
    assert totals == "6,810 parameters, 0.03 MB, 12,844 MACs an image"


def test_the_depth_of_the_summary():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="deep")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="top")])
    assert [row[0] for row in rows(model)[0]] == ["inner", "top"]
    assert rows(model)[0][0][2:] == ["3", "15", "12"]
    assert [row[0] for row in rows(model, 2)[0]] == ["inner", "deep", "top"]
    with pytest.raises(UserError, match="max_depth is -2"):
        ModelSummary(-2)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (lambda k: k.Conv1D(5, 3, padding="same"), (8, 2), 8 * 3 * 2 * 5),
        (lambda k: k.Conv3D(5, 2, padding="same"), (4, 4, 4, 2), 4**3 * 8 * 2 * 5),
        (lambda k: k.DepthwiseConv2D(3, padding="same"), (6, 6, 4), 36 * 9 * 4),
        (lambda k: k.Conv2D(8, 3, padding="same", groups=2), (6, 6, 4), 36 * 9 * 2 * 8),
        (lambda k: k.Dense(7), (5, 3), 5 * 3 * 7),
        (lambda k: k.Embedding(7, 3), (5,), 0),
    ],
)
def test_macs_of_layers(layer, shape, expected):
    assert macs(keras.Sequential([keras.Input(shape), layer(keras.layers)])) == expected


def test_a_trainer_is_shown_with_what_is_not_the_default():
    assert repr(Trainer()) == "Trainer()"
    made = Trainer(5, schedule="cosine", logger="csv", callbacks=[EarlyStopping()])
    assert repr(made) == (
        "Trainer(max_epochs=5, schedule='cosine', logger='csv', callbacks=['EarlyStopping'])"
    )


def test_a_result_and_a_run_are_shown(tmp_path):
    path = tmp_path / "<b>run"
    result = fit(path, max_steps=7)
    loss = f"{result.summary['validation_loss']:.4g}"
    assert repr(result).startswith("FitResult(completed (max_steps 7 reached), epochs=1, steps=7, ")
    assert f"validation_loss={loss}" in repr(result)
    assert repr(str(path)) in repr(result)
    run = load_run(path)
    assert repr(run).startswith(f"Run({str(path)!r}, status=completed, model=everything, ")
    for shown in (result, run):
        html = shown._repr_html_()
        assert "&lt;b&gt;run</td></tr></table>" in html
        assert "<b>" not in html
        assert f"<tr><td>validation_loss</td><td>{loss}</td></tr>" in html
    trial = fit(None, fast_dev_run=True)
    assert "run_dir" not in repr(trial)
    assert "<td>none was kept</td>" in trial._repr_html_()


def test_the_history_of_a_result_is_that_of_the_run(tmp_path):
    result = fit(tmp_path / "run")
    run = load_run(result.run_dir)
    assert run.history == result.history
    assert run.history.title == "run"
    assert len(result.history.column("val_accuracy")) == EPOCHS
    assert np.isfinite(result.history.column("loss")).all()
