"""A `tf.data.Dataset` that never ends, or does not fit: in its own order, from any place on."""

from types import SimpleNamespace

import numpy as np
import pytest
from kept import kept
from written import examples

from fmnist_keras3 import Trainer, Tuner, UserError, build_model
from fmnist_keras3.data import given
from fmnist_keras3.data.plan import epoch_plan
from fmnist_keras3.runtime import import_tensorflow_for_data
from fmnist_keras3.training.passing_feed import PassingFeed

X, Y, X_TEST, Y_TEST = examples()
Y = Y.astype(np.int32)
STEPS, BATCH = 5, 32  # 160 of 200 examples, so that an epoch begins amid a pass


@pytest.fixture(scope="module", autouse=True)
def shared(compiled_once):
    """Models and their engines are made once."""


@pytest.fixture(scope="module")
def tf():
    return import_tensorflow_for_data()


def endless(tf, x=X, y=Y):
    return tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(BATCH)


def trainer(path=None, **options):
    where = {"barebones": True} if path is None else {"run_dir": path}
    options = {"max_epochs": 3, "limit_train_batches": STEPS, **where, **options}
    return Trainer(enable_progress_bar=False, **options)


def weights(model):
    return [w.tobytes() for w in model.get_weights()]


@pytest.fixture
def seen(monkeypatch):
    """The labels of all batches that were taken."""
    labels, original = [], PassingFeed.take

    def watched(self, count):
        chunk = original(self, count)
        labels.extend(np.asarray(chunk.y)[:count].reshape(-1).tolist())
        return chunk

    monkeypatch.setattr(PassingFeed, "take", watched)
    return labels


def test_the_order_is_the_datasets_own(tf, seen):
    """Over the end of a pass, and from epoch to epoch."""
    model = kept.model(build_model, "lenet")
    result = trainer(max_epochs=2).fit(model, endless(tf))
    order = np.arange(2 * STEPS * BATCH) % len(Y)
    assert seen[-len(order) :] == Y[order].tolist()
    assert result.summary["pipeline"] == "dataset"
    assert "streamed in its own order, 5 batches an epoch" in result.summary["dataset"]["note"]
    assert result.summary["dataset"]["validation"] == 0


@pytest.mark.parametrize("step", [2, 5, 8])
def test_a_resume_goes_on_at_the_place(tf, tmp_path, step):
    straight = kept.model(build_model, "lenet")
    trainer(tmp_path / "straight").fit(straight, endless(tf), validation_data=(X_TEST, Y_TEST))
    expected = weights(straight)
    options = {"validation_data": (X_TEST, Y_TEST)}
    model = kept.model(build_model, "lenet")
    trainer(tmp_path / "run", max_steps=step).fit(model, endless(tf), **options)
    model = kept.model(build_model, "lenet")
    again = trainer(tmp_path / "run")
    result = again.fit(model, endless(tf), ckpt_path="last", **options)
    assert (result.summary["steps"], weights(model)) == (3 * STEPS, expected)


def test_a_search_takes_the_batches_in_that_order(tf, seen):
    model = kept.model(build_model, "lenet")
    Tuner(trainer()).lr_find(model, endless(tf), num_training=2 * STEPS, early_stop_threshold=None)
    order = np.arange(2 * STEPS * BATCH) % len(Y)
    assert seen == Y[order].tolist()
    seen.clear()
    found = Tuner(trainer()).scale_batch_size(model, endless(tf), max_val=4, steps_per_trial=2)
    assert [result["batch_size"] for result in found.results] == [2, 4]
    assert seen[:6] == Y[[0, 1, 0, 1, 2, 3]].tolist()  # one step to compile, then two


def test_another_dataset_is_no_resume(tf, tmp_path):
    model = kept.model(build_model, "lenet")
    trainer(tmp_path / "run", max_steps=2).fit(model, endless(tf))
    with pytest.raises(UserError, match="sha256"):
        trainer(tmp_path / "run").fit(model, endless(tf, X + 1), ckpt_path="last")


def test_what_does_not_fit_is_streamed_where_an_epoch_is_given(tf, monkeypatch):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
    monkeypatch.setattr(given.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    module = given.as_datamodule(dataset, steps=3)
    assert (len(module.train), module.train.in_memory) == (3 * BATCH, False)
    with pytest.raises(UserError, match=r"more than half .* limit_train_batches=N"):
        given.as_datamodule(dataset)
    # One by one, and of known length: an epoch is a pass.
    module = given.as_datamodule(tf.data.Dataset.from_tensor_slices((X, Y)))
    assert len(module.train) == 200


def test_one_of_unknown_length_goes_on_where_it_was(tf, monkeypatch):
    def generate():
        for i in range(100):
            yield X[i % 200], np.int32(i % 10)

    signature = (tf.TensorSpec(X.shape[1:], tf.uint8), tf.TensorSpec((), tf.int32))
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).batch(16)
    monkeypatch.setattr(given, "MAX_EXAMPLES", 50)
    with pytest.raises(UserError, match=r"has not ended.*limit_train_batches=N"):
        given.as_datamodule(dataset)
    module = given.as_datamodule(dataset, steps=4)
    assert (len(module.train), module.batch_size) == (64, 16)
    assert module.train.read(slice(0, 60)).y.tolist() == [i % 10 for i in range(60)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limit_train_batches": None}, "never ends"),
        ({"pipeline": "resident"}, "streamed, as it does not fit"),
        ({"validation": 0.2}, "Give a dataset or arrays"),
        ({"overfit_batches": 2}, "the same examples again and again"),
    ],
)
def test_what_a_stream_cannot_do_is_told(tf, options, words):
    validation = options.pop("validation", None)
    model = kept.model(build_model, "lenet")
    with pytest.raises(UserError, match=words):
        trainer(**options).fit(model, endless(tf), validation_data=validation)


def test_a_dataset_that_shuffles_is_told_to_be_no_repeat(tf):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).repeat().shuffle(100).batch(BATCH)
    note = given.as_datamodule(dataset, steps=STEPS).source.note
    assert "no run on it can be repeated" in note


def test_the_plan_of_an_own_order():
    plan = epoch_plan(0, 3, examples=10, batch_size=4, first=30)
    assert plan.indices.tolist() == [[30, 31, 32, 33], [34, 35, 36, 37], [38, 39, 38, 39]]
    assert plan.valid.tolist() == [4, 4, 2]
