"""Training loops of the techniques' sources: DataLoader, ToTensor, `loss.item()`, and the sources' pictures."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import matplotlib as mpl
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from genexp.images.vision import torchvision  # a plain import fails with some builds of torch

mpl.use("Agg")
from matplotlib import pyplot as plt

# Technique → data set, learning rate, batch size.
SETTINGS: dict[str, tuple[str, float, int]] = {
    "stacked_autoencoder": ("MNIST", 1e-4, 50),
    "conv_autoencoder": ("MNIST", 1e-3, 50),
    "vae": ("MNIST", 1e-3, 100),
    "gan": ("FashionMNIST", 2e-4, 100),
    "dcgan": ("FashionMNIST", 2e-4, 100),
}
NOISE_FEATURES = 128


def main() -> None:
    """Train one technique, and write its pictures, its networks and `result.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("technique", choices=SETTINGS)
    parser.add_argument("data", help="directory with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    dataset_name, lr, batch_size = SETTINGS[options.technique]
    dataset_class: Any = getattr(torchvision.datasets, dataset_name)
    to_tensor = torchvision.transforms.ToTensor()
    splits = [dataset_class(options.data, train=is_train, transform=to_tensor) for is_train in (True, False)]
    loaders = [
        DataLoader(split, batch_size=batch_size, shuffle=index == 0, drop_last=index == 0)
        for index, split in enumerate(splits)
    ]
    train: Callable[..., dict[str, float]] = {"vae": train_vae, "gan": train_gan, "dcgan": train_gan}.get(
        options.technique, train_autoencoder
    )
    result = train(options.technique, loaders[0], loaders[1], lr, options.epochs)
    Path("result.json").write_text(json.dumps({"steps": options.epochs * len(loaders[0]), **result}))


def train_autoencoder(
    technique: str, train_loader: DataLoader[Any], test_loader: DataLoader[Any], lr: float, epochs: int
) -> dict[str, float]:
    """Train an autoencoder on mean squared errors, and draw ten test images over their reconstructions."""
    model = build_stacked_autoencoder() if technique == "stacked_autoencoder" else build_conv_autoencoder()
    optimizer = optim.Adam(model.parameters(), lr=lr)
    for epoch in range(epochs):
        running_loss = 0.0
        for images, _ in train_loader:
            loss = F.mse_loss(model(images), images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        print(f"epoch {epoch + 1}: {running_loss / len(train_loader):.4f}")
    images = next(iter(test_loader))[0][:10]
    with torch.no_grad():
        draw_pairs(images, model(images))
    torch.save(model.state_dict(), "model.pt")
    return {"loss": running_loss / len(train_loader), "parameters": count_parameters(model)}


def build_stacked_autoencoder() -> nn.Module:
    """Return 784→128→32→10 and back."""
    layers: list[nn.Module] = [nn.Flatten()]
    widths = [784, 128, 32, 10, 32, 128, 784]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28)))


def build_conv_autoencoder() -> nn.Module:
    """Return convolutions 28→13→6→4 with 16, 32 and 64 channels, a latent of 10, and back."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1024, 10), nn.ReLU(), nn.Linear(10, 1024), nn.ReLU()),
        *(nn.Unflatten(1, (64, 4, 4)), nn.ConvTranspose2d(64, 32, 3), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 16, 3, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 3, 2, output_padding=1)),
        nn.Sigmoid(),
    )


class VAE(nn.Module):
    """Variational autoencoder 784→400→400→200→400→400→784."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*build_dense([784, 400, 400]))
        self.mean, self.log_variance = nn.Linear(400, 200), nn.Linear(400, 200)
        self.decoder = nn.Sequential(*build_dense([200, 400, 400]), nn.Linear(400, 784), nn.Sigmoid())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstructions (batch, 784), means and log-variances (batch, 200)."""
        hidden = self.encoder(images.view(-1, 784))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(latent), mean, log_variance


def build_dense(widths: list[int]) -> Iterator[nn.Module]:
    """Yield dense layers with LeakyReLU."""
    for inputs, outputs in itertools.pairwise(widths):
        yield nn.Linear(inputs, outputs)
        yield nn.LeakyReLU(0.2)


def train_vae(
    technique: str, train_loader: DataLoader[Any], test_loader: DataLoader[Any], lr: float, epochs: int
) -> dict[str, float]:
    """Train a VAE, with the three losses of each training and test step in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    model, writer = VAE(), SummaryWriter("tensorboard")
    optimizer = optim.Adam(model.parameters(), lr=lr)
    steps = {"train": 0, "test": 0}

    def compute_loss(images: Tensor, split: str) -> Tensor:
        reconstructions, mean, log_variance = model(images)
        error = F.binary_cross_entropy(reconstructions, images.view(-1, 784), reduction="sum")
        divergence = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
        loss = error + divergence
        steps[split] += 1
        for name, value in (("reconstruction", error), ("kl", divergence), ("loss", loss)):
            writer.add_scalar(f"{split}/{name}", value.item() / len(images), steps[split])
        return loss

    for epoch in range(epochs):
        running_loss = 0.0
        model.train()
        for images, _ in train_loader:
            optimizer.zero_grad()
            loss = compute_loss(images, "train")
            loss.backward()
            optimizer.step()
            running_loss += loss.item() / len(images)
        model.eval()
        with torch.no_grad():
            for images, _ in test_loader:
                compute_loss(images, "test")
            shown = images[:8]
            pairs = torch.cat([shown, model(shown)[0].view(-1, 1, 28, 28)])
        writer.add_image("reconstructions", torchvision.utils.make_grid(pairs, nrow=8), epoch)
        print(f"epoch {epoch + 1}: {running_loss / len(train_loader):.3f}")
    writer.close()
    torch.save(model.state_dict(), "model.pt")
    return {"loss": running_loss / len(train_loader), "parameters": count_parameters(model)}


def build_gan() -> tuple[nn.Module, nn.Module]:
    """Return a generator 128→256→512→1024→784 and a discriminator 784→1024→512→256→1."""
    generator = nn.Sequential(
        *build_dense([NOISE_FEATURES, 256, 512, 1024]),
        nn.Linear(1024, 784),
        nn.Tanh(),
        nn.Unflatten(1, (1, 28, 28)),
    )
    hidden: list[nn.Module] = []
    for layer in build_dense([784, 1024, 512, 256]):
        hidden += [layer, nn.Dropout(0.3)] if isinstance(layer, nn.LeakyReLU) else [layer]
    return generator, nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 1), nn.Sigmoid())


def build_dcgan() -> tuple[nn.Module, nn.Module]:
    """Return a generator of transposed convolutions (1→3→7→15→28) and a discriminator of convolutions."""
    generator = nn.Sequential(
        *(nn.Unflatten(1, (NOISE_FEATURES, 1, 1)), nn.ConvTranspose2d(128, 256, 3, 1, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(256, 128, 3, 2, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(128, 64, 3, 2, bias=False), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 1, 2, 2, 1, bias=False), nn.Tanh()),
    )
    hidden: list[nn.Module] = []
    for inputs, outputs in ((1, 128), (128, 256), (256, 256)):
        hidden += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.LeakyReLU(0.2), nn.Dropout(0.5)]
    discriminator = nn.Sequential(*hidden, nn.Conv2d(256, 1, 3, 2, bias=False), nn.Flatten(), nn.Sigmoid())
    return generator, discriminator


def train_gan(
    technique: str, train_loader: DataLoader[Any], test_loader: DataLoader[Any], lr: float, epochs: int
) -> dict[str, float]:
    """Train a GAN with binary cross-entropy, and draw 64 fixed noise vectors after each epoch."""
    generator, discriminator = build_gan() if technique == "gan" else build_dcgan()
    generator_optimizer = optim.Adam(generator.parameters(), lr=lr)
    discriminator_optimizer = optim.Adam(discriminator.parameters(), lr=lr)
    criterion = nn.BCELoss()
    fixed_noise = torch.randn(64, NOISE_FEATURES)
    generator_losses, discriminator_losses, frames = [], [], []
    for epoch in range(epochs):
        generator_loss_sum = discriminator_loss_sum = 0.0
        for images, _ in train_loader:
            real = images * 2 - 1
            ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            discriminator_optimizer.zero_grad()
            fake = generator(torch.randn(len(real), NOISE_FEATURES)).detach()
            loss = criterion(discriminator(real), ones) + criterion(discriminator(fake), zeros)
            loss.backward()
            discriminator_optimizer.step()
            discriminator_loss_sum += loss.item()
            generator_optimizer.zero_grad()
            loss = criterion(discriminator(generator(torch.randn(len(real), NOISE_FEATURES))), ones)
            loss.backward()
            generator_optimizer.step()
            generator_loss_sum += loss.item()
        generator_losses.append(generator_loss_sum / len(train_loader))
        discriminator_losses.append(discriminator_loss_sum / len(train_loader))
        with torch.no_grad():
            grid = torchvision.utils.make_grid(generator(fixed_noise), normalize=True)
        frames.append(grid.mul(255).byte().permute(1, 2, 0).numpy())
        print(f"epoch {epoch + 1}: {discriminator_losses[-1]:.3f} {generator_losses[-1]:.3f}")
    imageio.mimsave("samples.gif", frames)
    plt.plot(generator_losses, label="generator")
    plt.plot(discriminator_losses, label="discriminator")
    plt.legend()
    plt.savefig("loss.png")
    torch.save(generator.state_dict(), "generator.pt")
    torch.save(discriminator.state_dict(), "discriminator.pt")
    parameters = count_parameters(generator) + count_parameters(discriminator)
    return {"loss": discriminator_losses[-1], "parameters": parameters}


def draw_pairs(images: Tensor, reconstructions: Tensor) -> None:
    """Write `reconstructions.png`: images above their reconstructions, both (samples, 1, height, width)."""
    figure, axes = plt.subplots(2, len(images), figsize=(len(images), 2))
    for row, pictures in zip(axes, (images, reconstructions), strict=True):
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture.squeeze(0), cmap="gray")
            axis.axis("off")
    figure.savefig("reconstructions.png")


def count_parameters(module: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(weight.numel() for weight in module.parameters())


if __name__ == "__main__":
    main()
