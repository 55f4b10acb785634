"""What a user may write, as a type checker sees it; it is checked and never run.

Each ``pyright: ignore`` marks a mistake that must be seen: one that is not needed is an error.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, assert_type

import keras
import numpy as np

from fmnist_keras3 import (
    ArrayData,
    Callback,
    CSVLogger,
    DataModule,
    DeviceStatsMonitor,
    Diverged,
    EarlyStopping,
    EMAWeightAveraging,
    FashionMNIST,
    FitResult,
    GradientNorm,
    History,
    LearningRateMonitor,
    Logger,
    MLFlowLogger,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    Run,
    SessionView,
    StochasticWeightAveraging,
    TensorBoardLogger,
    ThroughputMonitor,
    Timer,
    TrackioLogger,
    Trainer,
    Tuner,
    UserError,
    WandbLogger,
    WeightAveraging,
    build_model,
    export,
    load_model,
    load_run,
    seed_everything,
)

seed_everything(42)
model = build_model("lenet", dropout=0.2, l2=1e-4, seed=0)
x, y = np.zeros((100, 28, 28, 1), np.uint8), np.zeros(100, np.int32)


class Doubled(DataModule):
    def __init__(self, factor: int, batch_size: int = 32) -> None:
        super().__init__(batch_size=batch_size, augment="flip,crop", validation=0.2)
        self.factor = factor

    def load(self):
        return ArrayData(np.repeat(x, self.factor, 0), np.repeat(y, self.factor, 0)).load()


class Print(Callback):
    every_n_train_steps = 10

    def __init__(self, what: str) -> None:
        self.what, self.count = what, 0

    def on_chunk_end(self, fit):
        self.count += 1
        if fit.logs["loss"] > 10:
            fit.stop(f"{self.what} after {self.count} chunks")

    def on_train_epoch_end(self, fit: SessionView) -> None:
        assert_type(fit.logs, dict[str, float])
        print(fit.position.epoch, fit.logs["val_loss"])
        fit.max_epochs = 3  # pyright: ignore[reportAttributeAccessIssue]

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Lines(Logger):
    def begin(self, run_dir: Path) -> None:
        self.path = run_dir / "lines.txt"

    def log(self, record: dict[str, Any]) -> None:
        self.path.write_text(f"{record['event']} {record['step']}")

    def finalize(self, status: str) -> None:
        print(self.path, status)


class LastSteps(WeightAveraging):
    def shares(self, fit, steps: np.ndarray) -> np.ndarray:
        return np.where(steps > 1000, 1 / (steps - 999), 0).astype(np.float32)


stop = EarlyStopping("val_accuracy", patience=3, mode="max", stopping_threshold=0.93, verbose=True)
checkpoints = ModelCheckpoint(
    "val_loss", save_top_k=2, filename="{epoch}-{val_loss:.2f}", train_time_interval=timedelta(0, 9)
)
timer = Timer("00:12:00:00")
trainer = Trainer(
    max_epochs=5,
    min_epochs=1,
    max_steps=-1,
    max_time={"hours": 12},
    schedule="cosine",
    warmup=0.5,
    label_smoothing=0.1,
    accumulate_grad_batches=4,
    gradient_clip_val=0.5,
    gradient_clip_algorithm="value",
    precision="bf16-mixed",
    limit_train_batches=0.25,
    limit_val_batches=10,
    val_check_interval=100,
    num_sanity_val_steps=-1,
    deterministic="warn",
    on_nonfinite="rollback",
    seed=1,
    callbacks=[stop, checkpoints, timer, Print("loss"), keras.callbacks.EarlyStopping()],
    logger=["csv", TensorBoardLogger("tb"), Lines()],
    profiler="simple",
    run_dir=Path("runs/mine"),
)
both = [LearningRateMonitor("step", log_momentum=True), GradientNorm(per_variable=True)]
Trainer(callbacks=both, logger=CSVLogger("logs", name="mine"))
Trainer(callbacks=ThroughputMonitor(available_flops=989e12), logger=True)
Trainer(callbacks=[EMAWeightAveraging(0.999), DeviceStatsMonitor(cpu_stats=True)], logger=False)
Trainer(callbacks=(StochasticWeightAveraging(swa_lrs=1e-3), ModelSummary(-1), RichProgressBar(10)))
Trainer(logger=[MLFlowLogger("mine"), WandbLogger(project="mine"), TrackioLogger("mine")])

try:
    result = trainer.fit(model, FashionMNIST(batch_size=128), hparams={"layers": [120, 84]})
except Diverged as error:
    raise SystemExit(f"step {error.step}") from error
except UserError as error:
    raise SystemExit(str(error)) from error
trainer.fit(model, (x, y), (x, y), ckpt_path="last")
trainer.fit(model, Doubled(2), ckpt_path=result.last_checkpoint)

assert_type(result, FitResult)
assert_type(result.run_dir, Path | None)
assert_type(result.history, History)
assert_type(result.history.column("val_loss"), list[float])
assert_type(trainer.test(model, Doubled(2)), dict[str, float])
assert_type(trainer.validate(model, (x, y), ckpt_path="best")["loss"], float)
assert_type(checkpoints.best_model_path, Path | None)
assert_type(timer.time_elapsed("train"), float)
best: int = trainer.predict(model, x).argmax(1)[0]
print(result.summary["validation_accuracy"], result.history.to_pandas().describe())

run = load_run("runs/mine", "best")
assert_type(export(run, "model.onnx", "onnx", outputs="logits").difference, float)
assert_type(run, Run)
assert_type(run.config, dict[str, Any])
run.model.predict(x)
load_model("runs/mine/model.keras").summary()
load_run(result.run_dir or "runs/mine").history.plot("curves.png")

tuner = Tuner(trainer)
finder = tuner.lr_find(model, FashionMNIST(), max_lr=0.1, update_attr=True)
assert_type(finder.suggestion(), float | None)
assert_type(finder.results["lr"], list[float])
assert_type(tuner.scale_batch_size(model, (x, y), mode="binsearch").largest, int | None)

# Mistakes
Trainer(max_epochs="5")  # pyright: ignore[reportArgumentType]
Trainer(max_epoch=5)  # pyright: ignore[reportCallIssue]
Trainer(accelerator="gpu")  # pyright: ignore[reportCallIssue]
Trainer(5, 1)  # pyright: ignore[reportCallIssue]
Trainer(callbacks=["early_stopping"])  # pyright: ignore[reportArgumentType]
Trainer(callbacks=EarlyStopping)  # pyright: ignore[reportArgumentType]
Trainer(logger=3)  # pyright: ignore[reportArgumentType]
trainer.fit(model)  # pyright: ignore[reportCallIssue]
trainer.fit(model, datamodule=FashionMNIST())  # pyright: ignore[reportCallIssue]
trainer.fit(model, (x, y), ckpt_path=3)  # pyright: ignore[reportArgumentType]
trainer.tset(model, (x, y))  # pyright: ignore[reportAttributeAccessIssue]
print(result.histories)  # pyright: ignore[reportAttributeAccessIssue]
print(result.run_dir.name)  # pyright: ignore[reportOptionalMemberAccess]
result.status = "done"  # pyright: ignore[reportAttributeAccessIssue]
build_model("lenet", 0.5)  # pyright: ignore[reportCallIssue]
EarlyStopping(patience="three")  # pyright: ignore[reportArgumentType]
EarlyStopping("val_loss", 3, 0.0, "min", True)  # pyright: ignore[reportCallIssue]
ModelCheckpoint(dirpath="a")  # pyright: ignore[reportCallIssue]
CSVLogger(3)  # pyright: ignore[reportArgumentType]
Timer([1])  # pyright: ignore[reportArgumentType]
seed_everything("42")  # pyright: ignore[reportArgumentType]
load_run(3)  # pyright: ignore[reportArgumentType]
tuner.lr_find(model, (x, y), num_training="many")  # pyright: ignore[reportArgumentType]
