"""The peers: bare JAX, bare PyTorch and PyTorch Lightning, each as a good user would write it.

They read the layers and initial weights of the plain Keras model, so that all do the same work.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from bench.worker import (
    LEARNING_RATE,
    Clock,
    arrays,
    initial_weights,
    measured,
    plain_model,
    timed,
)

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7  # Keras' Adam


def layers(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return class name and settings of the model's layers, in order."""
    model = json.loads(plain_model(spec))
    return [(layer["class_name"], layer["config"]) for layer in model["config"]["layers"]]


def bare_jax(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure a jitted step with donated state over images on the device, called in a loop."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    stack = layers(spec)

    def forward(weights, x, key=None):
        weights = iter(weights)
        for kind, settings in stack:
            if kind == "Rescaling":
                x = x.astype(jnp.float32) * settings["scale"]
            elif kind == "Conv2D":
                order, padding = ("NHWC", "HWIO", "NHWC"), settings["padding"].upper()
                x = lax.conv_general_dilated(x, next(weights), (1, 1), padding, None, None, order)
                x += next(weights)
            elif kind == "MaxPooling2D":
                window = (1, *settings["pool_size"], 1)
                x = lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")
            elif kind == "Flatten":
                x = x.reshape(len(x), -1)
            elif kind == "Dense":
                x = x @ next(weights) + next(weights)
            elif kind == "Dropout" and key is not None:
                key, draw = jax.random.split(key)
                keep = 1 - settings["rate"]
                x = jnp.where(jax.random.bernoulli(draw, keep, x.shape), x / keep, 0)
            if settings.get("activation") == "relu":
                x = jax.nn.relu(x)
        return x

    def losses(weights, x, y, key=None):
        logits = forward(weights, x, key)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
        return -picked.mean(), (logits.argmax(1) == y).mean()

    def step(state, x, y, indices, i):
        weights, first, second, t, key = state
        key, draw = jax.random.split(key)
        at = indices[i]
        gradients = jax.grad(losses, has_aux=True)(weights, x[at], y[at], draw)[0]
        t += 1
        rate = LEARNING_RATE * jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
        first = [BETA1 * m + (1 - BETA1) * g for m, g in zip(first, gradients, strict=True)]
        second = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(second, gradients, strict=True)]
        moments = zip(weights, first, second, strict=True)
        weights = [w - rate * m / (jnp.sqrt(v) + EPSILON) for w, m, v in moments]
        return weights, first, second, t, key

    step = jax.jit(step, donate_argnums=0)
    evaluate = jax.jit(losses)
    x, y, x_val, y_val = map(jnp.asarray, arrays(spec))
    weights = [jnp.asarray(weight) for weight in initial_weights(spec)]
    zeros, more = ([jnp.zeros_like(w) for w in weights] for _ in range(2))
    state = (weights, zeros, more, jnp.zeros(()), jax.random.key(spec["seed"]))
    rng, size, clock = np.random.default_rng(spec["seed"]), spec["batch_size"], Clock()
    for _ in range(1 + spec["epochs"]):
        clock.start()
        indices = jnp.asarray(rng.permutation(len(x)).reshape(-1, size))
        for i in range(len(indices)):
            state = step(state, x, y, indices, i)
            if not clock.first:
                jax.block_until_ready(state)
                clock.first_step()
        jax.block_until_ready(state)
        clock.stop()
        starts = range(0, len(x_val), size)
        found = [evaluate(state[0], x_val[s : s + size], y_val[s : s + size]) for s in starts]
        clock.validated(*np.mean(np.array(found), axis=0))
    device = jax.devices()[0].device_kind
    return measured(clock, len(x), sum(w.size for w in weights), device=device)


def torch_model(spec: dict[str, Any]) -> Any:
    """Return the model for images 0..1 ``[N,C,H,W]``, with the Keras model's weights."""
    import torch
    from torch import nn

    modules, weights, channels, flat = [], iter(initial_weights(spec)), 1, False
    for kind, settings in layers(spec):
        if kind == "MaxPooling2D":
            modules.append(nn.MaxPool2d(tuple(settings["pool_size"])))
        elif kind == "Flatten":
            modules.append(nn.Flatten())
            flat = True
        elif kind == "Dropout":
            modules.append(nn.Dropout(settings["rate"]))
        elif kind in ("Conv2D", "Dense"):
            matrix, bias = next(weights), next(weights)
            if kind == "Conv2D":
                height, width, inputs, channels = matrix.shape
                size, padding = (height, width), settings["padding"]
                layer = nn.Conv2d(inputs, channels, size, padding=padding)
                matrix = matrix.transpose(3, 2, 0, 1)
            else:
                if flat:  # Keras flattens (H, W, C), PyTorch (C, H, W)
                    side = math.isqrt(len(matrix) // channels)
                    cube = matrix.reshape(side, side, channels, -1).transpose(2, 0, 1, 3)
                    matrix, flat = cube.reshape(matrix.shape), False
                layer, matrix = nn.Linear(*matrix.shape), matrix.T
            layer.load_state_dict({"weight": torch.tensor(matrix), "bias": torch.tensor(bias)})
            modules += [layer, nn.ReLU()] if settings["activation"] == "relu" else [layer]
    return nn.Sequential(*modules)


def torch_tensors(spec: dict[str, Any]) -> list[Any]:
    """Return images uint8 ``[N,C,H,W]`` and labels int64 as tensors on the host."""
    import torch

    x, y, x_val, y_val = arrays(spec)
    pictures = [torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))) for a in (x, x_val)]
    labels = [torch.from_numpy(a.astype(np.int64)) for a in (y, y_val)]
    return [pictures[0], labels[0], pictures[1], labels[1]]


def bare_torch(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure an eager PyTorch loop over images on the device."""
    import torch
    from torch.nn.functional import cross_entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(spec["seed"])
    model = torch_model(spec).to(device)
    x, y, x_val, y_val = (tensor.to(device) for tensor in torch_tensors(spec))
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=EPSILON)
    lower = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(spec["precision"])
    cast = torch.autocast(device, lower, enabled=lower is not None)
    scaler = torch.amp.GradScaler(device, enabled=lower is torch.float16)

    def logits_of(images):
        model.eval()
        with torch.no_grad(), cast:
            batches = images.split(spec["batch_size"])
            return torch.cat([model(batch.float() / 255).float() for batch in batches])

    def evaluate(images, labels):
        logits = logits_of(images)
        right = (logits.argmax(1) == labels).float().mean()
        return float(cross_entropy(logits, labels)), float(right)

    clock = Clock()
    for _ in range(1 + spec["epochs"]):
        clock.start()
        model.train()
        for at in torch.randperm(len(x), device=device).split(spec["batch_size"]):
            optimizer.zero_grad()
            with cast:
                loss = cross_entropy(model(x[at].float() / 255), y[at])
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if not clock.first:
                wait()
                clock.first_step()
        wait()
        clock.stop()
        clock.validated(*evaluate(x_val, y_val))
    outside = {
        "evaluate": timed(lambda: evaluate(x, y)),
        "predict": timed(lambda: logits_of(x).cpu().numpy()),
    }
    return measured(clock, len(x), _count(model), device=device, **outside)


def lightning(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure PyTorch Lightning, with a DataLoader that takes whole batches from the images."""
    import lightning.pytorch as pl
    import torch
    from torch.nn.functional import cross_entropy

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch_model(spec)

        def training_step(self, batch, index):
            return cross_entropy(self.model(batch[0].float() / 255), batch[1])

        def validation_step(self, batch, index):
            logits = self.model(batch[0].float() / 255)
            right = (logits.argmax(1) == batch[1]).float().mean()
            self.log_dict({"loss": cross_entropy(logits, batch[1]), "accuracy": right})

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), LEARNING_RATE, eps=EPSILON)

    def wait():
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    class Stopwatch(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            clock.start()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if not clock.first:
                wait()
                clock.first_step()
            if batch_idx + 1 == trainer.num_training_batches:
                wait()
                clock.stop()

        def on_validation_end(self, trainer, module):
            values = trainer.callback_metrics
            clock.validated(values["loss"], values["accuracy"])

    pl.seed_everything(spec["seed"], verbose=False)
    tensors = torch_tensors(spec)
    trainer = pl.Trainer(
        max_epochs=1 + spec["epochs"],
        callbacks=[Stopwatch()],
        precision="32-true" if spec["precision"] == "32" else spec["precision"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model, clock = Classifier(), Clock()
    trainer.fit(model, *loaders(tensors, spec["batch_size"]))
    return measured(clock, len(tensors[0]), _count(model), device=str(trainer.strategy.root_device))


def loaders(tensors: list[Any], batch_size: int) -> list[Any]:
    """Return DataLoaders for training and validation, each of which takes whole batches."""
    from torch.utils.data import (
        BatchSampler,
        DataLoader,
        RandomSampler,
        SequentialSampler,
        TensorDataset,
    )

    made = []
    for split, sampler in ((tensors[:2], RandomSampler), (tensors[2:], SequentialSampler)):
        data = TensorDataset(*split)
        batches = BatchSampler(sampler(data), batch_size, drop_last=False)
        made.append(DataLoader(data, sampler=batches, batch_size=None))
    return made


def _count(model: Any) -> int:
    return sum(weights.numel() for weights in model.parameters())
