"""`fmnist export --format html`: in a browser the page computes what Python does."""

import base64
import io
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from browser import AXE
from keras import layers
from PIL import Image
from test_export import MODELS, SMALL, stirred

from bench.pasted import BACKGROUNDS, paste
from fmnist_keras3 import Predictor, UserError, build_model, export
from fmnist_keras3.cli import main
from fmnist_keras3.data.dataset import FASHION_CLASSES
from fmnist_keras3.inference import export as module
from fmnist_keras3.inference import pictures, to_html
from fmnist_keras3.inference.graph import operations
from fmnist_keras3.inference.preparation import fitted, prepared, shrunk

ANSWERED = "typeof waiting === 'number' && waiting === 0"
SLOW = ("cnn", "lenet", "wrn")


@pytest.fixture(scope="module")
def scripts(browser, tmp_path_factory):
    """A page with the functions alone."""
    page = tmp_path_factory.mktemp("scripts") / "page.html"
    texts = [(to_html.PAGE / name).read_text() for name in to_html.SCRIPTS[:2]]
    page.write_text("<!DOCTYPE html>" + "".join(f"<script>{text}</script>" for text in texts))
    browser.open(page)
    return browser


@pytest.fixture(scope="module", autouse=True)
def few_images(tiny_data):
    with pytest.MonkeyPatch.context() as patch:

        def images(run, shape, *_):
            if shape == (28, 28, 1):
                return module.Images(tiny_data[0][:24], "generated images of synthetic")
            noise = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
            return module.Images(noise, module.RANDOM)

        patch.setattr(module, "_images", images)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data):
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    model = build_model("lenet")
    x, y = tiny_data
    model.fit(x[:64], y[:64], batch_size=32, verbose=0)
    model.save(folder / "model.keras")
    (folder / "config.yaml").write_text("data: synthetic\n")
    summary = {"dataset": {"name": "synthetic", "classes": FASHION_CLASSES}, "test_accuracy": 0.5}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "evaluation.json").write_text(json.dumps({"energy_95_percent": -1e9}))
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("pages") / "page.html", "html").path


def computed(browser, model, images, dtype):
    """What the page's functions compute of images."""
    graph, weights = to_html._packed(operations(model, False), dtype)
    told = {**graph, "shape": model.input_shape[1:], "weights": base64.b64encode(weights).decode()}
    browser.run(f"void (model = makeModel({json.dumps(told)}))")
    last = json.dumps(told["operations"][-1]["output"])
    rows = [browser.run(f"[...model({i.ravel().tolist()})[{last}].values]") for i in images]
    return np.array(rows)


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_is_the_same_in_a_browser(name, scripts):
    model = stirred(SMALL[name]())
    images = np.random.default_rng(2).integers(0, 4, (3, *model.input_shape[1:]), np.uint8)
    expected = np.asarray(model(images.astype(np.float32), training=False))
    found = computed(scripts, model, images, "float32")
    assert np.abs(found - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max() / 10)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in MODELS]
)
def test_each_model_is_the_same_in_a_browser(name, scripts):
    model = stirred(build_model(f"{name}{MODELS[name]}"), 0.02)
    images = np.random.default_rng(1).integers(0, 256, (2, 28, 28, 1), np.uint8)
    expected = np.asarray(model.predict_on_batch(images.astype(np.float32)))
    size = max(1.0, np.abs(expected).max() / 10)
    assert np.abs(computed(scripts, model, images, "float32") - expected).max() <= 2e-5 * size
    found = computed(scripts, model, images, "float16")
    assert 0 < np.abs(found - expected).max() <= 0.02 * size


def pictures_of_all_kinds():
    rng = np.random.default_rng(7)
    garment = np.zeros((28, 28), np.uint8)
    garment[2:27, 8:20] = garment[4:10, 2:26] = 200
    garment[12:16, 11:17] = 90
    for background in BACKGROUNDS:
        for filling in (False, True):
            yield pictures.decoded(io.BytesIO(paste(garment, background, rng, filling)))
    yield Image.fromarray(garment).convert("RGB")
    yield Image.fromarray(rng.integers(0, 256, (1, 1, 3), np.uint8))
    for shape in ((2, 3), (7, 40), (191, 30), (700, 400)):
        yield Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
    pixels = rng.integers(0, 256, (90, 120, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[20:80, 40:100, 3] = rng.integers(100, 256, (60, 60))
    yield Image.fromarray(pixels)
    pixels[..., 3] = 255 - (np.arange(120) == 4)  # hardly anything is clear
    yield Image.fromarray(pixels)
    scene = np.full((120, 100, 3), (240, 238, 230), np.uint8)
    scene[30:, 20:80] = (30, 60, 120)  # runs out of the picture
    yield Image.fromarray(scene)


def test_pictures_are_prepared_to_the_same_pixels(scripts):
    count = 0
    for image in pictures_of_all_kinds():
        picture = shrunk(image)
        rgba = np.asarray(image.convert("RGBA")).tobytes()
        scripts.run(f"void (bytes = decoded('{base64.b64encode(rgba).decode()}'))")
        w, h = image.size
        scripts.run(
            f"void (p = shrunk({w}, {h}, (a, b) => bytes.subarray(a * {w * 4}, b * {w * 4}), EDGE))"
        )
        assert scripts.run("[p.h, p.w]") == list(picture.pixels.shape[:2])
        assert scripts.run("[...p.pixels]") == picture.pixels.ravel().tolist()
        alpha = picture.alpha if picture.alpha is None else picture.alpha.ravel().tolist()
        assert scripts.run("p.alpha && [...p.alpha]") == alpha
        for size, invert in (((28, 28), "auto"), ((28, 28), "yes"), ((20, 33), "no")):
            arguments = f"p, {list(size)}, '{invert}'"
            found = scripts.run(f"[...prepared({arguments}).image]")
            assert found == prepared(picture, size, invert).ravel().tolist()
            whole = scripts.run(f"[...fitted(p, {list(size)}, {json.dumps(invert == 'yes')})]")
            assert whole == fitted(picture, size, invert == "yes").ravel().tolist()
            count += len(set(found)) > 3
    assert count > 30


def shown(browser):
    """The probabilities that the page shows, in per cent."""
    browser.wait(ANSWERED)
    texts = browser.run("[...document.querySelectorAll('#bars .number')].map(e => e.textContent)")
    return np.array([float(text.split()[0]) for text in texts])


def seen(browser):
    return np.array(browser.run("[...image]"), np.uint8).reshape(28, 28)


def expected_of(model, image):
    logits = np.asarray(model.predict_on_batch(image[None, ..., None].astype(np.float32)))[0]
    shares = np.exp(logits - logits.max())
    return 100 * shares / shares.sum()


@pytest.mark.parametrize("phone", [False, True])
def test_strokes_give_the_probabilities_of_the_model(browser, page, run, phone):
    model = Predictor(run).model
    browser.open(page, 390 if phone else 1200, 800, phone=phone)
    browser.wait(ANSWERED)
    assert "empty" in browser.run("document.getElementById('verdict').textContent")
    box = browser.run("(b => [b.left, b.top, b.width])(board.getBoundingClientRect())")
    left, top, side = box
    answered = []
    for line in ([(0.3, 0.1), (0.3, 0.9)], [(0.3, 0.9), (0.7, 0.9)], [(0.7, 0.9), (0.7, 0.1)]):
        (x0, y0), (x1, y1) = line
        browser.mouse("mousePressed", left + side * x0, top + side * y0)
        for t in (0.5, 1):
            x, y = x0 + t * (x1 - x0), y0 + t * (y1 - y0)
            browser.mouse("mouseMoved", left + side * x, top + side * y)
        browser.mouse("mouseReleased", left + side * x1, top + side * y1)
        found, image = shown(browser), seen(browser)
        assert np.abs(found - expected_of(model, image)).max() <= 0.11  # of one digit
        answered.append(image)
    assert answered[0][14, 8] == 200
    assert not answered[0][14, 19]
    assert answered[2][14, 19] == 200
    browser.run("document.querySelector('input[value=fill]').click()")
    browser.mouse("mousePressed", left + side * 0.5, top + side * 0.5)
    browser.mouse("mouseReleased", left + side * 0.5, top + side * 0.5)
    assert np.abs(shown(browser) - expected_of(model, seen(browser))).max() <= 0.11
    browser.run("document.getElementById('undo').click()")
    assert np.array_equal(seen(browser), answered[2])
    assert browser.errors == []
    assert {url.split(":")[0] for url in browser.requests} == {"file"}
    assert browser.run("document.documentElement.scrollWidth") <= (390 if phone else 1200)


def test_the_keyboard_draws(browser, page, run):
    browser.open(page)
    browser.wait(ANSWERED)
    browser.run("document.getElementById('board').focus()")
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        browser.key(key)
    browser.key(" ", "Space")
    image = seen(browser)
    assert image[13, 13] == 200
    browser.key("ArrowRight", modifiers=8)
    assert seen(browser)[13, 14] == 200
    assert np.abs(shown(browser) - expected_of(Predictor(run).model, seen(browser))).max() <= 0.11
    browser.wait("document.getElementById('said').textContent.includes('%')")
    browser.key("z", "KeyZ", modifiers=2)
    assert np.array_equal(seen(browser), image)


def test_dropped_and_chosen_files_give_what_the_predictor_says(browser, page, run, tmp_path):
    rng = np.random.default_rng(3)
    garment = np.zeros((28, 28), np.uint8)
    garment[2:27, 8:20] = garment[4:10, 2:26] = 200
    files = [tmp_path / "wood.jpg", tmp_path / "grey.png", tmp_path / "turned.jpg"]
    files[0].write_bytes(paste(garment, "wooden", rng))
    Image.fromarray(255 - garment).resize((500, 700)).save(files[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures.read(files[0]).save(files[2], exif=exif, quality=95)
    predictor = Predictor(run)
    browser.open(page)
    browser.wait(ANSWERED)
    for number, path in enumerate(files):
        browser.run("void (picture = null)")
        if number == 1:
            browser.choose("#file", path)
        else:
            browser.drop(path)
        browser.wait(f"picture && {ANSWERED}")
        (prediction,) = predictor([path])
        assert np.array_equal(seen(browser), prediction.image)
        top = browser.run("document.querySelector('#verdict span').textContent")
        assert top == prediction.label
        found = shown(browser)
        for name, share in prediction.top:
            assert abs(found[FASHION_CLASSES.index(name)] - 100 * share) <= 0.11
        said = browser.run("document.getElementById('unusual').textContent")
        assert said.startswith("Unusual") == prediction.unusual
        assert not browser.run("document.getElementById('preparation').hidden")
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    browser.drop(text)
    browser.wait("document.getElementById('refused').textContent.includes('notes.txt')")
    assert browser.errors == []
    assert {url.split(":")[0] for url in browser.requests} == {"file"}


def test_the_page_checks_itself_when_it_is_opened(browser, page, tmp_path):
    browser.open(page)
    browser.wait(ANSWERED)
    said = browser.run("document.getElementById('exactness').textContent")
    assert re.search(r"16 bits.* on \d+ images .* no label changed", said)
    assert 0 < browser.run("difference") < 1e-3
    other = tmp_path / "other.html"
    text = page.read_text()
    other.write_text(re.sub(r'"expected":\[\[[\d.e-]+', '"expected":[[0.5', text))
    browser.open(other)
    browser.wait(ANSWERED)
    assert "do not trust" in browser.run("document.getElementById('exactness').textContent")


def test_the_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text()
    assert not re.search(r"(src|href)=|@import|url\(|https?://|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text
    assert "generated garments" in text
    assert "50.00 %" in text


@pytest.mark.skipif(not AXE, reason="AXE is not the path of axe.min.js")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious(browser, page, dark, tmp_path):
    browser.open(page, dark=dark)
    browser.wait(ANSWERED)
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)).save(path)
    browser.drop(path)
    browser.wait("!document.getElementById('preparation').hidden")
    browser.run("new Promise(done => setTimeout(done, 300))")
    browser.run(Path(AXE).read_text() + "\n;0")
    found = browser.run(
        "axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html)]))"
    )
    assert found == []


def test_a_model_of_colours_sees_the_whole_picture(browser, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 16, 3)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    made = export(model, tmp_path / "p.html", "html")
    assert made.data == module.RANDOM
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)).save(path)
    browser.open(made.path)
    browser.wait(ANSWERED)
    assert browser.run("document.querySelectorAll('#examples button').length") == 0
    browser.drop(path)
    browser.wait(f"picture && {ANSWERED}")
    (prediction,) = Predictor(model)([path])
    assert browser.run("[...image]") == prediction.image.ravel().tolist()
    found = shown(browser)
    for name, share in prediction.top:
        assert abs(found[int(name)] - 100 * share) <= 0.11


def test_what_a_page_cannot_show_is_refused(tmp_path, run, monkeypatch):
    flat = keras.Sequential([keras.Input((30,)), layers.Dense(3)])
    large = keras.Sequential([keras.Input((200, 8, 1)), layers.Flatten(), layers.Dense(2)])
    for model, said in ((flat, "must be images"), (large, "200 x 8 pixels")):
        with pytest.raises(UserError, match=said):
            export(model, tmp_path / "m.html", "html")
    with pytest.raises(UserError, match="shows probabilities"):
        export(flat, tmp_path / "m.html", "html", outputs="logits")
    monkeypatch.setitem(module.TOLERANCES, "html", 1e-9)
    with pytest.raises(module.Inexact, match="differ by up to"):
        export(run, tmp_path / "m.html", "html")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_8_bits(run, tmp_path, browser, monkeypatch, page):
    monkeypatch.setattr(module, "MOST_CHANGED", 0.2)  # of a model that is sure of nothing
    made = export(run, tmp_path / "p.html", "html", quantize="int8")
    assert made.size < 0.8 * page.stat().st_size
    browser.open(made.path)
    browser.wait(ANSWERED)
    said = browser.run("document.getElementById('exactness').textContent")
    assert "Weights are kept in 8 bits." in said
    assert "do not trust" not in said
    assert 0 < browser.run("difference") <= made.difference + 1e-4
    shares = browser.run("[...classified(example(0)).shares]")
    read = to_html.read(made.path)
    first = np.array(browser.run("[...example(0)]"), np.uint8).reshape(1, 28, 28, 1)
    assert np.abs(read(first)[0] - shares).max() < 1e-5
    assert made.accuracies is None
    monkeypatch.setattr(module, "MOST_CHANGED", -1)
    with pytest.raises(module.Inexact, match="labels changed"):
        export(run, tmp_path / "q.html", "html", quantize="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["p.html"]


def test_class_names_cannot_end_the_script(tmp_path, run, browser):
    names = ["</script><script>window.evil = 1</script>", "<b>&amp;", *FASHION_CLASSES[2:]]
    folder = tmp_path / "evil"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    summary = {"dataset": {"name": "<img src=x>", "classes": names}}
    (folder / "summary.json").write_text(json.dumps(summary))
    made = export(folder, tmp_path / "p.html", "html")
    browser.open(made.path)
    browser.wait(ANSWERED)
    assert browser.run("window.evil") is None
    texts = browser.run(
        "[...document.querySelectorAll('#bars li')].map(e => e.firstChild.textContent)"
    )
    assert texts == names


def test_the_command(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--format", "html"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "model.html: probabilities" in out
    assert "batch of" not in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.html"]
