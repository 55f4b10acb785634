import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fmnist_keras3.evaluation import report
from fmnist_keras3.evaluation.label_errors import find
from fmnist_keras3.evaluation.metrics import evaluate_logits
from fmnist_keras3.evaluation.mistakes import pictures
from fmnist_keras3.ground.errors import UserError

SUMMARY = {
    "status": "completed",
    "reason": None,
    "command": "fmnist train --model lenet",
    "backend": "jax",
    "device": "cpu",
    "precision": "32",
    "dataset": {"name": "fashion_mnist", "source": "/data", "train": 54000, "sha256": "ab12"},
    "model": "lenet",
    "parameters": 44426,
    "seed": 7,
    "epochs": 3,
    "batch_size": 128,
    "test_loss": 0.3551,
    "test_accuracy": 0.9144,
    "validation_accuracy": 0.9234,
    "best_epoch": 2,
    "images_per_second": 123456.7,
    "compile_seconds": 2.5,
    "total_seconds": 92.4,
    "versions": {"keras": "3.15.0"},
    "hardware": {"cpu": "8 cores"},
}


def make_run(folder, pictured=True, **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: lenet\noptimizer:\n  lr: 0.001\naugment: [flip]\n")
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    records = [
        {"event": event, "epoch": epoch, "step": epoch, "loss": 1 / epoch, "accuracy": 0.9}
        for epoch in (1, 2, 3)
        for event in ("train", "validation")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    y = np.arange(30) % 3
    logits = 5 * np.eye(3)[y]
    logits[[0, 3, 6, 1]] = [0, 9, 0], [0, 8, 0], [0, 7, 0], [0, 0, 9]  # coats and a bag
    result = evaluate_logits(y, logits, ["Coat", "Bag", "Dress"])
    images, found = np.zeros((30, 28, 28, 1), np.uint8), find(y, result.probabilities)
    shown = pictures(images, y, result, found) if pictured else {}
    (folder / "evaluation.json").write_text(json.dumps(result.to_dict() | shown))
    return folder


class Page(HTMLParser):
    """The tags and the readable text of a page."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags, self.pieces, self.images = [], [], []
        self.feed(self.html)
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data):
        if self.lasttag != "style":
            self.pieces.append(data)


def test_page_of_one_run(tmp_path):
    folder = make_run(tmp_path / "20261122-lenet-jax")
    path = report.build([folder])
    assert path == folder / "report.html"
    page = Page(path)
    for shown in (
        "20261122-lenet-jax", "91.44 %", "0.3551", "92.34 %", "123,457", "1 min 32 s", "44,426",
        "fmnist train --model lenet", "optimizer.lr", "0.001", "3.15.0", "8 cores", "ab12",
        "54000", "macro average", "Dress", "flip",
    ):  # fmt: skip
        assert shown in page.text, shown
    assert len(page.images) == 2 * 4  # the mistakes, and again by pairs of classes
    assert (
        "Coat is taken for Bag in 30.0 % (3 of 10), Bag for Coat in 0.0 % (0 of 10)." in page.text
    )
    assert "The best validation accuracy, 90.00 %, came in epoch 1 of 3." in page.text
    assert page.tags.count("svg") == 2 * (1 + 2) + 1  # charts with their keys; calibration
    assert 'class="banner"' not in page.html


def test_page_is_self_contained(tmp_path):
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", backend="tensorflow")]
    for path in (report.build(folders[0]), report.build(folders)):
        page = Page(path)
        assert not {"script", "link", "iframe"} & set(page.tags)
        assert all(uri.startswith("data:image/png;base64,") for uri in page.images)
        assert not re.search(r"https?://|url\(|@import", page.html)


def test_names_from_files_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    folder = make_run(tmp_path / "a", model=evil, command=evil, reason=evil, status="failed")
    (folder / "config.yaml").write_text(f"'{evil}': '{evil}'\n")
    (folder / "evaluation.json").write_text(
        json.dumps({"per_class": [], "macro": dict.fromkeys(["name", *"abc"], evil)})
    )
    other = make_run(tmp_path / "<b onload=x>", dataset={"name": "synthetic", "source": evil})
    for path in (report.build([folder]), report.build([folder, other])):
        page = Page(path)
        assert "script" not in page.tags
        assert page.text.count(evil)
        assert "<b onload" not in page.html


def test_generated_data_and_unfinished_runs_are_announced(tmp_path):
    folder = make_run(
        tmp_path / "a", dataset={"name": "synthetic"}, status="interrupted", reason="SIGINT"
    )
    text = Page(report.build([folder])).text
    assert "Generated garments, not Fashion-MNIST." in text
    assert "not completed (status: interrupted, reason: SIGINT)" in text


def test_comparison(tmp_path):
    folders = [
        make_run(tmp_path / "runs" / "one"),
        make_run(tmp_path / "runs" / "two", backend="tensorflow", test_accuracy=0.88),
        make_run(tmp_path / "runs" / "three", dataset={"name": "synthetic"}, status="running"),
        make_run(tmp_path / "elsewhere" / "one", seed=8),
    ]
    path = report.build([*folders, folders[0]])
    assert path == tmp_path / "runs" / "comparison.html"
    page = Page(path)
    assert "Comparison of 4 runs" in page.text
    assert {"91.44 %", "88.00 %"} <= set(re.findall(r"[\d.]+ %", page.text))
    assert page.html.count('<span class="tag">') == 2  # "generated" and "running" of the third
    assert str(folders[3]) in page.text  # a name of two runs is told apart by its folder
    assert page.tags.count("svg") == 2 + 2 * 4
    assert f"two is equal to {folders[0]}: the lines cover one another." in page.text
    assert "cannot be compared by image: it has no predictions.npz" in page.text
    assert "3 settings are the same, and none differs." in page.text
    (folders[1] / "config.yaml").write_text("model: cnn\noptimizer:\n  lr: 0.001\n")
    text = Page(report.build(folders)).text
    assert re.search(r"model lenet cnn lenet lenet .*augment flip — flip flip", text)
    assert "1 settings are the same." in text


def test_comparison_has_a_column_of_its_own_for_augmented_tests(tmp_path):
    folders = [make_run(tmp_path / "runs" / name) for name in ("one", "two")]
    assert "with TTA" not in Page(report.build(folders)).text
    folders.append(make_run(tmp_path / "runs" / "three", test_accuracy_tta=0.951))
    page = Page(report.build(folders))
    assert "with TTA" in page.text
    assert "95.10 %" in page.text
    rows = re.findall(r"<tr>.*?</tr>", page.html, re.DOTALL)
    assert len({len(re.findall(r"<t[hd]", row)) for row in rows}) == 1


def test_path_can_be_chosen(tmp_path):
    path = report.build(str(make_run(tmp_path / "a")), tmp_path / "new" / "page.html")
    assert path == tmp_path / "new" / "page.html"
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]


def test_of_a_run_by_an_earlier_version_the_plot_of_mistakes_is_shown(tmp_path):
    folder = make_run(tmp_path / "a", pictured=False)
    assert Page(report.build(folder)).images == []
    (folder / "plots").mkdir()
    Image.new("RGB", (4, 3)).save(folder / "plots/mistakes.png")
    assert len(Page(report.build(folder)).images) == 1
    (folder / "plots/mistakes.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    assert Page(report.build(folder)).images == []


@pytest.mark.parametrize(
    "broken",
    [
        {"confused": 3, "mistakes": [3]},
        {"confused": [[1]], "mistakes": {"true": 0}},
        {"mistakes": [{"true": 0, "predicted": 9, "image": "data:image/png;base64,AA"}]},
        {"mistakes": [{"true": 0, "predicted": 1, "image": "javascript:1", "probability": 1}]},
        {"calibration": {"count": "many"}},
        {"calibration": [1]},
        {"confusion": [[1, 2], [3]]},
        {"confusion": None},
    ],
    ids=repr,
)
def test_a_damaged_evaluation_leaves_the_rest(tmp_path, broken):
    folder = make_run(tmp_path / "a")
    content = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(content | broken))
    page = Page(report.build(folder))
    assert "macro average" in page.text
    assert "javascript:" not in page.html


@pytest.mark.parametrize("name", report.RUN_FILES)
@pytest.mark.parametrize("content", [None, b"", b"[1, 2]\n", b'{"a": \xff [', b"{"], ids=repr)
def test_missing_and_damaged_files_become_notes(tmp_path, name, content):
    folder = make_run(tmp_path / "a")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    page = Page(report.build(folder))
    noted = f"{name} is missing" if content is None else name
    # An empty metrics.jsonl is what a run has before its first epoch.
    assert (noted in page.text) != (name == "metrics.jsonl" and content == b"")


def test_broken_line_is_left_out(tmp_path):
    folder = make_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"event": "tra')
    page = Page(report.build(folder))
    assert "metrics.jsonl: 1 damaged line left out." in page.text
    assert "best epoch 1: 90.00 %" in page.text


def test_values_of_wrong_types_become_dashes(tmp_path):
    wrong = dict.fromkeys(SUMMARY, "high") | {
        "dataset": "fashion_mnist", "test_loss": [1], "total_seconds": True, "best_epoch": None,
        "test_accuracy": float("nan"), "versions": 3, "model": "\ud800",
    }  # fmt: skip
    folder = make_run(tmp_path / "a", **wrong)
    (folder / "evaluation.json").write_text('{"per_class": 3}')
    page = Page(report.build(folder))
    assert "evaluation.json is damaged" in page.text
    assert report.NOTHING in page.text
    assert "nan" not in page.text


def test_only_one_file_is_enough(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    page = Page(report.build(tmp_path))
    assert "config.yaml is missing" in page.text
    assert "summary.json is missing" in page.text


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_folder_that_is_no_run(tmp_path, kind):
    folder = tmp_path / "thing"
    if kind == "empty":
        folder.mkdir()
    elif kind == "file":
        folder.touch()
    with pytest.raises(UserError, match=r"thing.*config\.yaml.*fmnist train"):
        report.build([make_run(tmp_path / "a"), folder])


def test_no_run_given():
    with pytest.raises(UserError, match="fmnist report"):
        report.build([])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.2, "59.2 s"), (59.99, "1 min 00 s"), (3600, "1 h 00 min"), (None, "—")],
)
def test_durations(seconds, shown):
    assert report.duration(seconds) == shown
