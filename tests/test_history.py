"""History: a list of records that is also a table and a picture."""

import builtins
import math
import pickle
import subprocess
import sys

import pytest

from fmnist_keras3 import History, UserError

PNG = b"\x89PNG\r\n\x1a\n"


def record(event, epoch, **values):
    return {"event": event, "epoch": epoch, "step": 5 * epoch, **values}


def history(epochs=2, **options):
    records = []
    for epoch in range(1, epochs + 1):
        records.append(record("step", epoch, loss=9.0, lr=0.1))
        records.append(record("validation", epoch, loss=7.0))  # within the epoch
        records.append(record("train", epoch, loss=1 / epoch, accuracy=None, images=2000.5))
        records.append(record("validation", epoch, loss=2 / epoch))
    return History([*records, record("test", epochs, loss=3.0)], **options)


def test_it_is_the_list_of_records():
    assert history() == list(history())
    again = pickle.loads(pickle.dumps(history(title="a", synthetic=True)))
    assert (again, again.title, again.synthetic) == (history(), "a", True)


def test_a_row_an_epoch():
    assert history().rows()[1] == {
        "epoch": 2,
        "step": 10,
        "loss": 0.5,
        "accuracy": None,
        "images": 2000.5,
        "val_loss": 1.0,
    }
    assert History().rows() == []
    early = History([record("train", 1, loss=1.0), *history()[4:]])  # not validated in the first
    assert early.rows()[0]["val_loss"] is None


def test_a_column():
    assert history().column("val_loss") == history()["val_loss"] == [2.0, 1.0]
    assert history()[0]["event"] == "step"
    assert len(history()[1:3]) == 2
    assert all(math.isnan(value) for value in history().column("accuracy"))
    with pytest.raises(UserError, match=r"Did you mean 'val_loss'.*There is: epoch, step, loss"):
        history().column("vall_loss")
    with pytest.raises(UserError, match="nothing, no epoch has ended"):
        History().column("loss")


def test_to_pandas():
    pytest.importorskip("pandas")
    frame = history().to_pandas()
    assert list(frame.index) == [1, 2]
    assert list(frame.columns) == ["step", "loss", "accuracy", "images", "val_loss"]
    assert frame["val_loss"].min() == 1.0
    assert frame["accuracy"].isna().all()
    assert frame["accuracy"].dtype == "float64"
    assert History().to_pandas().empty


def test_without_pandas_it_says_what_to_type(monkeypatch):
    real = builtins.__import__

    def none(name, *arguments, **options):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(UserError, match="pip install pandas"):
        history().to_pandas()


def test_plot_writes_a_file_or_returns_a_figure(tmp_path):
    made = history(title="a $run$")
    assert made.plot(tmp_path / "curves.png") == tmp_path / "curves.png"
    picture = made.plot()
    assert (tmp_path / "curves.png").read_bytes() == picture._repr_png_()
    assert picture._repr_png_().startswith(PNG)
    assert [len(axes.get_lines()) for axes in picture.axes] == [4]  # loss: 3 splits, best epoch
    assert history(synthetic=True).plot().get_figheight() > picture.get_figheight()  # the banner
    assert History().plot()._repr_png_().startswith(PNG)


def test_html_is_escaped_and_short():
    made = history(30)
    made[2]["<script>"] = 1.0
    html = made._repr_html_()
    assert "<th>&lt;script&gt;</th>" in html
    assert "<script>" not in html
    assert "<caption>the last 20 of 30 epochs</caption>" in html
    assert html.count("<tr>") == 21
    assert "<td>2,000</td>" in html
    assert "<td>-</td>" in html
    assert History()._repr_html_() == "<table><tr><th>epoch</th></tr></table>"


def test_importing_it_imports_neither_keras_nor_matplotlib():
    code = "import sys, fmnist_keras3; fmnist_keras3.History;"
    code += "print({'keras', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
