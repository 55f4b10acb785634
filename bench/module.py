"""`python -m bench.module`: what a Module costs, and the examples VAE and GAN beside Lightning.

`cnn` is trained by its `compile` and by a `Module` that does the same, turn by turn in one process:
the ratio of their times, and that of what they took of the processor, which other processes disturb
less. The VAE and the GAN are those of `fmnist_keras3.examples` beside the same
in PyTorch Lightning, each in a process of its own, turn by turn: images a second. First epochs are
left out. ``--peer_python`` is a Python that has torch and lightning; there the products of matrices
that a step has are measured alone, too: what no library can do without.
The result is `bench/results/examples/module-BACKEND.json`.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "results/examples"
BATCH = 128
# Of each dense layer: inputs, units, and how many products a step has of them: forward, gradients
# of the weights, and of the inputs where a layer is below.
PRODUCTS = {
    "vae": [(784, 512, 2), (512, 256, 3), (256, 4, 3), (2, 256, 3), (256, 512, 3), (512, 784, 3)],
    # The generator's are forward twice; the critic's forward three times and back three times.
    "gan": [(64, 128, 3), (128, 512, 4), (512, 784, 4), (784, 512, 6), (512, 128, 8), (128, 1, 8)],
}


def images(count: int) -> np.ndarray:
    """Return grey images of noise, uint8 ``[count, 28, 28, 1]``: the time depends on no value."""
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


def fits(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """Return a function that trains one epoch, and returns its seconds and the processor's.

    The first, which compiles, is over.
    """
    from fmnist_keras3 import ArrayData, Trainer

    trainer = Trainer(max_epochs=1, barebones=True, limit_val_batches=0)
    data = ArrayData(x, y, batch_size=BATCH, validation=0.0)

    def seconds() -> tuple[float, float]:
        began = time.process_time()
        [found] = trainer.fit(model, data).summary["epoch_seconds"]
        return found, time.process_time() - began

    seconds()
    return seconds


def cnn(count: int, rounds: int) -> dict[str, Any]:
    """Measure `cnn` by `compile` and by a Module; the ratio is of the median over the rounds."""
    import keras

    from fmnist_keras3 import Module, build_model

    class Classifier(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build_model("cnn")
            self.entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

        def training_step(self, batch: Any) -> Any:
            x, y = batch
            logits = self.net(x)
            self.accuracy.update_state(y, logits)
            return self.entropy(y, logits)

        def configure_optimizers(self) -> Any:
            return keras.optimizers.Adam(1e-3)

    x, y = images(count), np.arange(count, dtype="int32") % 10
    compiled = build_model("cnn", optimizer=keras.optimizers.Adam(1e-3))
    contestants = {"compiled": fits(compiled, x, y), "module": fits(Classifier(), x, y)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in list(contestants)[:: 1 if turn % 2 else -1]:
            found[name].append(contestants[name]())
    ratios = np.divide(found["module"], found["compiled"]).round(4).T.tolist()
    speeds = {name: round(count / median(t for t, _ in turns)) for name, turns in found.items()}
    return {
        **speeds,
        **dict(zip(("ratio", "processor_ratio"), map(median, ratios), strict=True)),
        **dict(zip(("ratios", "processor_ratios"), ratios, strict=True)),
    }


def ours(name: str, count: int, epochs: int) -> float:
    """Return images a second of an example on this process's backend, median over epochs."""
    from fmnist_keras3 import runtime

    runtime.prepare()
    from fmnist_keras3.examples import gan, vae

    model = {"vae": vae.VAE, "gan": gan.GAN}[name]()
    seconds = fits(model, images(count), np.zeros(count, "int32"))
    return count / median([seconds()[0] for _ in range(epochs)])


def lightning(name: str, count: int, epochs: int) -> float:
    """Return images a second of the same in PyTorch Lightning, median over epochs."""
    import lightning.pytorch as pl
    import torch
    from torch import nn
    from torch.nn.functional import binary_cross_entropy_with_logits, softplus
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    class VAE(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                *(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU()),
                nn.Linear(256, 4),
            )
            self.decoder = nn.Sequential(
                *(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU()),
                nn.Linear(512, 784),
            )

        def training_step(self, batch: Any, index: int) -> Any:
            x = batch[0].float() / 255
            mean, log_variance = self.encoder(x).chunk(2, dim=-1)
            noise = torch.randn_like(mean)
            logits = self.decoder(mean + torch.exp(log_variance / 2) * noise)
            pixels = binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="none")
            rebuilding = pixels.sum(1).mean()
            divergence = (mean.square() + log_variance.exp() - log_variance - 1) / 2
            divergence = divergence.sum(-1).mean()
            self.log_dict({"rebuilding": rebuilding, "divergence": divergence}, on_epoch=True)
            return rebuilding + divergence

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-3)

    class GAN(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(
                *(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 512), nn.LeakyReLU(0.2)),
                *(nn.Linear(512, 784), nn.Sigmoid()),
            )
            self.critic = nn.Sequential(
                *(nn.Linear(784, 512), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(512, 128)),
                *(nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(128, 1)),
            )

        def training_step(self, batch: Any, index: int) -> None:
            x = batch[0].float().flatten(1) / 255
            critic, generator = self.optimizers()
            with torch.no_grad():
                made = self.generator(torch.randn(len(x), 64))
            real, fake = self.critic(2 * x - 1), self.critic(2 * made - 1)
            loss = (softplus(-real).mean() + softplus(fake).mean()) / 2
            self._update(critic, "critic", loss)
            made = self.generator(torch.randn(len(x), 64))
            self.critic.requires_grad_(False)
            self._update(generator, "generator", softplus(-self.critic(2 * made - 1)).mean())
            self.critic.requires_grad_(True)

        def _update(self, optimizer: Any, which: str, loss: Any) -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.log(f"{which}_loss", loss, on_epoch=True)

        def configure_optimizers(self) -> Any:
            parts = (self.critic, self.generator)
            return [torch.optim.Adam(p.parameters(), 4e-4, betas=(0.5, 0.999)) for p in parts]

    class Stopwatch(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seconds.append(time.perf_counter() - self.began)

    seconds: list[float] = []
    data = TensorDataset(torch.from_numpy(images(count)))
    batches = BatchSampler(RandomSampler(data), BATCH, drop_last=False)
    trainer = pl.Trainer(
        max_epochs=1 + epochs,
        callbacks=[Stopwatch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(data, sampler=batches, batch_size=None)
    trainer.fit({"vae": VAE, "gan": GAN}[name](), loader)
    return count / median(seconds[1:])


def products(name: str, count: int, epochs: int) -> float:
    """Return images a second if a step were its products alone, by torch; median over epochs."""
    import torch

    pairs = [
        (torch.randn(BATCH, inputs), torch.randn(inputs, units))
        for inputs, units, times in PRODUCTS[name]
        for _ in range(times)
    ]
    seconds = []
    for _ in range(1 + epochs):
        began = time.perf_counter()
        for _ in range(count // BATCH):
            for x, kernel in pairs:
                x @ kernel
        seconds.append(time.perf_counter() - began)
    return count / median(seconds[1:])


def beside(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Measure an example and its peer turn by turn, each time in a new process."""
    pythons = {"ours": sys.executable, "lightning": given.peer_python}
    pythons["products"] = given.peer_python
    found: dict[str, list[float]] = {who: [] for who in pythons}
    for turn in range(given.rounds):
        for who in list(pythons)[:: 1 if turn % 2 else -1]:
            sizes = [str(given.images), str(given.epochs)]
            command = [pythons[who], "-m", "bench.module", "--one", name, who, *sizes]
            run = subprocess.run(command, check=True, capture_output=True, text=True)
            found[who].append(float(run.stdout.split()[-1]))
    ratios = [o / p for o, p in zip(found["ours"], found["lightning"], strict=True)]
    speeds = {who: round(median(values)) for who, values in found.items()}
    return {**speeds, "ratio": round(median(ratios), 3), "ratios": [round(r, 3) for r in ratios]}


def peer_versions(python: str) -> dict[str, str]:
    """Return the versions that another Python has of torch and Lightning."""
    asks = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    names = ["torch", "lightning"]
    run = subprocess.run([python, "-c", asks, *names], check=True, capture_output=True, text=True)
    return dict(zip(names, run.stdout.split(), strict=True))


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        name, who, count, epochs = sys.argv[2:]
        measure = {"ours": ours, "lightning": lightning, "products": products}[who]
        print(measure(name, int(count), int(epochs)))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--epochs", type=int, default=5, help="of the VAE and GAN, after the first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer_python", help="default: the VAE and the GAN are left out")
    given = parser.parse_args()
    from fmnist_keras3 import runtime

    backend = runtime.prepare()
    figures = {"cnn": cnn(given.images, given.rounds)}
    versions, peer = runtime.versions(), " --peer_python PYTHON" * bool(given.peer_python)
    if given.peer_python:
        versions |= peer_versions(given.peer_python)
        figures |= {name: beside(name, given) for name in ("vae", "gan")}
    result = {
        "command": f"KERAS_BACKEND={backend} python -m bench.module --images {given.images} "
        f"--epochs {given.epochs} --rounds {given.rounds}{peer}",
        "figures": figures,
        "unit": "images a second; ratio of cnn: the Module's time over the compiled model's; of "
        "vae and gan: ours over Lightning's images a second; products: if a step were these alone",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": runtime.hardware(),
        "versions": versions,
    }
    (FOLDER / f"module-{backend}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
