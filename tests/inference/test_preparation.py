"""What a picture is made into: the steps in numbers worked out by hand, and their laws."""

import numpy as np
import pytest
from odd_files import scene
from PIL import Image

from fmnist_keras3.inference.preparation import Shrunk, fitted, grey, prepared, shrunk


def whole(pixels, alpha=None):
    """A picture that needs no shrinking, of greys or colours."""
    pixels = np.asarray(pixels, np.uint8)
    return Shrunk(pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, 2), alpha)


def on(background, top=10, left=30, size=(60, 80)):
    """A grey block with darker sleeves on a background, RGB uint8 ``[h, w, 3]``."""
    pixels = np.broadcast_to(np.asarray(background, np.uint8), (*size, 3)).copy()
    pixels[top : top + 30, left : left + 15] = 90
    pixels[top : top + 10, left - 6 : left + 21] = 30
    return pixels


def test_blocks_are_averaged_and_rounded_to_the_nearest():
    values = np.array([[0, 1, 10, 20, 30], [0, 0, 10, 20, 31]], np.uint8)
    image = Image.fromarray(values).convert("RGB")
    # Columns 0-1, 2-4; both rows.
    assert shrunk(image, edge=2).pixels[..., 0].tolist() == [[0, 20]]
    assert np.array_equal(shrunk(image, edge=5).pixels[..., 0], values)


def test_strips_give_what_the_whole_gives(monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3000, 2111, 4), dtype=np.uint8)
    found = shrunk(Image.fromarray(pixels))
    assert found.pixels.shape == (192, 135, 3)
    for i, j in ((0, 0), (100, 70), (191, 134)):
        rows = slice(i * 3000 // 192, (i + 1) * 3000 // 192)
        columns = slice(j * 2111 // 135, (j + 1) * 2111 // 135)
        part = pixels[rows, columns].astype(int)
        alpha = part[..., 3:]
        over = (part[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
        count = alpha.size
        assert (
            found.pixels[i, j].tolist() == ((2 * over.sum((0, 1)) + count) // (2 * count)).tolist()
        )
        assert found.alpha[i, j] == (2 * alpha.sum() + count) // (2 * count)


def test_grey_is_that_of_pillow():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    assert np.array_equal(grey(pixels), np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize(
    "colour", [(255, 255, 255), (230, 230, 230), (90, 160, 220), (200, 180, 90)]
)
def test_a_garment_on_any_colour_becomes_the_same_image(colour):
    white = prepared(whole(on((255, 255, 255))), (28, 28))
    found = prepared(whole(on(colour)), (28, 28))
    assert np.array_equal(found, white)
    assert np.flatnonzero(found.any(axis=1))[[0, -1]].tolist() == [0, 27]  # fills the height
    columns = np.flatnonzero(found.any(axis=0))
    assert abs(columns[0] - (27 - columns[-1])) <= 1  # in the middle
    assert found[2].max() == 225  # 255 - 30
    assert found[20].max() == 165  # 255 - 90
    assert not found[20, : columns[0] + 4].any()


def test_where_it_stands_does_not_matter():
    one = prepared(whole(on((220, 220, 220), top=10, left=30)), (28, 28))
    other = prepared(whole(on((220, 220, 220), top=22, left=12)), (28, 28))
    assert np.array_equal(one, other)


def test_a_light_from_one_side_is_no_garment():
    y, x = np.mgrid[0:60, 0:80]
    light = (110 + x + y // 2 - (x - 40) ** 2 // 60)[..., None].repeat(3, 2).astype(np.uint8)
    scene = on((255, 255, 255))
    pixels = np.where(scene == 255, light, scene)
    assert np.array_equal(
        prepared(whole(pixels), (28, 28)) > 0, prepared(whole(scene), (28, 28)) > 0
    )


def test_a_negative_stays_as_it_is_unless_told():
    negative = 255 - on((255, 255, 255))
    white = prepared(whole(on((255, 255, 255))), (28, 28))
    assert np.array_equal(prepared(whole(negative), (28, 28)), white)
    assert np.array_equal(prepared(whole(negative), (28, 28), "no"), white)
    assert prepared(whole(on((255, 255, 255))), (28, 28), "no")[2].max() == 30
    assert not np.array_equal(prepared(whole(negative), (28, 28), "yes"), white)


def test_an_image_of_the_data_set_is_taken_as_it_is(tiny_data):
    image = tiny_data[0][3][..., 0].copy()
    image[[0, -1]] = image[:, [0, -1]] = 0
    assert np.array_equal(prepared(whole(image), (28, 28)), image)


def test_pale_garments_are_lifted_and_dark_ones_are_not():
    pixels = on((255, 255, 255))
    pixels[pixels < 255] = 215
    assert prepared(whole(pixels), (28, 28)).max() == 60


def test_what_is_transparent_is_no_garment():
    pixels = on((255, 255, 255))
    alpha = np.where(pixels[..., 0] < 255, 255, 0).astype(np.uint8)
    expected = prepared(whole(pixels), (28, 28))
    assert np.array_equal(prepared(whole(pixels, alpha), (28, 28)), expected)


def test_specks_go_and_what_an_outline_encloses_stays():
    clean = on((200, 200, 200))
    dirty = clean.copy()
    dirty[50:53, 5:8] = 0
    assert np.array_equal(prepared(whole(dirty), (28, 28)), prepared(whole(clean), (28, 28)))
    clean[16:34, 34:42] = 201  # inside, about as bright as the background
    assert (prepared(whole(clean), (28, 28))[10:20, 12:15] > 0).all()


@pytest.mark.parametrize("shade", [30, 90, 235])
@pytest.mark.parametrize("colour", [(200, 180, 90), (90, 160, 220)])
def test_what_runs_out_of_the_picture_keeps_its_body_and_loses_its_background(colour, shade):
    pixels = np.broadcast_to(np.asarray(colour, np.uint8), (40, 40, 3)).copy()
    pixels[10:20] = pixels[10:, 10:30] = shade  # out of it on three sides
    image = prepared(whole(pixels), (28, 28))
    expected = np.zeros((28, 28), bool)
    expected[3:10] = expected[3:24, 7:21] = True
    assert np.array_equal(image > 0, expected)


def test_the_rim_of_a_large_garment_goes_but_no_thin_part():
    pixels = np.full((120, 120, 3), 200, np.uint8)
    pixels[20:100, 40:80] = 120  # as if the background shone in, at the outline
    pixels[21:99, 41:79] = 10
    pixels[60:63, 80:100] = 10
    image = prepared(whole(pixels), (28, 28))
    body = image[5][image[5] > 0]
    assert (body[:-1] > 230).all()  # the last one may be cut
    assert ((image[13:16] > 0).any(axis=0)).sum() > len(body) + 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (2, 2), (3, 50), (28, 28), (192, 192)])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (32, 48)])
def test_every_picture_becomes_an_image(shape, size):
    rng = np.random.default_rng(0)
    for pixels in (
        np.zeros((*shape, 3)),
        np.full((*shape, 3), 255),
        rng.integers(0, 256, (*shape, 3)),
    ):
        for invert in ("auto", "yes", "no"):
            image = prepared(whole(pixels), size, invert)
            assert image.shape == size
            assert image.dtype == np.uint8
        assert fitted(whole(pixels), size).shape == (*size, 3)


def test_colour_models_get_the_whole_picture():
    picture = shrunk(scene((60, 80)))
    image = fitted(picture, (40, 40))
    assert (image[:, :5] == 255).all()  # 80 x 60 upright: the sides have the border's colour
    assert (image[10:30, 13:27] < 255).any()
    assert np.array_equal(fitted(picture, (80, 60)), np.asarray(scene((60, 80))))
    assert np.array_equal(fitted(picture, (80, 60), True), 255 - np.asarray(scene((60, 80))))
