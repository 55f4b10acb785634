"""Sets that are odd, damaged or made to harm: each is read, or refused by one clear line."""

import gzip
import io
import os
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image
from written import encoded, examples

from fmnist_keras3.data import source as limits
from fmnist_keras3.data import sources
from fmnist_keras3.data.pixels import Pixels
from fmnist_keras3.ground.errors import UserError

X, Y, *_ = examples(40, 4, 4, (8, 8))
GREY = np.full((8, 8, 1), 90, np.uint8)
COLOR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


def photos(path, **more):
    """A folder of two classes with ten images each, and files with other contents beside them."""
    for i in range(20):
        file = path / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(np.full((8, 8, 1), i, np.uint8)))
    for name, content in more.items():
        (path / name).write_bytes(content)
    return path


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(size=(8, 8), *more, depth=8, kind=0):
    """A PNG file whose head says so, with other chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    rows = b"".join(b"\0" + b"\x80" * (8 * depth // 8) for _ in range(8))
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + ends


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def animated(kind):
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (90, 10)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)


def with_exif(content):
    return saved(Image.fromarray(COLOR), "jpeg", exif=content)


WHOLE = encoded(COLOR, "jpeg", quality=100)
# The contents of an image file, and whether it can be used: how many of 8 x 8 pixels there are.
FILES = {
    "half the pixels of a JPEG": (WHOLE[:-100], 0),
    "the first bytes of a JPEG": (WHOLE[:99], 0),
    "a JPEG with a byte too few": (WHOLE[:-1], 0),
    "a progressive JPEG": (encoded(COLOR, "jpeg", progressive=True), 1),
    "a JPEG with rubbish behind it": (encoded(COLOR, "jpeg") + b"rubbish" * 100, 1),
    "a JPEG with rubbish for EXIF": (with_exif(b"Exif\0\0rubbish"), 1),
    "a JPEG with an orientation of 99": (
        with_exif(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0"),
        1,
    ),
    "an animated GIF": (animated("gif"), 1),
    "an animated WebP": (animated("webp"), 1),
    "an animated PNG": (animated("png"), 1),
    "a JPEG under another name": (encoded(COLOR, "jpeg"), 1),
    "a TIFF under another name": (saved(Image.fromarray(COLOR), "tiff"), 0),
    "an SVG under another name": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 0),
    "PostScript, which Pillow would run": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", 0),
    "a HEIC photo": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 0),
    "a page of a web server": (b"<!DOCTYPE html><title>404 Not Found</title>", 0),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 0),
    "zeros": (bytes(4096), 0),
    "a PNG of no pixels": (png((0, 0)), 0),
    "a PNG that says it is huge": (png((2**31 - 1, 2**31 - 1)), 0),
    "a PNG of 16 bits and colours": (png(depth=16, kind=0), 1),
    "a PNG with a text that unpacks to 100 MB": (
        png((8, 8), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))),
        0,
    ),
    "a PNG with a wrong checksum": (png().replace(b"IDAT", b"IDAT", 1)[:-20] + bytes(20), 0),
}


@pytest.mark.parametrize("as_needed", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_an_image_file_is_read_or_left_out(tmp_path, monkeypatch, name, as_needed):
    content, usable = FILES[name]
    if as_needed:
        monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    found = sources.load(f"folder:{photos(tmp_path, **{'cat/odd.png': content})}")
    count = len(found.train) + len(found.test)
    if usable == 0 and count == 21:  # its head looked well, and its name is told when it comes
        assert as_needed
        with pytest.raises(UserError, match=r"cannot be read as an image: .*odd\.png \(") as caught:
            found.train.x[:], found.test.x[:]
        assert "\n" not in str(caught.value)
        return
    assert count == 20 + usable
    assert ("odd.png (" in (found.note or "")) == (not usable)
    assert "\n" not in (found.note or "")
    images = np.concatenate([found.train.x[:], found.test.x[:]])
    assert images.shape[:3] == (count, 8, 8)


def link_to_itself(path):
    (path / "cat/odd.png").symlink_to(path / "cat/odd.png")


def link_to_the_set(path):
    (path / "cat/all").symlink_to(path)


def links_in_a_circle(path):
    (path / "cat/a").symlink_to(path / "cat/b")
    (path / "cat/b").symlink_to(path / "cat/a")


def folder_named_as_an_image(path):
    (path / "cat/folder.png").mkdir()


def name_with_a_line_break(path):
    (path / "cat/two\nlines.png").write_bytes(b"no image")


def class_with_a_line_break(path):
    (path / "two\nlines").mkdir()
    (path / "two\nlines/1.png").write_bytes(encoded(GREY))


def class_with_a_terminals_codes(path):
    (path / "\x1b[31mred").mkdir()
    (path / "\x1b[31mred/1.png").write_bytes(b"no image")
    (path / "\x1b[31mred/2.png").write_bytes(encoded(GREY))


def same_names_in_both_classes(path):
    for name in ("cat", "dog"):
        (path / name / "0.png").write_bytes(encoded(GREY))


def names_that_differ_in_case(path):
    (path / "cat/1.PNG").write_bytes(encoded(GREY))
    (path / "cat/1.png").write_bytes(encoded(GREY))


def long_names(path):
    (path / ("c" * 255)).mkdir()
    (path / ("c" * 255) / ("x" * 251 + ".png")).write_bytes(encoded(GREY))


def deep_folders(path):
    deep = path.joinpath("cat", *("d" * 40))
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(encoded(GREY))


def hidden_class(path):
    (path / ".ipynb_checkpoints").mkdir()
    (path / ".ipynb_checkpoints/1-checkpoint.png").write_bytes(encoded(GREY))


FOLDERS = {  # how many images there are, and what is said
    link_to_itself: (20, r"odd\.png \(Too many levels of symbolic links\)"),
    link_to_the_set: (20, None),
    links_in_a_circle: (20, None),
    folder_named_as_an_image: (20, None),
    name_with_a_line_break: (20, r"lines\.png \(not an image\)"),
    class_with_a_line_break: (21, None),
    class_with_a_terminals_codes: (21, r"1\.png \(not an image\)"),
    same_names_in_both_classes: (21, None),
    names_that_differ_in_case: (22, None),
    long_names: (21, None),
    deep_folders: (21, None),
    hidden_class: (20, None),
}


@pytest.mark.parametrize("change", FOLDERS, ids=lambda change: change.__name__)
def test_an_odd_folder_is_read(tmp_path, change):
    count, words = FOLDERS[change]
    change(photos(tmp_path))
    found = sources.load(f"folder:{tmp_path}")
    assert len(found.train) + len(found.test) == count
    note = found.note or ""
    assert words is None or re.search(words, note), note
    assert all(text.isprintable() for text in (note, *found.class_names))


def zipped(path, content, copies=1):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in content:
            file = io.BytesIO()
            np.lib.format.write_array(file, array)
            for _ in range(copies):
                archive.writestr(f"{name}.npy", file.getvalue())


def bomb(path):
    """An archive of a few kB that says it holds 10 TB."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 1000, 1000)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", file.getvalue() + bytes(1000))
        archive.writestr("y_train.npy", file.getvalue() + bytes(1000))


ARCHIVES = {  # what writes a file set.npz, and what is said; None: it is read
    "a bomb": (bomb, "cannot be read as arrays|does not fit|cannot be read"),
    "a text": (lambda path: path.write_bytes(b"x_train"), "cannot be read as arrays"),
    "an archive of other files": (
        lambda path: zipfile.ZipFile(path, "w").writestr("../../etc/passwd", "x"),
        "Needed are x_train|cannot be read",
    ),
    "big-endian numbers": (
        lambda path: np.savez(path, x=X.astype(">u2") * 257, y=Y.astype(">i8")),
        None,
    ),
    "columns first": (lambda path: np.savez(path, x=np.asfortranarray(X), y=Y), None),
    "records": (
        lambda path: np.savez(path, x=np.zeros(9, [("a", "u1"), ("b", "f4")]), y=Y[:9]),
        r"of type \[|arrays of shape|no known",
    ),
    "dates": (lambda path: np.savez(path, x=X.astype("M8[s]"), y=Y), "of type datetime64"),
    "infinite labels": (lambda path: np.savez(path, x=X, y=np.where(Y == 1, np.inf, Y)), "inf"),
    "images of no pixels": (lambda path: np.savez(path, x=X[:, :0], y=Y), "without pixels"),
    "one number": (lambda path: np.savez(path, x=np.uint8(3), y=Y), "one number for train"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_odd_archive_is_read_or_refused(tmp_path, name):
    make, words = ARCHIVES[name]
    make(tmp_path / "set.npz")
    if words is None:
        found = sources.load(f"npz:{tmp_path / 'set.npz'}")
        assert len(found.train) + len(found.test) == 40
        assert {int(v) for v in found.train.y} == {0, 1, 2, 3}
        assert all(any(np.array_equal(image, x) for x in X) for image in found.train.x[:3])
        return
    with pytest.raises(UserError) as caught:
        sources.load(f"npz:{tmp_path / 'set.npz'}")
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_beyond_64_bits_are_names(tmp_path):
    np.savez(tmp_path / "set.npz", x=X, y=np.array([2**64 - 1, 1] * 20, np.uint64))
    found = sources.load(f"npz:{tmp_path / 'set.npz'}")
    assert found.class_names == ("1", str(2**64 - 1))


ROW = b"1,5,6,7,8\n"
TABLES = {  # what is in a file a.csv (or a.csv.gz), and what is said; None: it is read
    "one row": (b"0,1,2,3,4\n", "of one class"),
    "a blank line amid it": (b"0,1,2,3,4\n\n" + ROW, None),
    "spaces about the numbers": (b"0, 1, 2, 3, 4\n1, 5, 6, 7, 8\n", None),
    "lines that end as on old Macs": (b"0,1,2,3,4\r1,5,6,7,8\r", ""),
    "a cell with a line break": (b'path,label\n"a\nb.png",0\n"c.png",1\n', "image"),
    "a formula for a label": (b"label,p1,p2,p3,p4\n=1+1,1,2,3,4\n0,5,6,7,8\n", None),
    "a path out of its folder": (
        b"path,label\n../../../../etc/passwd,0\n/etc/hostname,1\n",
        "holds no numbers",
    ),
    "a number too large": (b"0,1,2,3,4\n1,5,6,7,99999999999999999999999\n", "no known range"),
    "a column too many in the head": (b"label,a,b,c,d,e\n0,1,2,3,4\n" + ROW, "columns"),
    "no label but a name": (b"label\n0\n1\n", "no pixels"),
    "an archive cut off": (gzip.compress(b"0,1,2,3,4\n" * 9 + ROW)[:-9], "cannot be read"),
    "zeros": (bytes(99), ""),
}


@pytest.mark.parametrize("name", TABLES)
def test_an_odd_table_is_read_or_refused(tmp_path, name):
    content, words = TABLES[name]
    path = tmp_path / ("a.csv.gz" if content[:2] == b"\x1f\x8b" else "a.csv")
    path.write_bytes(content)
    if words is None:
        found = sources.load(f"csv:{path}")
        assert found.train.x.reshape(2, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        return
    with pytest.raises(UserError) as caught:
        sources.load(f"csv:{path}")
    assert re.search(words, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["removed", "damaged", "smaller", "a folder"])
def test_a_file_that_changes_while_it_is_trained_on_is_named(tmp_path, monkeypatch, change):
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    found = sources.load(f"folder:{photos(tmp_path)}", pixels=Pixels())
    file = tmp_path / "cat/4.png"
    file.unlink()
    if change == "damaged":
        file.write_bytes(b"no image")
    elif change == "smaller":
        file.write_bytes(encoded(GREY[:4]))
    elif change == "a folder":
        os.mkdir(file)
    with pytest.raises(UserError, match=r"cannot be read as an image: .*4\.png \(") as caught:
        found.train.x[:], found.test.x[:]
    assert "\n" not in str(caught.value)
