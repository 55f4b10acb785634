"""Steps of one's own: what they compute, log and resume, and what is refused, with the line."""

import contextlib
import json
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import rich.console
from float64 import in_float64
from keras import layers, ops

from fmnist_keras3 import (
    ArrayData,
    EarlyStopping,
    EMAWeightAveraging,
    Module,
    RichProgressBar,
    StochasticWeightAveraging,
    Trainer,
    Tuner,
    UserError,
)
from fmnist_keras3.data.augment import parse_augment
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.examples.vae import VAE

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (90, 6, 6, 1), np.uint8)
LABELS = RNG.integers(0, 4, 90).astype("int32")
BATCH, EPOCHS = 16, 3  # the last batch is short
LONG = 9  # epochs, of six steps
CROP = parse_augment("crop:2")


class Net(Module):
    """A classifier, as `compile` would make it of the same layers."""

    def __init__(self, width=8, rate=1e-2, dropout=0.0):
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        initial = keras.initializers.GlorotUniform(seed=1)
        l2 = keras.regularizers.L2(1e-2)
        self.net = keras.Sequential(
            [
                layers.Rescaling(1 / 255),
                layers.Flatten(),
                layers.Dense(width, "relu", kernel_initializer=initial, kernel_regularizer=l2),
                layers.BatchNormalization(),
                layers.Dropout(dropout, seed=3),
                layers.Dense(4, kernel_initializer=initial),
            ]
        )
        self.loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def call(self, x):
        return self.net(x)

    def training_step(self, batch):
        x, y = batch
        logits = self(x)
        self.accuracy.update_state(y, logits)
        return self.loss_of(y, logits)

    def validation_step(self, batch):
        x, y = batch
        logits = self(x)
        self.accuracy.update_state(y, logits)
        self.log("val_loss", self.loss_of(y, logits))

    def configure_optimizers(self):
        return keras.optimizers.Adam(self.rate)


class Autoencoder(Module):
    """Lightning's first page."""

    def __init__(self):
        super().__init__()
        initial = keras.initializers.GlorotUniform(seed=2)
        self.encoder = keras.Sequential(
            [layers.Flatten(), layers.Dense(6, "relu", kernel_initializer=initial)]
        )
        self.decoder = keras.Sequential(
            [layers.Dense(36, kernel_initializer=initial), layers.Reshape((6, 6, 1))]
        )

    def training_step(self, batch):
        x = ops.cast(batch[0], "float32") / 255
        loss = ops.mean(ops.square(self.decoder(self.encoder(x)) - x))
        self.log("train_loss", loss)
        self.log("brightness", ops.mean(x), on_step=False)
        self.log("twice", 2 * loss, on_epoch=False)
        return {"loss": loss}

    def configure_optimizers(self):
        return keras.optimizers.SGD(0.5, momentum=0.9)


class GAN(Module):
    """Two optimizers; the generator makes an update at every other step."""

    def __init__(self):
        super().__init__()
        initial = keras.initializers.GlorotUniform(seed=5)
        self.generator = keras.Sequential(
            [layers.Dense(36, "sigmoid", kernel_initializer=initial), layers.Reshape((6, 6, 1))]
        )
        self.critic = keras.Sequential(
            [
                layers.Flatten(),
                layers.Dense(8, "relu", kernel_initializer=initial),
                layers.Dense(1, kernel_initializer=initial),
            ]
        )
        self.noise = keras.random.SeedGenerator(7)

    def training_step(self, batch, optimizer):
        x = ops.cast(batch[0], "float32") / 255
        made = self.generator(keras.random.normal((ops.shape(x)[0], 3), seed=self.noise))
        if optimizer == "generator":
            loss = ops.mean(ops.softplus(-self.critic(made)))
        else:
            real, fake = self.critic(x), self.critic(made)
            loss = ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))
        self.log(f"{optimizer}_loss", loss)
        return loss

    def configure_optimizers(self):
        return {
            "critic": (keras.optimizers.Adam(1e-2), self.critic),
            "generator": (keras.optimizers.Adam(1e-2), self.generator, 2),
        }


def data(**options):
    return ArrayData(IMAGES, LABELS, batch_size=BATCH, **{"validation": 0.0, **options})


def trainer(path=None, **options):
    quiet = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
    return Trainer(run_dir=path, **{"max_epochs": EPOCHS, **quiet, **options})


def records(path, event):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["event"] == event]


def batches(images=IMAGES, epochs=LONG):
    """Yield what a training gives to its steps."""
    for epoch in range(epochs):
        plan = epoch_plan(0, epoch, examples=len(images), batch_size=BATCH)
        for rows, valid in zip(plan.indices, plan.valid, strict=True):
            yield images[rows[:valid]], LABELS[rows[:valid]]


def by_hand(module, phases, images=IMAGES):
    """Train with a plain loop of this backend; returns the losses of each step.

    ``phases``: arguments of training_step, the optimizer, its variables, and at which steps.
    """
    losses = []
    for number, batch in enumerate(batches(images)):
        losses.append({})
        for name, optimizer, variables, every in phases:
            if number % every:
                continue
            arguments = [tuple(map(ops.convert_to_tensor, batch)), *[name] * (name is not None)]
            loss, gradients = differentiated(module, arguments, variables)
            optimizer.apply(gradients, variables)
            losses[-1][name] = float(loss)
    return losses


def differentiated(module, arguments, variables):
    """Return the loss of a training step and its gradients, by the backend's own means."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = module.training_step(*arguments)
            loss = loss["loss"] if isinstance(loss, dict) else loss
        return loss, tape.gradient(loss, [v.value for v in variables])
    import jax

    state = [v for v in module.variables if all(v is not w for w in variables)]

    def objective(weights):
        with keras.StatelessScope(zip(variables, weights, strict=True)) as scope:
            loss = module.training_step(*arguments)
        after = [scope.get_current_value(v) for v in state]
        return (loss["loss"] if isinstance(loss, dict) else loss), after

    weights = [v.value for v in variables]
    (loss, after), gradients = jax.value_and_grad(objective, has_aux=True)(weights)
    for variable, value in zip(state, after, strict=True):
        if value is not None:
            variable.assign(value)
    return loss, gradients


@pytest.fixture(autouse=True)
def outside_of_training(monkeypatch):
    """Let `log` be called by a plain loop."""
    monkeypatch.setattr(Module, "log", log := Module.log)
    original = log

    def lenient(self, name, value, **options):
        from fmnist_keras3 import module

        if module._running.get() is not None or self._fit is not None:
            original(self, name, value, **options)

    monkeypatch.setattr(Module, "log", lenient)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_autoencoder_is_that_of_a_plain_loop(tmp_path):
    ours, hand = Autoencoder(), Autoencoder()
    made = trainer(tmp_path / "run", max_epochs=LONG)
    made.fit(ours, data())
    hand.training_step((IMAGES[:1], LABELS[:1]))
    losses = by_hand(hand, [(None, hand.configure_optimizers(), hand.trainable_variables, 1)])
    steps = records(tmp_path / "run", "step")
    np.testing.assert_allclose([r["loss"] for r in steps], [x[None] for x in losses], rtol=1e-5)
    same(ours.get_weights(), hand.get_weights())
    assert [r["twice"] for r in steps] == pytest.approx([2 * r["loss"] for r in steps])
    assert "brightness" not in steps[0]


def test_a_gan_is_that_of_a_plain_loop(tmp_path):
    ours, hand = GAN(), GAN()
    trainer(tmp_path / "run", max_epochs=LONG).fit(ours, data())
    critic, generator = (v[0] for v in hand.configure_optimizers().values())
    for name in ("critic", "generator"):
        hand.training_step((IMAGES[:1], LABELS[:1]), name)
    hand.noise.state.assign(keras.random.SeedGenerator(7).state)
    losses = by_hand(
        hand,
        [
            ("critic", critic, hand.critic.trainable_variables, 1),
            ("generator", generator, hand.generator.trainable_variables, 2),
        ],
    )
    for step, found in zip(records(tmp_path / "run", "step"), losses, strict=True):
        for name, loss in found.items():
            assert step[f"{name}_loss"] == pytest.approx(loss, rel=1e-5)
    same(ours.get_weights(), hand.get_weights())


@pytest.fixture
def exact():
    """Train in float64 on JAX: in float32 rounding alone now and then decides if a ReLU is dead.

    (Six of 54 losses then differ by 2e-5. On TensorFlow both sum alike: 1e-7 in float32.)
    """
    with in_float64() if keras.backend.backend() == "jax" else contextlib.nullcontext():
        yield


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")
def test_the_vae_of_the_examples_is_that_of_a_plain_loop(tmp_path, exact):
    images = RNG.integers(0, 256, (len(IMAGES), 28, 28, 1), np.uint8)
    ours, hand = VAE(), VAE()
    for module in (ours, hand):  # makes its weights, and has the same noise to come
        module.training_step((ops.convert_to_tensor(images[:1]), LABELS[:1]))
        module.noise.state.assign(keras.random.SeedGenerator(0).state)
    hand.set_weights(ours.get_weights())
    optimizer = hand.configure_optimizers()[0]
    given = ArrayData(images, LABELS, batch_size=BATCH, validation=0.0)
    trainer(tmp_path / "run", max_epochs=LONG, schedule="constant").fit(ours, given)
    losses = by_hand(hand, [(None, optimizer, hand.trainable_variables, 1)], images)
    found = [r["loss"] for r in records(tmp_path / "run", "step")]
    np.testing.assert_allclose(found, [x[None] for x in losses], rtol=1e-5)


def test_values_are_means_over_the_examples(tmp_path):
    trainer(tmp_path / "run", max_epochs=1).fit(Autoencoder(), data())
    [epoch] = records(tmp_path / "run", "train")
    assert epoch["brightness"] == pytest.approx(IMAGES.mean() / 255, rel=1e-5)
    assert epoch["train_loss"] == pytest.approx(epoch["loss"], rel=1e-6)
    assert "twice" not in epoch


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "schedule": "cosine"},
        {"callbacks": EMAWeightAveraging(0.9)},
        {"precision": "bf16-mixed"},
    ],
    ids=["plain", "accumulated", "averaged", "bf16"],
)
@pytest.mark.filterwarnings("ignore:On a CPU the precision", "ignore:Training ends at step")
def test_a_module_is_the_compiled_model_of_the_same_layers(tmp_path, options):
    module, other = Net(dropout=0.3), Net(dropout=0.3)
    other.net.build((None, 6, 6, 1))
    other.net.compile(keras.optimizers.Adam(1e-2), other.loss_of, metrics=["accuracy"])
    runs = {}
    for name, model in (("module", module), ("compiled", other.net)):
        callbacks = options.get("callbacks")
        more = {**options, "callbacks": EMAWeightAveraging(0.9)} if callbacks else options
        trainer(tmp_path / name, **more).fit(model, data(validation=0.2))
        runs[name] = [*records(tmp_path / name, "train"), *records(tmp_path / name, "validation")]
    rough = 0.02 if "precision" in options else 1e-4
    for a, b in zip(*runs.values(), strict=True):
        for name in ("loss", "accuracy", "penalty"):
            assert a.get(name, 0) == pytest.approx(b.get(name, 0), rel=rough, abs=rough), name


class Unbuilt(Net):
    """Whose layers are built by its training: it does not say of what inputs they are."""

    def __init__(self):
        super().__init__()
        parts = [layers.Flatten(), layers.BatchNormalization(), layers.Dropout(0.5)]
        self.net = keras.Sequential([*parts, layers.Dense(4)])


@pytest.mark.parametrize("fitted", [True, False])
def test_layers_that_a_training_has_built_do_not_train_when_they_are_called(fitted):
    module, made = Unbuilt(), trainer(max_epochs=1)
    if fitted:
        made.fit(module, data())
    else:
        made.predict(module, IMAGES[:1])
    x = ops.convert_to_tensor(IMAGES[:8].astype("float32"))
    answers = made.predict(module, IMAGES[:8])
    np.testing.assert_allclose(ops.convert_to_numpy(module(x)), answers, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(module.net(x)), answers, rtol=1e-5, atol=1e-6)
    assert np.any(ops.convert_to_numpy(module.net(x, training=True)) != answers)


@pytest.mark.parametrize("make", [lambda: Net(dropout=0.3), GAN], ids=["net", "gan"])
def test_a_resumed_run_is_equal_to_the_bit(tmp_path, make):
    whole, part, rest = make(), make(), make()
    trainer(tmp_path / "whole").fit(whole, data())
    trainer(tmp_path / "part", max_steps=8).fit(part, data())
    trainer(tmp_path / "part").fit(rest, data(), ckpt_path="last")
    for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    ours, theirs = (records(tmp_path / name, "train") for name in ("whole", "part"))
    assert ours[-1]["loss"] == theirs[-1]["loss"]


class Encoder(Autoencoder):
    """Is called for the codes alone: the decoder has its weights from the steps."""

    def call(self, x):
        return self.encoder(ops.cast(x, "float32"))


@pytest.mark.parametrize("called", [False, True])
def test_layers_that_only_the_steps_use_are_built_without_a_word(called):
    module = Encoder()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if called:
            module(IMAGES[:1])
            assert "`build()` was called" in str(said[0].message)  # Keras', of the user's own call
            said.clear()
        Trainer(barebones=True, max_epochs=1).fit(module, data())
    assert [str(w.message) for w in said if "build" in str(w.message)] == []
    assert len(module.trainable_variables) == 4


class Called(GAN):
    """Is called with noise, not with what it is trained on."""

    def call(self, noise):
        return self.generator(noise)


def test_a_generator_is_built_for_noise(tmp_path):
    module, made = Called(), trainer(tmp_path / "run", max_epochs=1)
    made.fit(module, data())
    assert made.predict(module, np.zeros((5, 3), "float32")).shape == (5, 6, 6, 1)


class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.called = []
        self.scale = keras.Variable(1.0, trainable=False)

    def training_step(self, batch):
        return self.scale * super().training_step(batch)

    def on_fit_start(self):
        self.called.append(("fit", self.current_epoch, self.global_step, self.trainer.max_epochs))

    def on_train_epoch_start(self):
        self.scale.assign(0.0 if self.current_epoch else 1.0)

    def on_train_epoch_end(self):
        self.log("norm", ops.norm(self.net.layers[2].kernel))
        self.called.append(("epoch", self.current_epoch, self.global_step))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = len(self.called)

    def on_load_checkpoint(self, checkpoint):
        self.called.append(("loaded", checkpoint["mine"]))


def test_hooks_come_and_what_they_assign_counts(tmp_path):
    module, made = Hooked(), trainer(tmp_path / "run", max_epochs=2)
    result = made.fit(module, datamodule=data(validation=0.2))
    steps = made.global_step // 2
    assert module.called == [("fit", 0, 0, 2), ("epoch", 1, steps), ("epoch", 2, 2 * steps)]
    assert made.current_epoch == 2
    assert made.callback_metrics["norm"] > 0
    assert made.callback_metrics["val_loss"] == records(result.run_dir, "validation")[-1]["loss"]
    assert [r["loss"] for r in records(result.run_dir, "train")][1] == 0
    again = Hooked()
    trainer(tmp_path / "run").fit(again, data(validation=0.2), ckpt_path="last")
    assert again.called[0][0] == "loaded"
    with pytest.raises(UserError, match=r"self\.trainer is there while"):
        _ = again.trainer


def test_a_module_comes_back_from_its_run(tmp_path):
    module = Net(width=5)
    made = trainer(tmp_path / "run", callbacks=EarlyStopping(monitor="val_loss", patience=9))
    result = made.fit(module, data(validation=0.2))
    outputs = made.predict(module, IMAGES[:7])
    again = Net.load_from_checkpoint(tmp_path / "run")
    assert again.hparams.width == 5
    np.testing.assert_array_equal(Trainer().predict(again, IMAGES[:7]), outputs)
    np.testing.assert_array_equal(
        np.asarray(Net.load_from_checkpoint(result.last_checkpoint)(IMAGES[:7])),
        np.asarray(again(IMAGES[:7])),
    )
    assert made.test(module, (IMAGES, LABELS)).keys() == {"loss", "accuracy"}
    with pytest.raises(UserError, match="other shapes"):
        Net.load_from_checkpoint(tmp_path / "run", width=6)
    loaded = keras.saving.load_model(tmp_path / "run/model.keras", custom_objects={"Net": Net})
    np.testing.assert_allclose(np.asarray(loaded(IMAGES[:7])), outputs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (GAN, {"schedule": "cosine"}, "is for one optimizer"),
        (GAN, {"gradient_clip_val": 1.0}, "global_clipnorm=1.0"),
        (GAN, {"accumulate_grad_batches": 2}, "accumulate_grad_batches is for one"),
        (GAN, {"on_nonfinite": "rollback"}, "rollback' is for one"),
        (GAN, {"callbacks": StochasticWeightAveraging(swa_lrs=1e-3)}, "swa_lrs is the rate of one"),
        (Net, {"label_smoothing": 0.1}, "label_smoothing is for a compiled model"),
        (Net, {"last_batch": "fill"}, "last_batch='fill' is for a compiled model"),
    ],
)
def test_what_a_module_is_not_trained_with(tmp_path, make, options, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path / "run", **options).fit(make(), data())


def test_a_gan_without_validation_step_says_so():
    with pytest.raises(UserError, match=r"no validation_step.*limit_val_batches=0"):
        trainer(barebones=True).fit(GAN(), data(validation=0.2))


def test_a_train_step_of_keras_is_shown_as_a_module():
    class Own(keras.Sequential):
        def train_step(self, data):
            return {}

    model = Own([keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(4)])
    model.compile("adam", "mse")
    with pytest.raises(UserError, match=r"class Own\(fmnist_keras3\.Module\) .*training_step"):
        trainer(barebones=True).fit(model, data())


def test_hooks_of_lightning_that_are_none_here_are_named():
    with pytest.raises(UserError, match="forward"):
        type("Mine", (Module,), {"forward": lambda self, x: x})


def test_inputs_alone_are_the_batch(tmp_path):
    class Alone(Autoencoder):
        def training_step(self, batch):
            return super().training_step((batch,))

    result = trainer(tmp_path / "run", max_epochs=2).fit(
        Alone(), ArrayData(IMAGES, None, batch_size=BATCH)
    )
    assert re.fullmatch("completed", result.status)


@pytest.mark.parametrize("readme", ["README.md", "fmnist_keras3/training/README.md"])
def test_the_module_of_a_readme_trains(tmp_path, monkeypatch, readme):
    text = (Path(__file__).parents[2] / readme).read_text()
    [code] = re.findall(r"```python\n((?:import|from) keras[^`]*\(Module\).*?)```", text, re.DOTALL)
    if readme == "README.md":  # is short, so that it is read
        assert len(code[code.index("class") :].split("\n\n\n")[0].splitlines()) <= 15
    images = RNG.integers(0, 256, (64, 28, 28, 1), np.uint8)
    for image, label in zip(images, LABELS, strict=False):
        image[4 * label : 4 * label + 4] = 255
    few = ArrayData(images, LABELS[:64], test=(images[:9], LABELS[:9]), batch_size=32)
    monkeypatch.setattr("fmnist_keras3.data.fashion.FashionMNIST", lambda **options: few)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    [run] = tmp_path.glob("runs/*")
    losses = [r["train_loss"] for r in records(run, "train")]
    assert losses[-1] < losses[0]
    assert len(losses) == 5


class Views(Module):
    """Sees two views of each image in the training, and one in the validation."""

    def __init__(self):
        super().__init__()
        self.net = keras.Sequential(
            [layers.Flatten(), layers.Dense(3, kernel_initializer=keras.initializers.Ones())]
        )

    def training_step(self, batch):
        one, two = batch[0][:2]
        one, two = (ops.cast(x, "float32") / 255 for x in (one, two))
        self.log("unlike", ops.mean(ops.cast(ops.any(one != two, (1, 2, 3)), "float32")))
        return ops.mean(ops.square(self.net(one) - self.net(two) + 1))

    def validation_step(self, batch):
        self.log("val_loss", ops.mean(self.net(ops.cast(batch[0], "float32"))))

    def predict_step(self, batch):
        return self.net(ops.cast(batch, "float32"))

    def configure_optimizers(self):
        return keras.optimizers.SGD(1e-3)


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
def test_two_views_are_drawn_apart_and_resumed(tmp_path, pipeline):
    more = {"augment": "crop:2,flip", "views": 2, "validation": 0.2}
    whole, made = Views(), trainer(tmp_path / "whole", pipeline=pipeline)
    made.fit(whole, data(**more))
    assert all(0.5 < r["unlike"] <= 1 for r in records(tmp_path / "whole", "train"))
    assert made.predict(whole, IMAGES[:3]).shape == (3, 3)
    trainer(tmp_path / "part", pipeline=pipeline, max_steps=7).fit(Views(), data(**more))
    rest = Views()
    trainer(tmp_path / "part", pipeline=pipeline).fit(rest, data(**more), ckpt_path="last")
    for a, b in zip(whole.get_weights(), rest.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    again = Views.load_from_checkpoint(tmp_path / "part")
    np.testing.assert_array_equal(again.get_weights()[0], rest.get_weights()[0])
    with pytest.raises(UserError, match="views"):
        trainer(tmp_path / "part", max_epochs=9).fit(
            Views(), data(**{**more, "views": 3}), ckpt_path="last"
        )


def test_what_a_predict_could_not_build_is_trained_afterwards(tmp_path):
    class Headed(Views):
        def training_step(self, batch):
            (one, _), _ = batch
            return super().training_step((batch[0], None)) + ops.mean(self.head(self.net(one)))

        def __init__(self):
            super().__init__()
            self.head = layers.Dense(2, kernel_initializer="ones")

    asked, plain = Headed(), Headed()
    assert trainer().predict(asked, IMAGES[:3]).shape == (3, 3)
    for name, module in (("asked", asked), ("plain", plain)):
        options = {"augment": "crop:2", "views": 2, "validation": 0.0}
        trainer(tmp_path / name, limit_val_batches=0).fit(module, data(**options))
    same(asked.get_weights(), plain.get_weights())


def test_views_are_those_of_the_augmentation():
    draws = epoch_plan(
        3, 1, examples=40, batch_size=8, image_shape=(6, 6, 1), augment=CROP, views=2
    ).draws
    alone = epoch_plan(3, 1, examples=40, batch_size=8, image_shape=(6, 6, 1), augment=CROP).draws
    np.testing.assert_array_equal(draws["crop"], alone["crop"])
    assert draws.keys() == {"crop", "crop view 2"}
    assert (draws["crop"] != draws["crop view 2"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0, "augment": "flip"}, "views is 0"),
        ({"views": 2}, "of images that are augmented"),
        ({"views": 2, "augment": "flip,mixup:0.2"}, "not mixed"),
    ],
)
def test_mistaken_views_are_told(options, message):
    with pytest.raises(UserError, match=message):
        data(**options)


def test_a_compiled_model_takes_one_view():
    model = Net().net
    model.build((None, 6, 6, 1))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(UserError, match="views is 2, for the training_step of a Module"):
        trainer(barebones=True).fit(model, data(views=2, augment="flip"))


class Parts(Module):
    """Whose steps call its layers one by one, and `call` does something else."""

    def __init__(self, **told):
        super().__init__()
        initial = keras.initializers.GlorotUniform(seed=4)
        self.told = told
        self.first = keras.Sequential([layers.Flatten(), layers.BatchNormalization()])
        self.drop = layers.Dropout(0.5, seed=1)
        self.last = layers.Dense(4, kernel_initializer=initial)
        self.recall = keras.metrics.F1Score(name="f1")

    def training_step(self, batch):
        x, y = batch
        # A layer that is told not to train tells nothing to the next.
        hidden = self.drop(self.first(ops.cast(x, "float32") / 255, **self.told))
        logits = self.last(hidden)
        self.log("dropped", ops.mean(ops.cast(hidden == 0, "float32")), prog_bar=True)
        self.recall.update_state(ops.one_hot(y, 4), logits)
        entropy = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
        return ops.mean(entropy)

    def configure_optimizers(self):
        return keras.optimizers.SGD(0.0)


@pytest.mark.parametrize("told", [{}, {"training": False}], ids=str)
def test_layers_train_in_training_steps_alone(tmp_path, told, capsys):
    module = Parts(**told)
    console = rich.console.Console(force_terminal=True, width=200)
    bar = RichProgressBar(console=console)
    options = {"callbacks": bar, "enable_progress_bar": True, "max_epochs": 2}
    trainer(tmp_path / "run", **options).fit(module, data(validation=0.2))
    trained, measured = (records(tmp_path / "run", e)[-1] for e in ("train", "validation"))
    assert 0.4 < trained["dropped"] < 0.6
    assert measured["dropped"] < 0.05
    assert {f"f1_{i}" for i in range(4)} <= trained.keys() & measured.keys()
    moving = np.asarray(module.first.layers[1].moving_mean)
    assert (moving == 0).all() == bool(told)
    said = capsys.readouterr().out
    assert re.search(r"train loss \S+ dropped 0\.[45]", said)
    assert re.search(r"validation loss \S+ dropped 0\.0", said)


def test_statistics_of_averages_are_those_of_the_training_step(tmp_path):
    module = Parts()
    trainer(tmp_path / "run", callbacks=EMAWeightAveraging(0.9)).fit(module, data())
    plan = epoch_plan(0, EPOCHS - 1, examples=len(IMAGES), batch_size=BATCH)
    batches = [
        IMAGES[rows[:valid]] / 255 for rows, valid in zip(plan.indices, plan.valid, strict=True)
    ]
    means = np.mean([batch.reshape(len(batch), -1).mean(0) for batch in batches], 0)
    np.testing.assert_allclose(module.first.layers[1].moving_mean, means, atol=0.02)


def test_a_validation_without_a_loss_reports_none(tmp_path):
    class Silent(Net):
        def validation_step(self, batch):
            x, y = batch
            self.accuracy.update_state(y, self(x))

    made = trainer(tmp_path / "run", max_epochs=1)
    made.fit(Silent(), data(validation=0.2))
    [record] = records(tmp_path / "run", "validation")
    assert "loss" not in record
    assert "accuracy" in record
    assert "val_loss" not in made.callback_metrics


def test_two_metrics_of_one_name_are_refused():
    class Twice(Net):
        def __init__(self):
            super().__init__()
            self.one, self.two = keras.metrics.Mean(name="mean"), keras.metrics.Mean(name="mean")

    class Logged(Net):
        def training_step(self, batch):
            loss = super().training_step(batch)
            self.log("accuracy", loss)
            return loss

    for kind, name in ((Twice, "mean"), (Logged, "accuracy")):
        with pytest.raises(UserError, match=f"measures {name} twice"):
            trainer(barebones=True).fit(kind(), data())


def test_what_a_module_has_no_use_for_is_refused():
    with pytest.raises(UserError, match="not compiled: training_step returns the loss"):
        Net().compile("adam", "mse")
    with pytest.raises(UserError, match="needs one optimizer"):
        Tuner(trainer(limit_val_batches=0)).lr_find(GAN(), data())
