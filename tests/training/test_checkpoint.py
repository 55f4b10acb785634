"""Checkpoints: whole or absent, strict, and never of a state that is not finite."""

import json
import shutil

import numpy as np
import pytest

from fmnist_keras3.errors import Diverged, UserError
from fmnist_keras3.training import checkpoint


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    return [
        ("model/kernel", rng.normal(size=(3, 4)).astype(np.float32)),
        ("model/seed", np.array([1, 2], np.uint32)),
        ("model/kernel", np.zeros((), np.float32)),  # a path need not be unique
        ("optimizer/iteration", np.array(7, np.int64)),
    ]


def test_what_is_loaded_is_what_was_saved(tmp_path, state):
    path = checkpoint.save(tmp_path, 7, state, {"seed": 3})
    found = checkpoint.load(path)
    checkpoint.check_matches(found.state, state)
    for (_, a), (_, b) in zip(found.state, state, strict=True):
        assert a.tobytes() == b.tobytes()
    assert found.manifest["seed"] == 3
    assert found.manifest["step"] == 7
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


def test_a_state_that_is_not_finite_is_never_written(tmp_path, state):
    state[0][1][1, 1] = np.nan
    with pytest.raises(Diverged, match="model/kernel"):
        checkpoint.save(tmp_path, 7, state, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["empty", "truncate", "flip", "remove", "directory"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, state, name, harm):
    good = checkpoint.save(tmp_path, 1, state, {})
    bad = checkpoint.save(tmp_path, 2, state, {})
    checkpoint.point(tmp_path, "last", bad)
    file = bad / name
    content = file.read_bytes()
    if harm == "empty":
        file.write_bytes(b"")
    elif harm == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        at = len(content) - 3 if name.endswith("tensors") else content.index(b"sha256") + 12
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        file.unlink()
        if harm == "directory":
            file.mkdir()
    with pytest.raises(UserError, match="step-00000002"):
        checkpoint.load(bad)
    found, problems = checkpoint.find(tmp_path, "last")
    assert found.path == good
    assert len(problems) == 1
    shutil.rmtree(good)
    with pytest.raises(UserError, match=r"No sound checkpoint 'last'.*\n.*step-00000002"):
        checkpoint.find(tmp_path, "last")
    assert bad.is_dir()


def test_without_a_pointer_the_newest_is_last_and_said_so(tmp_path, state):
    for step in (1, 12, 2):
        checkpoint.save(tmp_path, step, state, {})
    found, problems = checkpoint.find(tmp_path, "last")
    assert found.manifest["step"] == 12
    assert "last.json" in problems[0]


def test_a_pointer_cannot_lead_out_of_the_folder(tmp_path, state):
    outside = checkpoint.save(tmp_path / "other", 1, state, {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.json").write_text(json.dumps({"checkpoint": f"../other/{outside.name}"}))
    with pytest.raises(UserError, match="No sound checkpoint"):
        checkpoint.find(tmp_path / "run", "last")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:-1], "array 3 is nothing in the checkpoint"),
        (lambda s: [*s, ("more", np.zeros(1))], "array 4 is more"),
        (lambda s: [("model/kernle", s[0][1]), *s[1:]], "model/kernle"),
        (lambda s: [(s[0][0], s[0][1].T), *s[1:]], r"\(4, 3\)"),
        (lambda s: [(s[0][0], s[0][1].astype(np.float64)), *s[1:]], "float64"),
    ],
)
def test_a_mismatch_names_the_array(state, change, words):
    with pytest.raises(UserError, match=words):
        checkpoint.check_matches(change(state), state)


def test_another_format_is_refused(tmp_path, state):
    path = checkpoint.save(tmp_path, 1, state, {})
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(path)
