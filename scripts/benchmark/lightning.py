"""Training of the reference phases by Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmark.clock import read_seconds
from benchmark.reference_loops import ReferencePhase


class _SinglePhaseModule(lightning.LightningModule):
    """One loss, with Lightning's automatic optimization."""

    def __init__(self, phases: list[ReferencePhase]) -> None:
        super().__init__()
        self.phases = phases
        self.networks = torch.nn.ModuleList(phase.network for phase in phases)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(phase.network.parameters(), lr=phase.lr) for phase in self.phases]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.phases[0].loss(batch[0])
        self.log("loss", loss)
        return loss


class _MultiPhaseModule(_SinglePhaseModule):
    """Several losses, each with its own optimizer, for which Lightning requires manual optimization."""

    def __init__(self, phases: list[ReferencePhase]) -> None:
        super().__init__(phases)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:  # type: ignore[override]
        for number, (phase, optimizer) in enumerate(zip(self.phases, self.optimizers(), strict=True)):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            loss = phase.loss(batch[0])
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(f"loss_{number}", loss)


class _FitTimer(lightning.Callback):
    def on_train_batch_start(self, trainer: object, module: object, batch: object, index: int) -> None:
        if index == 0 and not self.started_at:
            self.started_at = read_seconds()

    def on_train_end(self, trainer: object, module: object) -> None:
        self.ended_at = read_seconds()

    started_at = ended_at = 0.0


def measure_lightning(
    phases: list[ReferencePhase], images: Tensor, batch_size: int, steps: int, root_dir: Path
) -> float:
    """Return the images/s of `steps` steps with the defaults of Lightning's Trainer, which writes to `root_dir`.

    `images` is uint8 (samples, channels, height, width).
    """
    loader = DataLoader(TensorDataset(images.float() / 255), batch_size=batch_size, shuffle=True, drop_last=True)
    timer = _FitTimer()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps * len(phases),  # Lightning counts the steps of every optimizer
        max_epochs=-1,
        callbacks=[timer],
        default_root_dir=root_dir,
    )
    trainer.fit(_SinglePhaseModule(phases) if len(phases) == 1 else _MultiPhaseModule(phases), loader)
    return steps * batch_size / (timer.ended_at - timer.started_at)
