"""Mistaken Modules: one message each, with file and line, and what to write instead."""

import importlib.util
import sys

import numpy as np
import pytest

from fmnist_keras3 import ArrayData, Trainer, UserError
from fmnist_keras3.ground.errors import full_message

BEGINNING = """
import keras
import numpy as np
from keras import layers, ops

from fmnist_keras3 import Module

adam = keras.optimizers.Adam


class Right(Module):
    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([layers.Flatten(), layers.Dense(6, "relu")])
        self.decoder = keras.Sequential([layers.Dense(36), layers.Reshape((6, 6, 1))])

    def training_step(self, batch):
        x = ops.cast(batch[0], "float32") / 255
        return ops.mean(ops.square(self.decoder(self.encoder(x)) - x))

    def configure_optimizers(self):
        return adam(1e-3)


class Mine({base}):
"""
STEP = """
    def training_step(self, batch):
        x = ops.cast(batch[0], "float32") / 255
        out = self.decoder(self.encoder(x))
"""
OPTIMIZERS = "    def configure_optimizers(self):\n"
LOSS = "        return ops.mean(out)\n"
BRANCH = "cannot branch on a tensor.*keras.ops.where"
VALUE = r"has no value while the step is compiled.*float\(\)"
NUMPY = "Type keras.ops instead of numpy"

# What the class has instead of what is right: the line that is told has a mark.
MISTAKES = {
    "branch": (STEP + "        if ops.mean(out) > 0: out = -out  # !\n" + LOSS, BRANCH),
    "while": (STEP + "        while ops.mean(out) > 5: out = out / 2  # !\n" + LOSS, BRANCH),
    "and": (STEP + "        up = ops.mean(out) > 0 and 1.0  # !\n        return up\n", BRANCH),
    "assert": (STEP + "        assert ops.all(out < 9)  # !\n" + LOSS, BRANCH),
    "float": (STEP + "        print(float(ops.mean(out)))  # !\n" + LOSS, VALUE),
    "int": (STEP + "        n = int(ops.sum(out))  # !\n        return n * ops.mean(out)\n", VALUE),
    "item": (STEP + "        print(ops.mean(out).item())  # !\n" + LOSS, VALUE),
    "numpy()": (STEP + "        print(out.numpy())  # !\n" + LOSS, VALUE),
    "range": (STEP + "        for _ in range(ops.sum(batch[1])): pass  # !\n" + LOSS, VALUE),
    "array": (STEP + "        np.asarray(out)  # !\n" + LOSS, NUMPY),
    "mean of numpy": (STEP + "        return np.mean(np.exp(out))  # !\n", NUMPY),
    "mask": (STEP + "        return ops.mean(out[out > 0.5])  # !\n", "shape of a tensor must not"),
    "print": (STEP + "        print(f'{ops.mean(out):.3f}')  # !\n" + LOSS, VALUE),
    "none": (STEP + "        ops.mean(out)  # !\n", "returns None; it must be a scalar"),
    "vector": (
        STEP + "        return ops.mean(out, (1, 2, 3))  # !\n",
        r"returns a tensor of the shape \(1,\).*keras\.ops\.mean",
    ),
    "pair": (STEP + "        return ops.mean(out), out  # !\n", r"returns \(.*must be a scalar"),
    "dict": (STEP + "        return {'los': ops.mean(out)}  # !\n", r"without 'loss': los"),
    "number": (STEP + "        return 0.5  # !\n", r"the number 0\.5, which depends on no weight"),
    "text": (STEP + "        return 'loss'  # !\n", r"returns 'loss'; it must be a scalar"),
    "variable": (
        STEP + "        return ops.mean(out * keras.Variable(1.0))  # !\n",
        "makes no variables. Make it in __init__",
    ),
    "layer": (
        STEP + "        return ops.mean(layers.Dense(3)(out))  # !\n",
        "makes a layer or a variable each time it runs. Make it in __init__",
    ),
    "name": (STEP + "        return ops.mean(out - target)  # !\n", "'target' is not defined"),
    "function": (STEP + "        return ops.means(out)  # !\n", "no attribute 'means'"),
    "shape": (STEP + "        return ops.mean(ops.reshape(out, (-1, 7)))  # !\n", "Error: "),
    "attribute": (STEP + "        return ops.mean(self.decode(x))  # !\n", "no attribute 'decode'"),
    "unpack": (STEP + "        x, y, weight = batch  # !\n" + LOSS, "not enough values to unpack"),
    "backward": (
        STEP + "        ops.mean(out).backward()  # !\n" + LOSS,
        "no attribute .?backward",
    ),
    "epoch": (
        STEP + "        return ops.mean(out) * self.current_epoch  # !\n",
        r"reads self\.current_epoch.*compiled once",
    ),
    "trainer": (STEP + "        self.trainer.max_epochs  # !\n" + LOSS, r"reads self\.trainer"),
    "logs a tensor": (
        STEP + "        self.log('out', out)  # !\n" + LOSS,
        r"logs 'out' as a tensor of the shape .*keras\.ops\.mean",
    ),
    "logs nothing": (STEP + "        self.log('out', None)  # !\n" + LOSS, "logs 'out' as None"),
    "batch_idx": (
        "    def training_step(self, batch, batch_idx):\n        return 0  # !\n",
        r"takes batch_idx.*Type def training_step\(self, batch\)",
    ),
    "a name of one": (
        "    def training_step(self, batch, optimizer):\n"
        "        return super().training_step(batch)  # !\n",
        "takes the name of an optimizer, of which there is one only",
    ),
    "validation": (
        "    def validation_step(self, batch):\n"
        "        return ops.cast(batch[0], 'float32')  # !\n",
        r"returns a tensor of the shape",
    ),
    "no optimizer": (OPTIMIZERS + "        adam(1e-3)  # !\n", "returns None; it must return"),
    "its name": (OPTIMIZERS + "        return 'adam'  # !\n", "returns 'adam'; it must return"),
    "its argument": (OPTIMIZERS + "        return adam(lr=1e-3)  # !\n", "lr"),
    "schedule": (
        OPTIMIZERS + "        return adam(), 'cosin'  # !\n",
        "There is no schedule 'cosin'.*cosine",
    ),
    "one part": (
        OPTIMIZERS + "        return {'a': (adam(), self.encoder)}  # !\n",
        "No optimizer trains .*kernel.*Name their layers",
    ),
    "no layers": (
        OPTIMIZERS + "        return {'a': adam()}  # !\n",
        r"The optimizer 'a' is .*; it must be \(optimizer, layers",
    ),
    "both": (
        OPTIMIZERS + "        both = [self.encoder, self.decoder]\n"
        "        return {'a': (adam(), both), 'b': (adam(), self.decoder)}  # !\n",
        "both train",
    ),
    "every 0": (
        OPTIMIZERS + "        return {'a': (adam(), [self.encoder, self.decoder], 0)}  # !\n",
        "every=0; give a whole number",
    ),
    "every of one loss": (
        OPTIMIZERS + "        return {'a': (adam(), [self.encoder, self.decoder], 2)}  # !\n",
        "a training_step of each",
    ),
}


@pytest.fixture
def mistaken(tmp_path, monkeypatch):
    """A function that returns the class Mine of a file, and the number of the line with a mark."""

    def made(code, base="Right"):
        text = BEGINNING.replace("{base}", base) + code.lstrip("\n")
        (tmp_path / "mine.py").write_text(text)
        spec = importlib.util.spec_from_file_location("mine", tmp_path / "mine.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, "mine", module)
        marked = [n for n, line in enumerate(text.splitlines(), 1) if line.endswith("# !")]
        return module.Mine, marked

    return made


def fit(module):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 6, 6, 1), np.uint8), rng.integers(0, 4, 40).astype("int32")
    data = ArrayData(x, y, batch_size=16, validation=0.2)
    Trainer(max_epochs=1, barebones=True, enable_progress_bar=False).fit(module, data)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_once_with_file_and_line(name, mistaken, backend):
    if (name, backend) == ("mask", "tensorflow"):
        pytest.skip("TensorFlow computes with shapes that depend on values")
    code, message = MISTAKES[name]
    mine, [line] = mistaken(code)
    with pytest.raises(
        UserError, match=rf"^Mine\.\w+, mine\.py, line {line}, `.*`: .*{message}"
    ) as e:
        fit(mine())
    assert "\n" not in full_message(e.value)
    assert str(e.value).count("mine.py") == 1


@pytest.mark.parametrize(
    ("missing", "arguments"), [("training_step", "self, batch"), ("configure_optimizers", "self")]
)
def test_what_is_missing_is_told_with_the_class(missing, arguments, mistaken):
    code = (
        "    # !\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = keras.Sequential([layers.Flatten(), layers.Dense(3)])\n\n"
    )
    if missing == "training_step":
        code += OPTIMIZERS + "        return adam()\n"
    else:
        code += "    def training_step(self, batch):\n        return ops.mean(self.net(batch[0]))\n"
    mine, [line] = mistaken(code, "Module")
    place = rf"^Mine \(mine\.py, line {line - 1}\)"
    with pytest.raises(
        UserError, match=rf"{place} has no {missing}\. .*def {missing}\({arguments}\)"
    ):
        fit(mine())
