"""A `.keras` file of a stranger runs no code, reads no other file, and takes no memory it lacks."""

import ast
import base64
import io
import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from fmnist_keras3 import UserError, load_model
from fmnist_keras3.cli import main
from fmnist_keras3.data import idx
from fmnist_keras3.data.dataset import FASHION_CLASSES, ImageData, Split

PACKAGE = Path(__file__).parents[1] / "fmnist_keras3"
KERNEL, BIAS = "layers/dense/vars/0", "layers/dense/vars/1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_data):
    """A folder with four small IDX files, on which a model could be evaluated."""
    path = tmp_path_factory.mktemp("idx")
    x, y = tiny_data
    idx.write_folder(path, ImageData("idx", "", Split(x, y), Split(x, y), FASHION_CLASSES))
    return path


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small model's file as Keras writes it."""
    path = tmp_path_factory.mktemp("good") / "good.keras"
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers, name="small")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(path)
    return path


@pytest.fixture
def strange(tmp_path):
    """Where the stranger's file lies, alone; what the attacks would make is looked for beside."""
    path = tmp_path / "downloads/strange.keras"
    path.parent.mkdir()
    return path


@pytest.fixture(autouse=True)
def little_memory():
    """Give this process 4 GiB more: where a check is missing, a test fails, not the machine."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.fixture
def refused(strange, folder, capsys):
    """Check that the stranger's file is refused in the agreed way; returns the message."""

    def check(*words):
        beside = sorted(strange.parent.parent.rglob("*"))
        with pytest.raises(UserError) as raised:
            load_model(strange)
        capsys.readouterr()
        assert main(["evaluate", str(strange), "--data_dir", str(folder)]) == 2
        message = capsys.readouterr().err
        assert message == f"fmnist: {raised.value}\n"
        assert message.startswith(f"fmnist: {strange} cannot be loaded as a Keras model: ")
        assert all(word in message for word in words), message
        assert len(message.splitlines()) == 1
        assert sorted(strange.parent.parent.rglob("*")) == beside
        return message

    return check


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, content, packed=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def forge(good, path, change):
    """Write the good file with ``change`` made to its config, or what that returns in its place."""
    content = members(good)
    config = json.loads(content["config.json"])
    config = change(config) or config
    pack(path, {**content, "config.json": json.dumps(config)})


def layer(config):
    return config["config"]["layers"][2]["config"]


def test_a_good_file_is_loaded_packed_or_not(good, strange, folder, tiny_data):
    expected = keras.saving.load_model(good).predict(tiny_data[0][:8], verbose=0)
    pack(strange, members(good), zipfile.ZIP_DEFLATED)
    for path in (good, strange):
        model = load_model(path)
        assert np.array_equal(model.predict(tiny_data[0][:8], verbose=0), expected)
        assert main(["evaluate", str(path), "--data_dir", str(folder)]) == 0


def test_a_lambda_is_not_run(strange, refused, tmp_path):
    marker = str(tmp_path / "evil")
    layers = [
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Lambda(lambda x, path=marker: (open(path, "w").close(), x)[1]),
    ]
    keras.Sequential(layers).save(strange)
    os.unlink(marker)  # Keras has called it to see what it returns
    assert "Lambda" in refused("ambda")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def named(module, name, config, **more):
    return {"module": module, "class_name": name, "config": config, **more}


FUNCTIONS = {
    "a lambda": {"class_name": "__lambda__", "config": {"value": ["4wAAAAA=", None, None]}},
    "eval": named("builtins", "function", "eval", registered_name="eval"),
    "os.system": named("os", "function", "system", registered_name="system"),
    "a download": named("keras.utils", "function", "get_file", registered_name="get_file"),
    "a loader": named("keras.saving", "function", "load_model", registered_name="load_model"),
    "a registered name": named(None, "function", "evil>run", registered_name="evil>run"),
    "a string": "os.system",
}


@pytest.mark.parametrize("place", ["activation", "kernel_initializer", "kernel_regularizer"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_not_of_keras_models_is_refused(good, strange, refused, name, place):
    forge(good, strange, lambda config: layer(config).update({place: FUNCTIONS[name]}))
    refused()


def classes(marker):
    """Classes with what would make them write the file ``marker``, or read another one."""
    pickled = base64.b64encode(pickle.dumps(Evil(marker))).decode()
    return {
        "os.system": named("os", "system", {"command": f"touch {marker}"}),
        "subprocess.Popen": named("subprocess", "Popen", {"args": ["touch", marker]}),
        "a module of Keras": named("keras.src.utils.file_utils", "Progbar", {"target": 1}),
        "an unknown class": named("keras.layers", "Evil", {}),
        "a registered name": named(None, "Evil", {}, registered_name="evil>Evil"),
        "a torch module": named("keras.layers", "TorchModuleWrapper", {"module": pickled}),
        "a SavedModel": named("keras.layers", "TFSMLayer", {"filepath": marker}),
        "a JAX function": named("keras.layers", "JaxLayer", {"call_fn": FUNCTIONS["a lambda"]}),
        "a vocabulary": named("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
        "no layer": named("keras.optimizers", "SGD", {}),
        "nothing": None,
        "a number": 3,
    }


ANYWHERE = [(name, place) for name in classes("") for place in ("layer", "model")]
COMPILED = [(name, place) for name in list(classes(""))[:9] for place in ("optimizer", "loss")]


@pytest.mark.parametrize(("name", "place"), ANYWHERE + COMPILED)
def test_a_class_that_is_not_of_keras_models_is_refused(
    good, strange, refused, tmp_path, name, place
):
    harmful = classes(str(tmp_path / "evil"))[name]

    def change(config):
        if place == "model":
            return harmful or {"harmful": harmful}
        if place == "layer":
            config["config"]["layers"][2] = harmful
        else:
            config["compile_config"][place] = harmful
        return config

    forge(good, strange, change)
    assert "root:" not in refused()


def test_a_message_takes_no_control_characters_from_the_file(good, strange, refused):
    name = "\x1b[2J\x07" + 1000 * "long"
    forge(good, strange, lambda config: {**config, "class_name": name, "module": "os"})
    message = refused("Could not locate class '[2Jlong")
    assert len(message) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "/tmp/evil",
        "assets/../../evil",
        "assets\\..\\..\\evil",
        "evil.py",
        "a/config.json",
    ],
)
def test_a_member_that_no_model_has_is_refused(good, strange, refused, name):
    pack(strange, {**members(good), name: b"evil"})
    refused("no member", repr(name))


def test_a_member_that_is_missing_or_there_twice_is_refused(good, strange, refused):
    content = members(good)
    for name in content:
        pack(strange, {k: v for k, v in content.items() if k != name})
        refused("once", name)
    pack(strange, content)
    with zipfile.ZipFile(strange, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("config.json", content["config.json"])
    refused("once")


def test_a_zip_bomb_is_refused(good, strange, refused):
    for name in ("config.json", "model.weights.h5", "assets/bomb"):
        pack(strange, {**members(good), name: bytes(2**26)}, zipfile.ZIP_DEFLATED)
        refused("bytes when unpacked")


def test_a_size_that_is_only_claimed_is_refused(good, strange, refused):
    content = bytearray(good.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the directory's last entry
    for claimed, word in ((2**32 - 2, "unpacked"), (100_000, "")):
        content[at + 20 : at + 28] = 2 * claimed.to_bytes(4, "little")
        strange.write_bytes(content)
        refused(word)


@pytest.mark.parametrize("units", [50 * 2**30 // (4 * 784), 10**12, 10**30])
@pytest.mark.parametrize("graph", [False, True])
def test_a_gigantic_layer_is_refused_before_it_is_made(good, strange, refused, units, graph):
    if graph:
        inputs = keras.Input((28, 28, 1))
        outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
        keras.Model(inputs, outputs).save(strange)
        good = strange
    forge(good, strange, lambda config: layer(config).update(units=units))
    refused(f"{785 * units:,} weights, and 7,8")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])  # nothing waits to be made


def test_many_layers_that_are_gigantic_together_are_refused(good, strange, refused):
    def change(config):
        first, flatten, dense = config["config"]["layers"]
        config["config"]["layers"] = [first, flatten, *({**dense} for _ in range(60))]
        for i, one in enumerate(config["config"]["layers"][2:]):
            one["config"] = {**one["config"], "units": 2**14, "name": f"dense{i}"}
            one.pop("build_config")

    forge(good, strange, change)
    refused("weights, and")


def with_weights(good, path, change):
    """Write the good file with ``change`` made to its open HDF5 file of weights."""
    content = members(good)
    weights = io.BytesIO(content["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        change(file)
    pack(path, {**content, "model.weights.h5": weights.getvalue()})


def claim(shape):
    def change(file):
        del file[KERNEL]
        file.create_dataset(KERNEL, shape, "f4", chunks=(1,) * len(shape), compression="gzip")

    return change


def replaced(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def virtual(file):
    del file[KERNEL]
    layout = h5py.VirtualLayout((784, 10), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "kernel", (784, 10), "f4")
    file.create_virtual_dataset(KERNEL, layout)


def outside(file):
    del file[KERNEL]
    file.create_dataset(KERNEL, (784, 10), "u1", external=[("/etc/passwd", 0, 7840)])


def endless(file):
    file["layers/dense/again"] = file["layers"]


WEIGHTS = {
    "4 TiB": (claim((2**20, 2**20)), "bytes, too many"),
    "3 GiB": (claim((3 * 2**28,)), "bytes, too many"),
    "another shape": (replaced(KERNEL, np.zeros((10, 784), "f4")), "shape"),
    "text": (replaced(BIAS, "text"), ""),
    "a group": (lambda file: (file.pop(BIAS), file.create_group(BIAS)), ""),
    "nothing": (lambda file: file.pop("layers"), "weights, and"),
    "an external link": (replaced(BIAS, h5py.ExternalLink("/etc/passwd", "/")), "Not allowed"),
    "a soft link": (replaced(BIAS, h5py.SoftLink("/" + KERNEL)), "Not allowed"),
    "a virtual dataset": (virtual, "Not allowed"),
    "an external dataset": (outside, "Not allowed"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_plain_arrays_of_their_size_are_refused(good, strange, refused, name):
    change, word = WEIGHTS[name]
    with_weights(good, strange, change)
    assert "root:" not in refused(word)


def test_a_group_that_contains_itself_does_no_harm(good, strange):
    with_weights(good, strange, endless)
    assert load_model(strange).count_params() == 7850


def test_a_truncated_file_is_refused(good, strange, refused):
    content = good.read_bytes()
    for size in (0, 1, 30, 1000, len(content) // 2, len(content) - 100, len(content) - 1):
        strange.write_bytes(content[:size])
        refused()


def test_a_flipped_bit_is_told_or_changes_nothing(good, strange, refused):
    content, weights = good.read_bytes(), load_model(good).get_weights()
    start = content.index(b"\x89HDF")
    inside = range(start, start + len(members(good)["model.weights.h5"]))
    for at in np.linspace(0, len(content) - 1, 50).astype(int):
        strange.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            found = load_model(strange).get_weights()
        except UserError:
            refused()
        else:  # a date, say
            assert at not in inside
            assert all(np.array_equal(a, b) for a, b in zip(found, weights, strict=True))


def test_another_kind_of_file_under_this_name_is_refused(good, strange, refused, tmp_path):
    evil = pickle.dumps(Evil(str(tmp_path / "evil")))
    strange.write_bytes(evil)
    refused()
    pack(strange, {"model/data.pkl": evil, "model/version": b"3"})  # as PyTorch writes
    refused("no member 'model/data.pkl'")
    strange.write_bytes(members(good)["model.weights.h5"])
    refused()
    strange.write_text("text")
    refused()


def test_an_encrypted_file_is_refused(good, strange, refused):
    content = bytearray(good.read_bytes())
    for at in range(len(content)):
        if content[at : at + 4] == b"PK\x01\x02":
            content[at + 8] |= 1
    strange.write_bytes(content)
    refused("encrypted")


def no_shape():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])


def logits_of_pixels():
    return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Dense(10)])


def two_inputs():
    inputs = [keras.Input((28, 28, 1)), keras.Input((28, 28, 1))]
    x = keras.layers.Flatten()(keras.layers.Add()(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def two_outputs():
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, [keras.layers.Dense(10)(x), keras.layers.Dense(10)(x)])


def named_outputs():
    inputs = keras.Input((28, 28, 1))
    return keras.Model(inputs, {"a": keras.layers.Dense(10)(keras.layers.Flatten()(inputs))})


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize(
    "make", [no_shape, logits_of_pixels, two_inputs, two_outputs, named_outputs]
)
def test_a_model_that_is_no_classifier_of_images_is_refused(strange, folder, capsys, make):
    model = make()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(strange)
    assert main(["evaluate", str(strange), "--data_dir", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("fmnist: The model ")


FORBIDDEN = {"cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "torch"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
CALLS |= {"yaml.load", "yaml.full_load", "yaml.unsafe_load"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_runs_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
            assert not FORBIDDEN & {name.split(".")[0] for name in names}, where
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in CALLS, where
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert "allow_pickle" not in given, where
            assert given.get("safe_mode", "True") == "True", where
            assert "shell" not in given, where
