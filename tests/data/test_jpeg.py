"""JPEG files are decoded to the bits that Pillow gives, or by Pillow."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from fmnist_keras3.data import jpeg
from fmnist_keras3.data.pixels import decode

SIDES = ((8, 8), (7, 9), (17, 33), (64, 64), (127, 93))


def encoded(shape=(16, 24, 3), smooth=False, mode=None, **options):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if shape[-1] == 1 else pixels)
    if smooth:
        image = image.resize((4, 4)).resize(image.size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, "jpeg", **options)
    return file.getvalue()


def by_pillow(content, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        return decode(content)


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_all_common_kinds_are_pillows_to_the_bit(side, monkeypatch):
    pytest.importorskip("simplejpeg")
    kinds = itertools.product((1, 3), (10, 75, 100), (0, 1, 2), (False, True), (False, True))
    for channels, quality, subsampling, progressive, smooth in kinds:
        options = {"subsampling": subsampling, "progressive": progressive, "smooth": smooth}
        content = encoded((*side, channels), quality=quality, **options)
        found = jpeg.plain(content)
        assert found is not None
        assert found.flags.writeable
        expected = by_pillow(content, monkeypatch)
        assert np.array_equal(found, expected), (channels, quality, options)
        assert np.array_equal(decode(content), expected)


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return encoded(exif=exif)


@pytest.mark.parametrize(
    ("content", "shape"),
    [
        (turned(), (24, 16, 3)),
        (encoded(mode="CMYK"), (16, 24, 3)),
        (encoded(keep_rgb=True), (16, 24, 3)),
    ],
    ids=["turned", "four colours", "no luminance"],
)
def test_others_are_left_to_pillow(content, shape, monkeypatch):
    assert jpeg.plain(content) is None
    assert decode(content).shape == shape


@pytest.mark.parametrize("cut", [3, 100, 600, -2])
def test_what_breaks_off_is_no_image(cut):
    content = encoded()[:cut]
    assert jpeg.plain(content) is None
    with pytest.raises(Exception, match=r"(?i)truncated|identify|cannot load|broken"):
        decode(content)


def test_a_file_is_as_its_bytes(tmp_path, monkeypatch):
    content = encoded()
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    expected = by_pillow(content, monkeypatch)
    assert np.array_equal(decode(path), expected)
    assert np.array_equal(decode(str(path)), expected)
    monkeypatch.setattr("fmnist_keras3.data.pixels.CONTENT_BYTES", 10)  # too large to be read whole
    assert np.array_equal(decode(path), expected)
