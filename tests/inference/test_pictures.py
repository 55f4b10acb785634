"""Reading pictures: of any kind, and one clear line for what is none."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_files
import pytest
from PIL import Image

from fmnist_keras3.ground.errors import UserError
from fmnist_keras3.inference import pictures


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """What is expected of each odd file: None, or a part of the reason why it is refused."""
    return odd_files.write(tmp_path_factory.mktemp("odd"))


def outcome(path):
    """What came of reading a file: its size, or the reason."""
    try:
        return list(pictures.read(path).size)
    except UserError as error:
        return str(error)


def test_there_are_sixty(odd):
    assert len(odd) >= 60


def test_each_is_a_picture_or_gets_one_line_that_names_it(odd):
    for path, reason in odd.items():
        found = outcome(path)
        if reason is None:
            assert isinstance(found, list), found
        else:
            assert isinstance(found, str), path
            assert found.startswith(f"{pictures.shown(path)}: ")
            assert reason in found
            assert "\n" not in found
            assert found.isprintable()


def measured(folder):
    """Read all odd files; return by how many bytes the process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in odd_files.write(Path(folder)):
        outcome(path)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_memory_is_bounded(tmp_path):
    here = Path(__file__)
    code = f"import test_pictures as t; print(t.measured({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{here.parent}:{here.parents[2]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 600e6  # the largest that is allowed takes 200 MB
    assert done.stderr == ""  # nor does a library complain by itself


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_without_permission(tmp_path):
    path = tmp_path / "secret.png"
    odd_files.scene().save(path)
    path.chmod(0)
    assert "no permission" in outcome(path)


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path):
    image = odd_files.scene((60, 80))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("png", "tiff", "webp"):
            options = {"lossless": True} if kind == "webp" else {}
            image.save(tmp_path / f"a.{kind}", exif=exif, **options)
            found = pictures.read(tmp_path / f"a.{kind}")
            from PIL import ImageOps

            with Image.open(tmp_path / f"a.{kind}") as plain:
                upright = ImageOps.exif_transpose(plain)
            assert np.array_equal(np.asarray(found), np.asarray(upright.convert("RGB")))


def test_sixteen_bits_are_divided_not_cut_off(tmp_path):
    values = np.array([[0, 255, 256, 30000, 65535]], np.uint16)
    for kind in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"a.{kind}")
        found = np.asarray(pictures.read(tmp_path / f"a.{kind}"))[0, :, 0]
        assert found.tolist() == [0, 0, 1, 117, 255]


def test_arrays_are_taken_as_they_are():
    grey = np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5)
    forms = (grey, grey[..., None], grey / 255, grey.astype(np.float32), grey.astype(int))
    for form in forms:
        assert np.array_equal(np.asarray(pictures.as_image(form))[..., 1], grey)
    assert pictures.as_image(np.zeros((5, 4, 4), np.uint8)).mode == "RGBA"
    for wrong in (np.zeros((2, 5, 5)), np.zeros(9), np.zeros((0, 3)), "x", None, np.array("x")):
        with pytest.raises(UserError, match=r"no picture|no such file"):
            pictures.as_image(wrong)


def test_folders_and_patterns(tmp_path):
    (tmp_path / "b/.hidden").mkdir(parents=True)
    names = ["a.PNG", "b/c.jpeg", "b/d.txt", "b/.e.png", "b/.hidden/f.png", "z.gif"]
    for name in names:
        (tmp_path / name).touch()

    def relative(*given):
        return [os.path.relpath(path, tmp_path) for path in pictures.found(given)]

    assert relative(tmp_path) == ["a.PNG", "z.gif", "b/c.jpeg"]
    assert relative(f"{tmp_path}/*.gif", tmp_path / "b") == ["z.gif", "b/c.jpeg"]
    assert relative(f"{tmp_path}/**/*.jpeg") == ["b/c.jpeg"]
    assert relative(tmp_path / "b/d.txt") == ["b/d.txt"]  # it was asked for
    assert relative(f"{tmp_path}/*.bmp") == ["*.bmp"]
