"""What users of PyTorch Lightning and Keras may type that is not here, and what to type instead."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from fmnist_keras3.ground.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_SECOND = "data comes second, a DataModule or arrays: trainer.fit(model, data)"
_BOTH = "the examples come second, together: trainer.fit(model, (x, y))"
_PARTS = dict.fromkeys(("dataloaders", "train_dataloaders"), _SECOND)
_EVALUATE = {
    **_PARTS,
    "verbose": "print what it returns",
    # Keras' Model.evaluate:
    **dict.fromkeys(("x", "y", "sample_weight"), "examples come second: (x, y, sample_weight)"),
    "batch_size": "type ArrayData(x, y, batch_size=...)",
    "return_dict": "it always returns one",
}

# Options and keys that other tools have, without dashes and underscores, and what to type here.
_DEVICE = (
    "JAX_PLATFORMS=cpu (with TensorFlow CUDA_VISIBLE_DEVICES=-1) before the command; a GPU is "
)
_DEVICE += "used if there is one"
_PRINTS = "`> log.txt` behind the command; a line an epoch is printed then"
OPTIONS = {
    **dict.fromkeys(("learningrate", "initlr", "baselr", "maxlr"), "--lr"),
    **dict.fromkeys(("e", "maxepochs", "numepochs", "nepochs"), "--epochs"),
    **dict.fromkeys(("b", "bs", "batch", "minibatch", "trainbatchsize"), "--batch_size"),
    **dict.fromkeys(("o", "output", "out", "outputdir", "outdir", "name"), "--run_dir"),
    **dict.fromkeys(("savedir", "logdir", "rundirectory", "experiment"), "--run_dir"),
    **dict.fromkeys(("m", "arch", "net", "network", "architecture"), "--model"),
    **dict.fromkeys(("dataset", "d"), "--data"),
    **dict.fromkeys(("datapath", "dataroot", "root", "datafolder"), "--data_dir"),
    **dict.fromkeys(("opt", "optim"), "--optimizer"),
    **dict.fromkeys(("scheduler", "lrscheduler", "lrschedule"), "--schedule"),
    **dict.fromkeys(("wd", "decay"), "--weight_decay"),
    **dict.fromkeys(("l2reg", "l2regularization", "reg"), "--l2"),
    **dict.fromkeys(("dropoutrate", "droprate"), "--dropout"),
    **dict.fromkeys(("patience", "earlystop"), "--early_stopping"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixedprecision"), "--precision bf16-mixed"),
    **dict.fromkeys(("resumefrom", "ckpt", "ckptpath", "checkpoint"), "--resume"),
    **dict.fromkeys(("clipnorm", "gradclip", "gradientclipval"), "--clip"),
    **dict.fromkeys(("accumulategradbatches", "gradaccum"), "--accumulate"),
    **dict.fromkeys(("valsplit", "validationsplit", "valfraction"), "--validation"),
    **dict.fromkeys(("augmentation", "transforms", "aug"), "--augment"),
    **dict.fromkeys(("valcheckinterval", "evalevery"), "--val_every"),
    **dict.fromkeys(("savetopk", "keep"), "--keep_top"),
    **dict.fromkeys(("profiler",), "--profile simple"),
    **dict.fromkeys(("s", "randomseed", "randomstate"), "--seed"),
    **dict.fromkeys(("smoothing",), "--label_smoothing"),
    "backend": "the environment: KERAS_BACKEND=jax fmnist train (or tensorflow)",
    **dict.fromkeys(("device", "gpu", "cpu", "cuda", "accelerator"), _DEVICE),
    **dict.fromkeys(("gpus", "ndevices", "numdevices"), "--devices"),
    **dict.fromkeys(("q", "quiet", "silent", "v", "verbose", "verbosity"), _PRINTS),
    **dict.fromkeys(("workers", "numworkers", "j"), "nothing: the images stay on the device"),
}

# Classes of Lightning's and Keras' that are something else here, and what.
NAMES = {
    "LightningModule": "Module, or a compiled keras.Model",
    "LightningDataModule": "DataModule, a subclass of which has load()",
    "TQDMProgressBar": "RichProgressBar, which is on by default",
    "RichModelSummary": "ModelSummary, which is on by default",
    "LearningRateFinder": "Tuner(trainer).lr_find(model, data), or `fmnist find lr`",
    "BatchSizeFinder": "Tuner(trainer).scale_batch_size(model, data), or `fmnist find batch_size`",
    "GradientAccumulationScheduler": "Trainer(accumulate_grad_batches=...)",
    "NeptuneLogger": "a Logger of your own, a class of a few lines",
    "CometLogger": "a Logger of your own, a class of a few lines",
    "ReduceLROnPlateau": "keras.callbacks.ReduceLROnPlateau, which Trainer(callbacks=) takes",
    "TensorBoard": "TensorBoardLogger",
}

# By function or class, and then by argument.
ARGUMENTS = {
    "Trainer": {
        "accelerator": "a GPU is used if there is one. For the CPU set JAX_PLATFORMS=cpu (with "
        "TensorFlow CUDA_VISIBLE_DEVICES=-1) before Python starts",
        "strategy": "devices=N share each batch, and each holds all weights; or shard='fsdp'",
        "num_nodes": "type `fmnist launch -n N -- train ...`, or call jax.distributed.initialize() "
        "in each process before Keras is imported",
        "use_distributed_sampler": "the devices share each batch, whatever the data",
        "sync_batchnorm": "statistics are always those of the whole batch",
        "benchmark": "the backend looks for its fastest kernels by itself; deterministic=True asks "
        "for those that repeat to the bit",
        "inference_mode": "validate, test and predict compute no gradients",
        "detect_anomaly": "every loss and weight is looked at; on_nonfinite='stop' or 'rollback' "
        "says what follows one that is not finite",
        "plugins": "give callbacks=[...] or logger=[...], which you can write yourself",
        "reload_dataloaders_every_n_epochs": "data is read once; the DataModule's augment draws "
        "anew in each epoch",
        "model_registry": "the model is model.keras of the run directory, see load_run",
        "min_steps": "give min_epochs",
        "limit_predict_batches": "give fewer images: trainer.predict(model, images[:100])",
        "enable_autolog_hparams": "settings go to config.yaml and the loggers; give your own by "
        "fit(..., hparams={...})",
    },
    "Trainer.fit": {
        **_PARTS,
        "val_dataloaders": "give validation_data=(x_val, y_val)",
        "weights_only": "a checkpoint holds nothing but arrays and JSON",
        # Keras' Model.fit:
        "x": _BOTH,
        "y": _BOTH,
        "epochs": "type Trainer(max_epochs=...)",
        "initial_epoch": "fit(..., ckpt_path='last') goes on where a run stopped",
        "batch_size": "type ArrayData(x, y, batch_size=...)",
        "validation_split": "type ArrayData(x, y, validation=0.1)",
        "sample_weight": "weights come third: trainer.fit(model, (x, y, sample_weight))",
        "callbacks": "type Trainer(callbacks=[...])",
        "verbose": "type Trainer(enable_progress_bar=False)",
        "shuffle": "each epoch has an order of its own, which follows from Trainer(seed=...)",
        "steps_per_epoch": "type Trainer(limit_train_batches=...)",
        "validation_steps": "type Trainer(limit_val_batches=...)",
        "validation_batch_size": "validation has the batch size of the training",
        "validation_freq": "type Trainer(check_val_every_n_epoch=...)",
    },
    "Trainer.validate": _EVALUATE,
    "Trainer.test": _EVALUATE,
    "Trainer.predict": {
        **dict.fromkeys((*_PARTS, "x"), "images come second: trainer.predict(model, images)"),
        "return_predictions": "it returns them",
        "batch_size": "batches are as large as they are quick",
        "verbose": "it prints nothing",
    },
    "Tuner.lr_find": _PARTS,
    "Tuner.scale_batch_size": {
        **_PARTS,
        "batch_arg_name": "make the data anew: FashionMNIST(batch_size=found.suggestion())",
    },
    "ModelCheckpoint": {
        "dirpath": "checkpoints lie in the run directory, Trainer(run_dir=...)",
        "save_weights_only": "a checkpoint is there to go on from; for weights alone take "
        "model.keras of the run directory, or model.save_weights",
        "save_on_train_epoch_end": "a checkpoint comes after the epoch's validation",
        "save_on_exception": "an exception leaves a checkpoint anyway",
        "enable_version_counter": "each name has its step, and none is used twice",
    },
    "EMAWeightAveraging": {
        "device": "averages lie beside the weights",
        "use_buffers": "BatchNormalization's statistics are taken anew for the average",
    },
    "StochasticWeightAveraging": {
        "device": "averages lie beside the weights",
        "avg_fn": "it is the mean; write shares() of a WeightAveraging for another one",
    },
    "ThroughputMonitor": {"batch_size_fn": "it knows the sizes of the batches. Leave it out"},
    "Timer": {"interval": "it stops between two chunks of steps, which take about a second"},
    "CSVLogger": {"version": "give another name"},
    "TensorBoardLogger": {"version": "give another name"},
    "WandbLogger": {"log_model": "models stay in the run directory, see result.best_checkpoint"},
    "seed_everything": {"workers": "no worker draws numbers. Leave it out"},
}

_STEPS = "on_chunk_end, after some steps that run as one program (every_n_train_steps: how many)"
_ALONE = "none: trainer.test and trainer.predict call no callbacks, and return what they find"

_LOAD = "load(), which returns the examples: load = lambda self: ArrayData(x, y).load()"

# By the beginning of the method's name.
DATA_HOOKS: dict[str, str] = dict.fromkeys(
    (
        "setup",
        "prepare_data",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "predict_dataloader",
    ),
    _LOAD,
)
LOGGER_HOOKS = {"log_metrics": "log, which takes a record with its event, epoch and step"}
CALLBACK_HOOKS = {
    "on_train_start": "on_fit_start",
    "on_train_end": "on_fit_end",
    "on_train_batch": _STEPS,
    "on_before": _STEPS,
    "on_after_backward": _STEPS,
    "on_validation_epoch_start": "on_validation_start",
    "on_validation_epoch_end": "on_validation_end",
    "on_validation_batch": "on_validation_end",
    "on_sanity_check": "on_fit_start, which comes after the sanity check",
    "on_test": _ALONE,
    "on_predict": _ALONE,
    "teardown": "on_fit_end, and on_exception",
}
_IN_STEP = "training_step, which computes what a batch needs with keras.ops"
MODULE_HOOKS = {
    "forward": "call(self, inputs), as in every Keras model",
    "optimizer_step": "configure_optimizers; clipping is Trainer(gradient_clip_val=...)",
    "on_before": _IN_STEP,
    "on_after_backward": _IN_STEP,
    "on_train_batch": _IN_STEP,
    "on_validation_batch": "validation_step",
    "on_train_start": "on_fit_start",
    "on_train_end": "on_fit_end",
    "on_test": _ALONE,
    "on_predict": _ALONE,
    "train_dataloader": "data goes to Trainer.fit(module, data)",
    "val_dataloader": "data goes to Trainer.fit(module, data, validation_data)",
    "configure_callbacks": "Trainer(callbacks=[...])",
    "configure_model": "__init__",
    "lr_scheduler_step": "configure_optimizers, which may return (optimizer, 'cosine')",
    "training_step_end": _IN_STEP,
}


def option_here(word: str, allowed: Iterable[str]) -> str:
    """Return ``" Here it is --lr."`` for an option or key of another tool, else "".

    ``allowed`` are the names of those that there are.
    """
    ours = OPTIONS.get(word.split("=")[0].replace("-", "").replace("_", "").lower(), "")
    named = ours.startswith("--") and ours.split()[0].lstrip("-") not in allowed
    return f" Here it is {ours}." if ours and not named else ""


def explained(function: F) -> F:
    """Let ``function`` raise a UserError that tells what to type instead of `ARGUMENTS`.

    They are not among its parameters, so that signatures and type checkers do not know them.
    """
    name = function.__qualname__.removesuffix(".__init__").replace("Evaluator", "Trainer")

    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "datamodule" in kwargs and "data" in parameters:  # Lightning's name for it
            kwargs["data"] = kwargs.pop("datamodule")
        for argument in kwargs:
            if how := ARGUMENTS[name].get(argument):
                raise UserError(f"{name} has no {argument} here: {how}.")
        return function(*args, **kwargs)

    return cast(F, call)


def check_hooks(methods: Iterable[str], hooks: dict[str, str]) -> None:
    """Raise UserError for a method of a subclass that is a hook in Lightning, and not here.

    It would never be called.
    """
    for name in methods:
        for beginning, ours in hooks.items():
            if name.startswith(beginning):
                raise UserError(f"There is no hook {name} here. It is {ours}.")
