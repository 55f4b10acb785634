"""Checkpoints: whole or absent, strict, and never of a state that is not finite."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from fmnist_keras3.ground.errors import Diverged, UserError
from fmnist_keras3.runs import checkpoint, checkpoints, matching
from fmnist_keras3.runs.checkpoint import Damaged


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    return [
        ("model/kernel", rng.normal(size=(3, 4)).astype(np.float32)),
        ("model/seed", np.array([1, 2], np.uint32)),
        ("model/kernel", np.zeros((), np.float32)),  # a path need not be unique
        ("optimizer/adam/iteration", np.array(7, np.int64)),
        ("optimizer/adam/m", np.ones(3, np.float32)),
        ("metrics/total", np.zeros((), np.float32)),
    ]


def save(folder, step, state, **manifest):
    path = checkpoints.new_path(folder, step)
    checkpoint.save(path, state, {"step": step, **manifest})
    return path


def matches(state, expected):
    return matching.check_matches(matching.describe(state), matching.describe(expected))


def rewrite_manifest(path, **changes):
    """Change a manifest as somebody would who knows how its checksum is made."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    manifest.pop("checksum")
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["checksum"] = hashlib.sha256(text).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_loaded_is_what_was_saved(tmp_path, state):
    path = save(tmp_path / "checkpoints", 7, state, seed=3)
    found = checkpoint.load(path)
    assert matches(found.state, state) is None
    for (name, a), (other, b) in zip(found.state, state, strict=True):
        assert name == other
        assert a.tobytes() == b.tobytes()
    assert found.manifest["seed"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["step-00000007"]


def test_a_second_checkpoint_of_a_step_leaves_the_first_alone(tmp_path, state):
    first, second = save(tmp_path, 7, state, seed=1), save(tmp_path, 7, state, seed=2)
    assert [first.name, second.name] == ["step-00000007", "step-00000007-1"]
    assert checkpoint.load(first).manifest["seed"] == 1
    found, problems = checkpoint.find(tmp_path, "last", checkpoint.load)
    assert found.path == second
    assert "last.json" in problems[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 4])
def test_a_state_that_is_not_finite_is_told(state, index, value):
    state[index][1].flat[1] = value
    with pytest.raises(Diverged, match=f"{state[index][0]}.*step 7") as raised:
        checkpoint.check_finite(state, 7)
    assert raised.value.step == 7


def test_a_metric_may_be_anything(state):
    state[5] = ("metrics/total", np.array(np.nan, np.float32))
    checkpoint.check_finite(state, 7)


HARMS = ["empty", "truncate", "flip", "remove", "directory"]


def harm(file, how, at=None):
    content = file.read_bytes()
    at = len(content) // 2 if at is None else at
    if how == "empty":
        file.write_bytes(b"")
    elif how == "truncate":
        file.write_bytes(content[:at])
    elif how == "flip":
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        file.unlink()
        if how == "directory":
            file.mkdir()


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, state, name, how):
    good, bad = save(tmp_path, 1, state), save(tmp_path, 2, state)
    checkpoints.point(tmp_path, "last", bad.name)
    harm(bad / name, how)
    with pytest.raises(Damaged, match="step-00000002"):
        checkpoint.load(bad)
    found, problems = checkpoint.find(tmp_path, "last", checkpoint.load)
    assert found.path == good
    assert len(problems) == 1
    shutil.rmtree(good)
    with pytest.raises(UserError, match=r"No sound checkpoint 'last'.*\n.*step-00000002"):
        checkpoint.find(tmp_path, "last", checkpoint.load)
    assert bad.is_dir()


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(tmp_path, state):
    path = save(tmp_path, 1, state, position={"step": 1, "loss_sum": 0.125})
    sound = checkpoint.load(path)
    for name in ("manifest.json", "state.safetensors"):
        content = (path / name).read_bytes()
        for at in range(len(content)):
            harm(path / name, "flip", at)
            try:
                found = checkpoint.load(path)
            except Damaged:
                pass
            else:  # white space between two JSON values
                assert found.manifest == sound.manifest
                assert name == "manifest.json"
            (path / name).write_bytes(content)


def test_without_a_pointer_the_newest_is_last_and_said_so(tmp_path, state):
    for step in (1, 12, 2):
        save(tmp_path, step, state)
    found, problems = checkpoint.find(tmp_path, "last", checkpoint.load)
    assert found.manifest["step"] == 12
    assert "last.json" in problems[0]
    with pytest.raises(UserError, match=r"best\.json is missing.*\n.*last"):
        checkpoint.find(tmp_path, "best", checkpoint.load)  # the newest is something else


@pytest.mark.parametrize("name", ["step-00000001", "../run/step-00000001/..", "/", "", None, 3])
def test_a_pointer_cannot_lead_out_of_the_folder(tmp_path, state, name):
    outside = save(tmp_path / "other", 1, state)
    (tmp_path / "run").mkdir()
    pointer = f"../other/{outside.name}" if name == "step-00000001" else name
    (tmp_path / "run/last.json").write_text(json.dumps({"checkpoint": pointer}))
    with pytest.raises(UserError, match="There is no checkpoint"):
        checkpoint.find(tmp_path / "run", "last", checkpoint.load)
    inside = save(tmp_path / "run", 3, state)
    assert checkpoint.find(tmp_path / "run", "last", checkpoint.load)[0].path == inside


def test_retention_removes_only_checkpoints(tmp_path, state):
    kept, old = save(tmp_path, 1, state), save(tmp_path, 2, state)
    (tmp_path / "step-00000003").mkdir()  # no manifest: not ours
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-by-step").mkdir()
    checkpoints.retire(tmp_path, {kept.name})
    assert not old.exists()
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {kept.name, "step-00000003", "notes.txt", "step-by-step"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:-1], r"nothing in the checkpoint is metrics/total"),
        (lambda s: [*s, ("more", np.zeros(1))], "more .* is nothing here"),
        (lambda s: [("model/kernle", s[0][1]), *s[1:]], "model/kernle"),
        (lambda s: [(s[0][0], s[0][1].T), *s[1:]], r"\(4, 3\)"),
        (lambda s: [(s[0][0], s[0][1].astype(np.float64)), *s[1:]], "float64"),
    ],
)
def test_a_mismatch_names_the_array(state, change, words):
    with pytest.raises(UserError, match=words):
        matches(change(state), state)


def test_another_optimizer_is_told_and_starts_afresh(state):
    sgd = [*state[:3], ("optimizer/sgd/iteration", np.array(0)), state[5]]
    assert "optimizer/adam/iteration" in matches(state, sgd)
    adopted = matching.adopt(state, sgd)
    assert [name for name, _ in adopted] == [name for name, _ in sgd]
    assert adopted[0][1].tobytes() == state[0][1].tobytes()
    assert adopted[3][1] == 0
    assert adopted[4][0] == "metrics/total"


def test_whole_numbers_may_have_another_width_if_they_fit(state):
    wide = [(n, a.astype(np.int64) if a.dtype.kind in "iu" else a) for n, a in state]
    assert matches(state, wide) is None
    adopted = matching.adopt(wide, state)
    assert [a.dtype for _, a in adopted] == [a.dtype for _, a in state]
    assert adopted[1][1].tolist() == [1, 2]
    wide[1][1][0] = 2**40
    with pytest.raises(UserError, match="model/seed"):
        matching.adopt(wide, state)


def test_another_format_is_refused(tmp_path, state):
    path = save(tmp_path, 1, state)
    rewrite_manifest(path, format=99)
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(path)


HUGE = {"path": "model/kernel", "shape": [2**40], "dtype": "float32"}


@pytest.mark.parametrize(
    "changes",
    [
        {"arrays": [HUGE]},
        {"arrays": "many"},
        {"arrays": [1, 2]},
        {"arrays": [{"path": "x", "shape": [-1], "dtype": "float32"}]},
        {"arrays": [{"path": "x", "shape": [1], "dtype": "no such"}]},
        {"arrays": [{"path": "../../x", "shape": [], "dtype": "float32"}]},
        {"sha256": None},
    ],
)
def test_a_crafted_manifest_is_refused(tmp_path, state, changes):
    path = save(tmp_path, 1, state)
    rewrite_manifest(path, **changes)
    with pytest.raises(Damaged, match="step-00000001"):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "[" * 100_000, "{", "\ud800"])
def test_a_manifest_of_another_kind_is_refused(tmp_path, state, text):
    path = save(tmp_path, 1, state)
    (path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(Damaged, match=r"manifest\.json"):
        checkpoint.load(path)


def test_a_huge_state_is_refused_before_it_is_read(tmp_path, state):
    path = save(tmp_path, 1, state)
    with open(path / "state.safetensors", "r+b") as file:
        file.truncate(2**42)  # a sparse file: 4 TiB that take no room
    with pytest.raises(Damaged, match="bytes"):
        checkpoint.load(path)
    rewrite_manifest(path, arrays=[{**HUGE, "shape": [2**40]}])  # and a manifest that agrees
    expected = matching.describe(state)
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoint.load(path, lambda arrays: matching.check_matches(arrays, expected))


def test_a_safetensors_header_that_lies_is_refused(tmp_path, state):
    path = save(tmp_path, 1, state)
    content = bytearray((path / "state.safetensors").read_bytes())
    content[:8] = (2**62).to_bytes(8, "little")
    (path / "state.safetensors").write_bytes(content)
    rewrite_manifest(path, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(Damaged, match="cannot be read"):
        checkpoint.load(path)
