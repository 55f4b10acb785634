"""Several devices share each batch: the run is the one of a single device, to rounding."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fmnist_keras3.ground.errors import UserError

STEPS, BATCH, EXAMPLES = 6, 8, 46  # the last batch has 6 examples, which 4 devices cannot share


def examples(count=EXAMPLES, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(count, dtype=np.int32) % 3
    x = rng.integers(0, 100, (count, 12, 12, 1), dtype=np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * label : 4 * label + 3] += 120
    return x, y


def small_model(kind):
    """Build "plain", whose short last batch is filled up, or "normalized", or a "module"."""
    import keras

    from fmnist_keras3 import Module
    from fmnist_keras3.layers.initial import draw_weights

    class Own(Module):
        def __init__(self):
            super().__init__()
            self.net = model
            self.entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def call(self, x, training=False):
            return self.net(x, training=training)

        def training_step(self, batch):
            x, y = batch
            loss = self.entropy(y, self(x, training=True))
            self.log("loss", loss)
            return loss

        def validation_step(self, batch):
            x, y = batch
            self.log("loss", self.entropy(y, self(x)))

        def configure_optimizers(self):
            return keras.optimizers.Adam(3e-3)

    from fmnist_keras3.layers.fast import BatchNormalization, Conv2D, Dropout, MaxPooling2D

    parts = [
        keras.Input((12, 12, 1)),
        keras.layers.Rescaling(1 / 255),
        Conv2D(4, 3, use_bias=False),
        *[BatchNormalization()] * (kind == "normalized"),
        keras.layers.Activation("tanh"),  # without corners, at which rounding would decide
        MaxPooling2D(2),
        keras.layers.Flatten(),
        Dropout(0.2, seed=1),
        keras.layers.Dense(3, kernel_regularizer="l2"),
    ]
    model = keras.Sequential(parts, name=kind)
    draw_weights(model, 0)
    if kind == "module":
        return Own()
    model.compile(
        keras.optimizers.AdamW(3e-3, weight_decay=0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def trained(kind, devices, folder=None, ckpt_path=None, **options):
    """Train; return the losses of all steps, validation, test, prediction, and what it ran on."""
    from fmnist_keras3 import ArrayData, EMAWeightAveraging, Trainer

    with tempfile.TemporaryDirectory() as temporary:
        augment = options.pop("augment", "crop:1,rotate,mixup:0.4" if kind != "module" else "crop")
        average = options.pop("ema", kind != "module")
        run = Path(folder or f"{temporary}/run")
        trainer = Trainer(
            2,
            devices=devices,
            run_dir=run,
            log_every_n_steps=1,
            enable_progress_bar=False,
            callbacks=[EMAWeightAveraging(0.8)] * average,
            **options,
        )
        model = small_model(kind)
        data = ArrayData(*examples(), validation=examples(21, 1), batch_size=BATCH, augment=augment)
        result = trainer.fit(model, data, ckpt_path=ckpt_path)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        numbers = [record["loss"] for record in records]
        numbers += [r["accuracy"] for r in records if "accuracy" in r]
        if kind != "module":
            tested = trainer.test(model, examples(13, 2))
            numbers += [tested["loss"], tested["accuracy"]]
        numbers += np.ravel(trainer.predict(model, examples(5, 3)[0])).tolist()
        numbers += np.concatenate([np.ravel(w) for w in model.get_weights()]).tolist()
        summary = result.summary
        assert ("images_per_second_per_device" in summary) == (summary["devices"] > 1)
        return numbers, summary["devices"]


SPLIT = 8  # values from which on the tests split a weight

CASES = {
    "filled": ("plain", {"gradient_clip_val": 0.5, "label_smoothing": 0.1}),
    "true size": ("normalized", {"accumulate_grad_batches": 2}),
    "streamed": ("normalized", {"pipeline": "stream", "augment": "none", "ema": False}),
    "module": ("module", {}),
    "split": ("plain", {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "shard": "fsdp"}),
    "split module": ("module", {"shard": "fsdp"}),
}


def test_a_run_on_several_devices_is_that_of_one(on_four_devices):
    check_like_one(on_four_devices, "true size", (4,))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_any_run_on_several_devices_is_that_of_one(on_four_devices, case):
    check_like_one(on_four_devices, case, (2, 4))


def check_like_one(on_four_devices, case, numbers):
    kind, options = CASES[case]
    alone, count = on_four_devices(several, kind, 1, options)
    assert count == 1
    for devices in numbers:
        shared, count = on_four_devices(several, kind, devices, options)
        assert count == devices
        np.testing.assert_allclose(shared, alone, rtol=1e-5, atol=1e-6)


def several(kind, devices, options):
    from fmnist_keras3.engines import mesh

    mesh.SPLIT_FROM = SPLIT  # of this process, for all its tests
    alone = {name: value for name, value in options.items() if name != "shard"}
    return trained(kind, devices, **(alone if devices == 1 else options))


@pytest.mark.slow
def test_in_bf16_it_is_that_of_one_to_its_precision(on_four_devices):
    options = {"precision": "bf16-mixed", "ema": False, "max_steps": 4}
    alone, _ = on_four_devices(several, "plain", 1, options)
    shared, _ = on_four_devices(several, "plain", 2, options)
    np.testing.assert_allclose(shared[:4], alone[:4], rtol=2e-2)


def parts_of_a_chunk(shard=None):
    """Return how many rows of a batch lie on each device, and what share of each array of state."""
    from fmnist_keras3.engines import mesh
    from fmnist_keras3.engines.chunk import StepPlan

    mesh.SPLIT_FROM = SPLIT
    from fmnist_keras3.data.augment import parse_augment
    from fmnist_keras3.data.dataset import Split
    from fmnist_keras3.data.plan import epoch_plan
    from fmnist_keras3.engines import make_engine
    from fmnist_keras3.training.feeds import ResidentFeed

    split = Split(*examples())
    augment = parse_augment("crop:1,cutmix")
    engine = make_engine(
        small_model("plain"),
        example=split.take(slice(1)),
        chunk_steps=3,
        devices=4,
        shard=shard,
        averaging=True,
    )
    feed = ResidentFeed(split, engine, augment, training=True)
    shape = split.image_shape
    plan = epoch_plan(
        0, 0, examples=len(split), batch_size=BATCH, image_shape=shape, augment=augment
    )
    feed.open(plan)
    chunk = feed.take(3)
    arrays = [chunk.x, chunk.y, *chunk.mix]
    rows = [[part.data.shape[1] for part in array.addressable_shards] for array in arrays]
    before = shares(engine._state)
    zeros = np.zeros(3, np.float32)
    engine.train(chunk, StepPlan(zeros, np.arange(3, dtype=np.int32), shares=zeros))
    assert shares(engine._state) == before
    return rows, before


def shares(state):
    """The size of each array, and of the part of it that the first device holds."""
    return [[v.size, v.addressable_data(0).size] for values in state for v in values]


def test_each_device_has_its_part_of_each_batch_and_all_weights(on_four_devices):
    rows, state = on_four_devices(parts_of_a_chunk)
    assert rows == [[BATCH // 4] * 4] * 4
    assert all(part == size for size, part in state)


def test_each_device_has_its_part_of_each_large_weight_too(on_four_devices):
    """Of the two kernels, whose longest axes are 4 and 100, their averages and Adam's moments."""
    rows, state = on_four_devices(parts_of_a_chunk, "fsdp")
    assert rows == [[BATCH // 4] * 4] * 4
    split = sorted(size for size, part in state if part == size // 4 and size >= SPLIT)
    assert split == [36] * 4 + [300] * 4
    assert all(part == size for size, part in state if size < SPLIT)


def stopped_and_resumed(before, after, *shards):
    """Train three steps on some devices and the rest on others; return what `trained` does."""
    from fmnist_keras3.engines import mesh

    mesh.SPLIT_FROM = SPLIT
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        trained("plain", before, run, max_steps=3, shard=shards[0])
        return trained("plain", after, run, ckpt_path="last", shard=shards[1])


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(on_four_devices):
    straight, _ = on_four_devices(several, "plain", 1, {})
    cases = ((4, 1, None, None), (1, 2, None, None), (4, 1, "fsdp", None), (2, 4, None, "fsdp"))
    for before, after, *shards in cases:
        resumed, count = on_four_devices(stopped_and_resumed, before, after, *shards)
        assert count == after
        weights = slice(-150, None)  # the records of a run that was stopped amid an epoch are more
        np.testing.assert_allclose(resumed[weights], straight[weights], rtol=1e-5, atol=1e-6)


def refused(options, batch_size, distribution):
    """Return the message of a refusal, and whether anything was left behind."""
    import keras

    from fmnist_keras3 import ArrayData, Trainer
    from fmnist_keras3.engines import make_engine

    if distribution:
        keras.distribution.set_distribution(_distribution(distribution))
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(1, run_dir=f"{folder}/run", enable_progress_bar=False, **options)
            model = small_model("plain")
            try:
                if options.get("devices", "auto") == "auto":  # nothing to refuse but distributions
                    return f"{make_engine(model, **options).device.count} devices", False
                trainer.fit(model, ArrayData(*examples(), batch_size=batch_size))
            except UserError as error:
                return str(error), Path(f"{folder}/run").exists()
            return "trained", False
    finally:
        keras.distribution.set_distribution(None)


def _distribution(kind):
    import keras

    if kind == "data":
        return keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"])
    mesh = keras.distribution.DeviceMesh((2, 2), ["batch", "model"])
    layout = keras.distribution.LayoutMap(mesh)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


@pytest.mark.parametrize(
    ("options", "batch_size", "distribution", "words"),
    [
        ({"devices": 4}, 10, None, "batch_size is 10, which 4 devices cannot share equally. Type "
         "--batch_size 8, or --devices 2."),
        ({"devices": 4}, 3, None, "--batch_size 4, or --devices 3."),
        ({"devices": 5}, 10, None, "devices is 5, but JAX sees 4 (cpu) here."),
        ({"devices": "auto"}, 12, None, "4 devices"),
        ({}, 10, "data", "2 devices"),
        ({"devices": 1, "shard": "fsdp"}, 12, None, "shard=fsdp is for several devices."),
        ({"devices": 4}, 12, "data", "keras.distribution was set to 2 devices"),
        ({}, 12, "model", "keras.distribution is a ModelParallel, which may split the weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused_and_a_distribution_is_heeded(
    on_four_devices, options, batch_size, distribution, words
):
    message, left = on_four_devices(refused, options, batch_size, distribution)
    assert words in message
    assert not left


def split_by_many_processes():
    """Return the message for weights that two processes were to split."""
    import jax

    from fmnist_keras3.engines import make_engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(UserError) as caught:
            make_engine(small_model("plain"), devices=2, shard="fsdp")
    return str(caught.value)


def test_weights_are_split_within_a_process_only(on_four_devices):
    message = on_four_devices(split_by_many_processes)
    assert "shard=fsdp is for the devices of one process" in message


@pytest.mark.parametrize("value", [0, -1, "all", 1.5, "2,3"])
def test_devices_are_a_number_or_auto(value):
    from fmnist_keras3 import Trainer

    with pytest.raises(UserError, match=r"devices is .* it must be a number, at least 1, or auto"):
        Trainer(devices=value)


def test_tensorflow_trains_on_one_device(backend):
    if backend == "jax":
        pytest.skip("of TensorFlow")
    message, left = refused({"devices": 2}, 12, None)
    assert "on TensorFlow it is 1. tf.distribute cannot compile the loop over replicas" in message
    assert not left
    message, left = refused({"devices": 1, "shard": "fsdp"}, 12, None)
    assert "on TensorFlow one device holds all weights" in message
    assert not left


# Every family, over 100 steps in float64: in float32 the roundings of batch normalisation grow
# until they decide on which side of a corner a number lies, on one device too (docs/traps.md).
# --junitxml=FILE keeps how far they are apart.

FAMILIES = {
    "lenet": "lenet",
    "baseline": "baseline",
    "cnn": "cnn",
    "airnet": "airnet:widths=8-16",
    "resnet": "resnet:depth=8",
    "wrn": "wrn:depth=10,width=1",
}


def losses_of(name, steps, devices):
    """Return the losses and accuracies of a training in 64 bits, and what its averages have."""
    import keras
    from float64 import in_float64

    from fmnist_keras3 import build_model

    with in_float64():
        made = build_model(name, seed=0, dropout=0.2)
        config = json.dumps(made.get_config())  # the last layer is float32 by name
        model = keras.Model.from_config(json.loads(config.replace('"float32"', '"float64"')))
        model.set_weights(made.get_weights())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
        assert {v.dtype for v in model.trainable_variables} == {"float64"}
        return with_everything(model, steps, devices)


def losses_in_bf16(name, steps, devices):
    """Return the same of a training in bf16-mixed."""
    import keras

    from fmnist_keras3 import build_model

    model = build_model(name, seed=0, dropout=0.2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, metrics=["accuracy"])
    return with_everything(model, steps, devices, precision="bf16-mixed")


def with_everything(model, steps, devices, precision=None):
    """Train with all augmentation, clipping, accumulation and averages."""
    from fmnist_keras3 import ArrayData, EMAWeightAveraging, Trainer

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            devices=devices,
            precision=precision,
            run_dir=f"{folder}/run",
            log_every_n_steps=1,
            gradient_clip_val=1.0,
            accumulate_grad_batches=2,
            enable_progress_bar=False,
            callbacks=[EMAWeightAveraging(0.9)],
        )
        augment = "altflip,crop:1,rotate,brightness,contrast,erase,cutout,mixup:0.2"
        y = (np.arange(200) % 10).astype(np.int32)
        data = ArrayData(x, y, batch_size=8, augment=augment, validation=0.1)
        assert trainer.fit(model, data).summary["devices"] == devices
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r[k] for r in records for k in ("loss", "averaged_loss", "accuracy") if k in r]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_alike_on_several_devices(on_four_devices, family, record_property):
    alone, *shared = (on_four_devices(losses_of, FAMILIES[family], 100, n) for n in (1, 2, 4))
    assert len(alone) > 100
    for devices, losses in zip((2, 4), shared, strict=True):
        apart = np.abs(np.subtract(losses, alone) / np.maximum(np.abs(alone), 1e-12)).max()
        record_property(f"{devices} devices", f"{apart:.1e}")
        np.testing.assert_allclose(losses, alone, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_bf16_is_that_of_one_to_its_precision(
    on_four_devices, family, record_property
):
    steps = 5 if family in ("resnet", "wrn") else 20
    runs = (on_four_devices(losses_in_bf16, FAMILIES[family], steps, n) for n in (1, 2, 4))
    alone, *shared = runs
    losses = [i for i, value in enumerate(alone) if value > 1.5]  # accuracies jump by examples
    assert len(losses) > steps
    for devices, values in zip((2, 4), shared, strict=True):
        apart = np.abs(np.take(values, losses) / np.take(alone, losses) - 1).max()
        record_property(f"{devices} devices", f"{apart:.1e}")
        assert apart < 2e-2
