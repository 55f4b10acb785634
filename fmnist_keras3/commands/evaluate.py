"""`fmnist evaluate`: what a run's model, or any `.keras` file, does on a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmnist_keras3 import runtime
from fmnist_keras3.ground import screen
from fmnist_keras3.ground.errors import UserError

if TYPE_CHECKING:
    from fmnist_keras3.evaluation.metrics import Evaluation


PIXELS = ("image_size", "color", "resize", "on_bad_file", "cache")


def evaluate(
    target: str,
    split: str,
    data: str | None,
    data_dir: str | None,
    batch: int,
    tta: str | None = None,
    calibrate: bool = False,
    spoil: bool = False,
    **pixels: Any,
) -> int:
    """Print accuracy, loss and the per-class table; a run's own data settings are the default.

    ``pixels`` are the settings of the images' size and colour. With ``tta`` a second line has the
    accuracy and loss with test-time augmentation. ``calibrate``: fit a temperature on the
    validation split and store it with the run. ``spoil``: measure the accuracy on spoiled images,
    and store it with the run, if it is one.
    """

    runtime.prepare()
    runtime.import_keras_alone()
    path = Path(target)
    if not path.exists():
        raise UserError(f"{target} does not exist. Give a run directory or a .keras file.")
    from fmnist_keras3.runs.load import load_model, load_run

    if calibrate and (split != "test" or not path.is_dir()):
        raise UserError(
            "--temperature is fitted on the validation split, measured on the test split, and "
            "stored with a run. Give a run directory, and leave --split out."
        )
    config = load_run(path).config if path.is_dir() else {}
    config |= config.get("data_module", {})  # of a run that was started from Python
    config |= pixels
    from fmnist_keras3.data.fashion import FashionMNIST

    module = FashionMNIST(
        batch_size=1,  # which suits any number of training examples
        validation=config.get("validation", 0.1),
        seed=config.get("seed", 0),
        data=data or ("auto" if data_dir else config.get("data", "auto")),
        data_dir=data_dir or config.get("data_dir"),
        **{name: config[name] for name in PIXELS if name in config},
    ).setup()
    module.batch_size = batch
    examples = module.test if split == "test" else module.validation
    if examples is None:
        raise UserError(f"There is no {split} split (validation is {module.validation_fraction}).")
    model = load_model(path)
    takes = getattr(model, "input_shape", None)
    if takes is None or tuple(takes[1:]) != examples.x.shape[1:]:
        raise UserError(
            f"The model takes input of shape {takes}; the images of {module.source.name} have "
            f"{examples.x.shape[1:]}."
        )
    gives = model.compute_output_shape(takes)
    if not isinstance(gives, tuple) or len(gives) != 2:
        raise UserError(f"The model returns {gives}; it must be a row of logits for each image.")
    from fmnist_keras3.evaluation import report, robustness, temperature
    from fmnist_keras3.evaluation.metrics import (
        are_probabilities,
        as_logits,
        evaluate_logits,
        per_class_table,
    )
    from fmnist_keras3.ground.files import write_json
    from fmnist_keras3.runs import rundir
    from fmnist_keras3.runs.lock import locked
    from fmnist_keras3.training.trainer import Trainer

    trainer = Trainer(enable_progress_bar=False)
    outputs = trainer.predict(model, examples.x)
    logits = as_logits(outputs)
    if logits.shape[1] != len(module.source.class_names):
        raise UserError(
            f"The model tells {logits.shape[1]} classes apart; {module.source.name} has "
            f"{len(module.source.class_names)}."
        )
    evaluation = evaluate_logits(examples.y, logits, module.source.class_names)
    console = screen.console()
    console.print(per_class_table(evaluation))
    marker = " (GENERATED GARMENTS)" if module.source.name == "synthetic" else ""
    about = f"{module.source.name}{marker}, {split} split, {len(examples):,} images: "
    console.print(_scores(about, evaluation), soft_wrap=True)
    if tta is not None:
        mean = as_logits(trainer.predict(model, examples.x, tta=tta))
        with_views = evaluate_logits(examples.y, mean, module.source.class_names)
        console.print(_scores(f"with test-time augmentation {tta}: ", with_views), soft_wrap=True)
    if spoil:
        if examples.x.dtype != "uint8" or examples.x.ndim != 4:
            raise UserError("--robustness wants images of bytes, [N, height, width, channels].")
        found = robustness.measure(lambda x: trainer.predict(model, x), examples.x, examples.y)
        console.print(robustness.table(found))
        if path.is_dir() and split == "test":
            with locked(path):
                write_json(path / rundir.ROBUSTNESS, found)
                report.build(path)
    if calibrate:
        if are_probabilities(outputs):
            raise UserError("The model returns probabilities; --temperature wants logits.")
        if module.validation is None:
            raise UserError(
                "--temperature wants a validation split, and the run has none. Train one with "
                "fmnist train --validation 0.1"
            )
        held_out = module.validation
        warmth = temperature.fit(held_out.y, as_logits(trainer.predict(model, held_out.x)))
        after = evaluate_logits(examples.y, logits / warmth, module.source.class_names)
        with locked(path):
            temperature.write(path, model, warmth, len(held_out), evaluation, after)
            report.build(path)
        errors = (f"{100 * e.calibration_error:.2f} %" for e in (evaluation, after))
        line = (
            f"{warmth:.3f}, fitted on {len(held_out):,} validation images: calibration error "
            f"{' -> '.join(errors)}, loss {evaluation.loss:.4f} -> {after.loss:.4f}; stored in "
            f"{path / rundir.TEMPERATURE}, for predict and export"
        )
        console.print(screen.styled(("temperature ", "bold"), line), soft_wrap=True)
    return 0


def _scores(about: str, evaluation: Evaluation) -> Any:
    accuracy, loss = f"{evaluation.accuracy:.4f}", f"{evaluation.loss:.4f}"
    return screen.styled(about, "accuracy ", (accuracy, "bold"), ", loss ", (loss, "bold"))
