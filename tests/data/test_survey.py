"""A look at a data set: counts, means, duplicates, and the page about it."""

from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn
from written import encoded, examples, write

from fmnist_keras3.cli import main
from fmnist_keras3.data import duplicates, sources, survey
from fmnist_keras3.data import source as limits
from fmnist_keras3.data.dataset import ImageData, Split
from fmnist_keras3.data.pixels import decode


def smooth(count, side=40, channels=1, seed=0):
    """Random images with large shapes, as photos have them."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 6, channels), np.uint8)
        picture = Image.fromarray(coarse.squeeze()).resize((side, side), Image.Resampling.BICUBIC)
        made.append(np.asarray(picture).reshape(side, side, channels))
    return np.stack(made)


def data_of(train, test, names=("a", "b", "c")):
    return ImageData("set", "somewhere", Split(*train), Split(*test), names)


def looked_at(train, test):
    """What is said of each pair of splits: exact, of another label, near, of another label."""
    found = survey.survey(data_of(train, test))
    rows = [(c.exact, c.exact_conflicts, c.near, c.near_conflicts) for c in found.copies]
    return dict(zip([(c.split, c.of) for c in found.copies], rows, strict=True)), found


def test_exact_duplicates_are_counted_by_split_and_label():
    x = smooth(20)
    train, y = x[[0, 1, 2, 3, 0, 0, 1]], np.array([0, 1, 2, 0, 0, 1, 1], np.int32)
    test, y_test = x[[2, 2, 3, 9, 9]], np.array([2, 2, 1, 0, 0], np.int32)
    counts, found = looked_at((train, y), (test, y_test))
    assert counts == {
        ("train", "train"): (3, 1, 0, 0),  # 4, 5 (of another label) and 6
        ("test", "train"): (3, 1, 0, 0),  # both of 2, and 3 (of another label)
        ("test", "test"): (2, 0, 0, 0),  # the second 2, and 9
    }
    first = found.exact[0]  # of two splits and two labels, which matters most
    assert [found.where(i) for i in first] == [("train", 3), ("test", 2)]
    assert found.complete
    assert np.array_equal(found.picture(int(first[1])), x[3])


def changed(image):
    """The same picture to the eye: another brightness, another contrast, compressed."""
    other = np.clip(0.8 * image.astype(float) + 15, 0, 255).astype(np.uint8)
    return decode(encoded(other, "jpeg", quality=60))


@pytest.mark.parametrize("side", [28, 40, 200])
@pytest.mark.parametrize("channels", [1, 3])
def test_near_duplicates_are_found_and_others_are_not(side, channels):
    x = smooth(40, side, channels)
    y = np.zeros(40, np.int32)
    copies = np.stack([changed(image) for image in x[:5]])
    counts, found = looked_at((x, y), (copies, np.array([0, 0, 1, 0, 0], np.int32)))
    assert counts[("test", "train")] == (0, 0, 5, 1)
    assert counts[("train", "train")] == counts[("test", "test")] == (0, 0, 0, 0)
    assert sorted(found.near.tolist()) == [[i, 40 + i] for i in range(5)]
    assert found.near[0].tolist() == [2, 42]


def test_of_images_without_contrast_only_exact_copies_are_duplicates():
    x = np.zeros((6, 12, 12, 1), np.uint8)
    x[:, 0, 0] = [[0], [0], [1], [2], [3], [4]]
    counts, _ = looked_at((x, np.zeros(6, np.int32)), (smooth(2, 12), np.zeros(2, np.int32)))
    assert counts[("train", "train")] == (1, 0, 0, 0)


def test_many_copies_make_few_pairs():
    x = np.repeat(smooth(2), 500, axis=0)
    y = np.zeros(1000, np.int32)
    counts, found = looked_at((x, y), (smooth(1), y[:1]))
    assert counts[("train", "train")] == (998, 0, 0, 0)
    assert counts[("test", "train")] == (1, 0, 0, 0)
    assert len(found.exact) < 1000


def test_of_images_that_are_all_alike_some_pairs_are_compared(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 2, (300, 40, 40, 1), np.uint8)
    x, y = np.minimum(smooth(1), 250) + noise, np.zeros(300, np.int32)
    counts, found = looked_at((x, y), (smooth(2, seed=1), y[:2]))
    exact, _, near, _ = counts[("train", "train")]
    assert (exact, near > 290) == (0, True)
    assert len(found.near) < 300 * 2 * duplicates.PARTNERS
    assert found.compared
    monkeypatch.setattr(duplicates, "TRIES", 500)
    assert not looked_at((x, y), (smooth(2, seed=1), y[:2]))[1].compared


def test_the_hash_is_that_of_the_cosine_transform():
    images = smooth(30)[..., 0]
    low = dctn(images.astype(float), axes=(1, 2))[:, :8, :8].reshape(30, 64)
    bits = np.packbits(low > np.median(low, axis=1, keepdims=True), axis=1)
    assert np.array_equal(duplicates.perceptual_hashes(images), bits.view(np.uint64).ravel())
    assert len(duplicates.perceptual_hashes(images[:, :5, :3])) == 30


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(0, 2**32 - 1))
def test_all_hashes_that_are_close_are_found(hashes, seed):
    rng = np.random.default_rng(seed)
    near = [h ^ sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 7), False)) for h in hashes]
    hashes = np.array([*hashes, *near], np.uint64)
    found = {tuple(sorted(p)) for pairs in duplicates._close(hashes) for p in pairs.tolist()}
    expected = {
        (i, j)
        for i, j in combinations(range(len(hashes)), 2)
        if int(hashes[i] ^ hashes[j]).bit_count() <= duplicates.BITS
    }
    assert found == expected


def test_means_and_spread_are_those_of_the_pixels():
    x, y, x_test, y_test = examples(60, 30, 3, (20, 16), 3)
    data = data_of((x, y.astype(np.int32)), (x_test, y_test.astype(np.int32)), tuple("abcd"))
    found = survey.survey(data)
    both, labels = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    assert np.allclose(found.center, both.mean((0, 1, 2)))
    assert np.allclose(found.spread, both.std((0, 1, 2)))
    assert np.array_equal(found.mean, np.rint(both.mean(0)))
    for k in range(3):
        assert np.array_equal(found.means[k], np.rint(both[labels == k].mean(0)))
    assert found.means[3] is None
    assert found.of_class(1, 4) == np.flatnonzero(y == 1)[:4].tolist()


def test_of_a_large_set_some_are_read_at_random(tmp_path, monkeypatch):
    data = write(tmp_path / "set", "folder", *examples(150, 50))
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    monkeypatch.setattr(survey, "MOST_READ", 40)
    found = sources.load(data)
    assert not found.train.in_memory
    read, gather = [], type(found.train.x.source).gather
    monkeypatch.setattr(
        type(found.train.x.source), "gather", lambda s, i: read.append(len(i)) or gather(s, i)
    )
    seen = survey.survey(found)
    assert seen.looked == {"train": 30, "test": 10}
    assert sum(read) == 40
    assert not seen.complete
    assert sorted(seen.row[:30].tolist()) == seen.row[:30].tolist() != list(range(30))
    assert np.array_equal(survey.survey(found).row, seen.row)


# --- the page -----------------------------------------------------------------------------------


class Read(HTMLParser):
    """The texts of a page, and where its pictures come from."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.sources, self.style = [], [], False
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.style = tag == "style"
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        if not self.style:
            self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture
def odd(tmp_path):
    """A folder with a rare class of a dangerous name, and duplicates of all kinds."""
    x = smooth(36, 32, 3)
    common, rare = "common " + "x" * 60, "<b>rare & odd"
    train = [(image, rare if i % 18 == 17 else common) for i, image in enumerate(x)]
    test = [(x[1], common), (changed(x[0]), common), (x[3], common), (x[2], rare)]
    for split, images in (("train", train), ("test", test)):
        for i, (image, name) in enumerate(images):
            path = tmp_path / "photos" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    return tmp_path / "photos"


def test_the_page_says_what_was_found(odd, tmp_path, capsys):
    page = tmp_path / "out.html"
    assert main(["data", "--data", f"folder:{odd}", "--report", str(page)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    read = Read(page)
    for words in (
        "No image comes twice within a split, not even nearly.",
        "Of test, 3 images are in train to the bit, 1 nearly.",
        "1 of the exact ones have another label there.",
    ):
        assert words in printed
        assert words in read.text
    assert "has 34 training examples, <b>rare & odd only 2." in read.text
    assert "two labels" in read.text
    assert read.text.count("two splits") >= 4
    assert len(read.sources) > 10
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    assert "<b>rare" not in page.read_text()
    assert "looked at" not in read.text


def test_the_page_says_that_a_large_set_was_sampled(odd, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limits, "MEMORY_BYTES", 0)
    monkeypatch.setattr(survey, "MOST_READ", 20)
    page = tmp_path / "out.html"
    assert main(["data", "--data", f"folder:{odd}", "--report", str(page)]) == 0
    assert "20 of 40 images were looked at, drawn at random." in Read(page).text
    assert "Looked at were 20 images, drawn at random." in capsys.readouterr().out


def test_what_the_report_cannot_do_is_told(tmp_path, capsys):
    nowhere = tmp_path / "nowhere" / "out.html"
    assert main(["data", "--data", "synthetic", "--report", str(nowhere)]) == 2
    assert "--report" in (text := capsys.readouterr().err)
    assert "there is no folder" in text
    (tmp_path / "out.html").mkdir()
    write(tmp_path / "set", "npz", *examples())
    words = [
        "data",
        "--data",
        f"npz:{tmp_path}/set/set.npz",
        "--report",
        str(tmp_path / "out.html"),
    ]
    assert main(words) == 2
    assert "out.html cannot be written" in capsys.readouterr().err


WIDER = """[...document.querySelectorAll("body *")].filter(e =>
    e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".hidden, thead")
).map(e => e.outerHTML.slice(0, 80))"""


def test_nothing_runs_out_of_the_page(browser, odd, tmp_path):
    page = tmp_path / "out.html"
    assert main(["data", "--data", f"folder:{odd}", "--report", str(page)]) == 0
    for width in (360, 1200):
        for dark in (False, True):
            browser.open(page, width, dark=dark, phone=width < 700)
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run(WIDER) == []
            assert browser.errors == []
            assert all(url.startswith(("file:", "data:")) for url in browser.requests)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_duplicates_of_fashion_mnist(fashion_dir):
    """None to the bit, but garments that were photographed once and listed twice."""
    found = survey.survey(sources.load("fashion_mnist", fashion_dir))
    counts = {(c.split, c.of): (c.exact, c.near, c.near_conflicts) for c in found.copies}
    assert counts == {
        ("train", "train"): (0, 49, 0),
        ("test", "train"): (0, 16, 0),
        ("test", "test"): (0, 2, 0),
    }
    assert len(found.near) == 80
