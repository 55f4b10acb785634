"""`python -m bench data`: torchvision, a DataLoader and PyTorch Lightning."""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def lightning(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure Lightning on torchvision's ImageFolder, with a DataLoader's process for each core."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy
    from torch.utils.data import DataLoader

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        # PyPI's is built for CUDA, and beside a torch for the CPU misses two operators as it is
        # imported. What reads images is in Python; these are declared, and never called.
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import lightning.pytorch as pl  # which imports torchvision, too
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from bench.worker import Clock, measured

    class Classifier(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(
                nn.MaxPool2d(4), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(16, 10),
            )  # fmt: skip
            self.loss = []

        def training_step(self, batch, index):
            loss = cross_entropy(self.model(batch[0].float() / 255), batch[1])
            self.loss.append(loss.detach())
            return loss

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3, eps=1e-7)

    class Stopwatch(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            clock.start()

        def on_train_epoch_end(self, trainer, module):
            clock.stop()
            clock.epochs[-1]["loss"] = float(torch.stack(module.loss).mean())
            module.loss.clear()

    pl.seed_everything(spec["seed"], verbose=False)
    # In uint8, which is a quarter of what `ToTensor` would copy.
    images = ImageFolder(Path(spec["images"]) / "train", transform=v2.PILToTensor())
    loader = DataLoader(
        images, batch_size=spec["batch_size"], shuffle=True, num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=1 + spec["epochs"], callbacks=[Stopwatch()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    model, clock = Classifier(), Clock()
    trainer.fit(model, loader)
    return measured(clock, len(images), sum(w.numel() for w in model.parameters()))
