"""Averages of the weights: their values, their BatchNormalization, what is measured and saved."""

import keras
import numpy as np
import pytest
from everything import (
    EPOCHS,
    STEPS,
    At,
    arrays,
    data,
    everything_model,
    last,
    terminate,
    trainer,
)
from kept import kept

from fmnist_keras3 import (
    Callback,
    EMAWeightAveraging,
    Lookahead,
    StochasticWeightAveraging,
    UserError,
    load_model,
)
from fmnist_keras3.data.plan import epoch_plan


class Weights(Callback):
    """Notes the trained weights after each step."""

    every_n_train_steps = 1

    def setup(self, fit):
        self.seen = []

    def on_chunk_end(self, fit):
        fit.engine.sync_model()
        self.seen.append([np.array(v.value) for v in fit.model.trainable_variables])


def plain_model():
    """One model in its first state: its engines compile once for all tests of this file."""
    return kept.model(without_averages)


def without_averages(accumulated=None, scaled=False):
    """Without the optimizer's own averages and accumulation, so that all weights move each step."""
    model = everything_model()
    keras.utils.set_random_seed(0)
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=accumulated)
    twin.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return twin


def fit(path, averaging, model=None, *callbacks, **options):
    made = trainer(path, averaging, *callbacks, **options)
    return made.fit(model or plain_model(), data(), ckpt_path=options.pop("ckpt_path", None))


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.array(a), b, atol=1e-6)


def ema(seen, decay, every=1, start=0, warmup=False):
    """The average written out, from the weights after each step."""
    average, updates = None, 0
    for step, weights in enumerate(seen, 1):
        if step % every or step < start:
            continue
        updates += 1
        d = min(decay, updates / (9 + updates)) if warmup else decay
        average = (
            weights
            if average is None
            else [d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)]
        )
    return average


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"use_warmup": False}, {}),
        ({}, {"warmup": True}),
        ({"use_warmup": False, "update_every_n_steps": 3}, {"every": 3}),
        ({"use_warmup": False, "update_starting_at_step": 7}, {"start": 7}),
        ({"use_warmup": False, "update_starting_at_epoch": 2}, {"start": 2 * STEPS}),
    ],
)
def test_an_exponential_average_is_that_of_its_formula(tmp_path, options, expected):
    watch, model = Weights(), plain_model()
    fit(tmp_path / "run", EMAWeightAveraging(0.8, **options), model, watch)
    close([v.value for v in model.trainable_variables], ema(watch.seen, 0.8, **expected))
    raw = load_model(tmp_path / "run/model_raw.keras")
    close([v.value for v in raw.trainable_variables], watch.seen[-1])


@pytest.mark.parametrize("scaled", [False, True])
def test_accumulated_gradients_make_one_update_of_the_average(tmp_path, scaled):
    watch, model = Weights(), without_averages(2, scaled)
    averaging = EMAWeightAveraging(0.8, use_warmup=False)
    fit(tmp_path / "run", averaging, model, watch)
    close([v.value for v in model.trainable_variables], ema(watch.seen, 0.8, every=2))


def test_stochastic_weight_averaging_is_the_mean_of_the_last_epochs(tmp_path):
    watch, model = Weights(), plain_model()
    averaging = StochasticWeightAveraging(swa_lrs=0.005, swa_epoch_start=0.5, annealing_epochs=1)
    result = fit(tmp_path / "run", averaging, model, watch)
    ends = watch.seen[STEPS - 1 :: STEPS][2:]
    mean = [np.mean(parts, 0) for parts in zip(*ends, strict=True)]
    close([v.value for v in model.trainable_variables], mean)
    rates = [r["lr"] for r in result.history if r["event"] == "step"]
    assert rates[2 * STEPS - 1] != pytest.approx(0.005)
    assert rates[3 * STEPS - 1 :] == pytest.approx([0.005] * (STEPS + 1))
    measured = [r for r in result.history if r["event"] == "validation"]
    assert [("averaged_loss" in r) for r in measured] == [False, False, True, True]


class Looked(Weights):
    """Notes the slow weights, too."""

    def on_chunk_end(self, fit):
        super().on_chunk_end(fit)
        self.slow.append([np.array(v.value) for v in fit.engine.averages.weights])

    def setup(self, fit):
        super().setup(fit)
        self.slow = []


@pytest.mark.parametrize("anneal", [False, True])
def test_slow_weights_look_ahead_and_the_others_begin_again_from_them(tmp_path, anneal):
    watch, plain, model = Looked(), Weights(), plain_model()
    first = [np.array(v.value) for v in model.trainable_variables]
    fit(tmp_path / "plain", EMAWeightAveraging(), model, plain)
    fit(tmp_path / "run", Lookahead(3, 0.4, anneal), plain_model(), watch)
    close(watch.seen[1], plain.seen[1])
    alphas = [1 - 0.6 * (step / (EPOCHS * STEPS)) ** 3 if anneal else 0.4 for step in (3, 6)]
    slow = [a + alphas[0] * (b - a) for a, b in zip(first, plain.seen[2], strict=True)]
    for step in (3, 4, 5):  # the last is one more trained step
        close(watch.slow[step - 1], slow)
    close(watch.seen[2], slow)
    assert not np.allclose(watch.seen[3][0], slow[0], atol=1e-6)
    # The sixth step's own weights are not seen: they lie on the line through the slow ones.
    ahead = [
        (b - (1 - alphas[1]) * a) / alphas[1] for a, b in zip(slow, watch.seen[5], strict=True)
    ]
    assert max(np.abs(a - b).max() for a, b in zip(ahead, watch.seen[4], strict=True)) < 0.05
    close([v.value for v in model.trainable_variables], watch.slow[-1])
    close(watch.slow[17], watch.slow[19])  # after the last look-ahead
    raw = load_model(tmp_path / "run/model_raw.keras")
    close([v.value for v in raw.trainable_variables], watch.seen[-1])


def statistics(model):
    norm = model.get_layer("norm")
    return [np.array(norm.moving_mean.value), np.array(norm.moving_variance.value)]


def test_the_average_has_statistics_of_its_own_activations(tmp_path):
    made, plain = data(augment=None), plain_model()
    trainer(tmp_path / "two", EMAWeightAveraging(0.9)).fit(plain, made)
    # The epoch that was trained last.
    plan = epoch_plan(0, EPOCHS - 1, examples=len(made.train), batch_size=32)
    hidden = keras.Model(plain.inputs[0], plain.get_layer("hidden").output)
    batches = [np.array(hidden(made.train.x[rows])) for rows in plan.indices]
    mean, variance = statistics(plain)
    np.testing.assert_allclose(mean, np.mean([b.mean(0) for b in batches], 0), atol=1e-5)
    np.testing.assert_allclose(variance, np.mean([b.var(0) for b in batches], 0), atol=1e-5)
    raw = statistics(load_model(tmp_path / "two/model_raw.keras"))
    assert not np.allclose(raw[0], mean, atol=1e-3)  # a moving mean of the raw weights'


def test_both_are_measured_and_saved(tmp_path):
    model = plain_model()
    made = trainer(tmp_path / "run", EMAWeightAveraging(0.8))
    result = made.fit(model, data())
    record = [r for r in result.history if r["event"] == "validation"][-1]
    for name, prefix in (("model.keras", "averaged_"), ("model_raw.keras", "")):
        found = made.validate(load_model(tmp_path / "run" / name), data())
        for key in ("loss", "accuracy"):
            assert record[prefix + key] == pytest.approx(found[key], rel=1e-5)
    assert record["averaged_loss"] != pytest.approx(record["loss"], rel=1e-4)
    names = {name for name, _ in last(tmp_path / "run").state}
    assert {f"averages/{v.path}" for v in model.trainable_variables} < names
    assert sum("moving" in name for name in names) == 4  # of the weights and of the average


def test_averaging_changes_no_weight_that_is_trained(tmp_path):
    trainer(tmp_path / "plain").fit(plain_model(), data())
    fit(tmp_path / "ema", EMAWeightAveraging(0.8))
    with_averages = [
        pair for pair in last(tmp_path / "ema").state if not pair[0].startswith("averages/")
    ]
    for (name, a), (_, b) in zip(last(tmp_path / "plain").state, with_averages, strict=True):
        assert a.tobytes() == b.tobytes(), name


AVERAGING = {
    "ema": lambda: EMAWeightAveraging(0.8),
    "swa": lambda: StochasticWeightAveraging(0.005, 0.5, 1, "linear"),
    "lookahead": lambda: Lookahead(4, 0.5, True),
}


def train(path, kind, *callbacks, pipeline="resident", **options):
    made = trainer(path, AVERAGING[kind](), *callbacks, val_check_interval=4, pipeline=pipeline)
    model = plain_model()
    result = made.fit(model, data(), **options)
    return result, [np.array(w) for w in model.get_weights()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Of each kind the folder of a run that was never stopped, and the weights of its end."""
    runs = {kind: tmp_path_factory.mktemp("straight") / kind for kind in AVERAGING}
    return {kind: (run, train(run, kind)[1]) for kind, run in runs.items()}


@pytest.mark.parametrize(
    ("kind", "step", "pipeline"),
    [
        *[(kind, step, "resident") for kind in ("ema", "swa") for step in (7, -9, 12, -20)],
        ("ema", 7, "stream"),
        ("swa", -20, "stream"),
        *[("lookahead", step, "resident") for step in (2, 7, -9)],
    ],
)
def test_a_resume_is_exact(tmp_path, straight, kind, step, pipeline):
    run, weights = straight[kind]
    stopped, _ = train(tmp_path / "run", kind, At(step, terminate), pipeline=pipeline)
    assert stopped.status == "interrupted"
    _, resumed = train(tmp_path / "run", kind, pipeline=pipeline, ckpt_path="last")
    for (name, a), (_, b) in zip(last(tmp_path / "run").state, last(run).state, strict=True):
        assert a.tobytes() == b.tobytes(), name
    for a, b in zip(resumed, weights, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EMAWeightAveraging(1.0), "decay is 1.0"),
        (lambda: EMAWeightAveraging(update_every_n_steps=0), "at least 1"),
        (lambda: EMAWeightAveraging(0.9, 1, 3, 1), "not both"),
        (lambda: StochasticWeightAveraging(0.0), "swa_lrs is 0.0"),
        (lambda: StochasticWeightAveraging(0.1, 1.5), "a fraction above 0, at most 1.0"),
        (lambda: StochasticWeightAveraging(0.1, annealing_epochs=-1), "annealing_epochs"),
        (lambda: StochasticWeightAveraging(0.1, annealing_strategy="step"), "cos or linear"),
        (lambda: Lookahead(0), "every_n_steps is 0"),
        (lambda: Lookahead(5, 0.0), "alpha is 0.0"),
        (lambda: Lookahead(5, 1.1), "at most 1"),
    ],
)
def test_values_outside_their_range_are_told(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_second_training_looks_ahead_from_where_the_first_ended(tmp_path):
    model, made = plain_model(), trainer(tmp_path / "a", Lookahead(50, 0.5), max_epochs=1)
    for name in "ab":
        made.run_dir = tmp_path / name
        began = [np.array(v.value) for v in model.trainable_variables]
        made.fit(model, data())
        close([v.value for v in made.programs.engine.averages.weights], began)


def test_a_start_after_the_end_is_told(tmp_path):
    with pytest.raises(UserError, match="begins after epoch 9, but there are 4"):
        fit(tmp_path / "run", StochasticWeightAveraging(0.1, 9))


def test_two_averages_are_refused(tmp_path):
    with pytest.raises(UserError, match="Give one"):
        trainer(tmp_path / "run", EMAWeightAveraging(), StochasticWeightAveraging())


def test_a_run_without_averages_cannot_go_on_with_them(tmp_path):
    trainer(tmp_path / "run", max_epochs=1).fit(plain_model(), data())
    with pytest.raises(UserError, match="averaging of the first run"):
        trainer(tmp_path / "run", EMAWeightAveraging()).fit(plain_model(), data(), ckpt_path="last")


def test_a_model_without_normalisation_needs_no_statistics(tmp_path):
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = trainer(tmp_path / "run", EMAWeightAveraging(), label_smoothing=0.0).fit(
        model, arrays()
    )
    assert result.history[-1]["averaged_loss"] > 0
