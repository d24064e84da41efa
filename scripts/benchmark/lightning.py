"""The same training by Lightning's Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmark.clock import now
from benchmark.reference_loops import Player


class _Module(lightning.LightningModule):
    """One loss, stepped by Lightning itself."""

    def __init__(self, players: list[Player]) -> None:
        super().__init__()
        self.players = players
        self.networks = torch.nn.ModuleList(player.network for player in players)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(player.network.parameters(), lr=player.lr) for player in self.players]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = self.players[0].loss(batch[0])
        self.log("loss", loss)
        return loss


class _Players(_Module):
    """Several losses, each with its optimizer, which Lightning leaves to be stepped by hand."""

    def __init__(self, players: list[Player]) -> None:
        super().__init__(players)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:  # type: ignore[override]
        for number, (player, optimizer) in enumerate(zip(self.players, self.optimizers(), strict=True)):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            loss = player.loss(batch[0])
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(f"loss_{number}", loss)


class _Stopwatch(lightning.Callback):
    def on_train_batch_start(self, trainer: object, module: object, batch: object, index: int) -> None:
        if index == 0 and not self.begun:
            self.begun = now()

    def on_train_end(self, trainer: object, module: object) -> None:
        self.ended = now()

    begun = ended = 0.0


def lightning_speed(players: list[Player], images: Tensor, batch_size: int, steps: int, folder: Path) -> float:
    """Return the images/s of `steps` steps with the Trainer's defaults, its files going to `folder`."""
    loader = DataLoader(TensorDataset(images.float() / 255), batch_size=batch_size, shuffle=True, drop_last=True)
    watch = _Stopwatch()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps * len(players),
        max_epochs=-1,
        callbacks=[watch],
        default_root_dir=folder,
    )
    trainer.fit(_Module(players) if len(players) == 1 else _Players(players), loader)
    return steps * batch_size / (watch.ended - watch.begun)
