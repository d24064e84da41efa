"""Variational autoencoder: loss, evaluation, samples and learning."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.losses.reconstruction import bernoulli_log_likelihood
from genexp.technique import Clock
from genexp.techniques.vae import VAEConfig, VariationalAutoencoder
from tests.support.assertions import assert_same
from tests.support.compose import compose_config
from tests.support.digits import evaluate_on_digits, load_digits, mean_image_mse, train_on_digits

IMAGE_SHAPE = (1, 6, 5)
CLOCK = Clock(step=5, total_steps=100, steps_per_epoch=10)


def make_vae(**changes: Any) -> VariationalAutoencoder:
    """Return a small VAE with the same weights at each call."""
    node = OmegaConf.to_container(compose_config("model=vae").model)
    assert isinstance(node, dict)
    small = {"hidden": [16], "latent": 4, "kl_warmup_epochs": 0.0, **changes}
    settings = {str(key): value for key, value in node.items() if key not in ("name", "recipe")} | small
    torch.manual_seed(0)
    return VariationalAutoencoder(
        bind(VAEConfig, settings, "model"), DataSpec("made up", {"image": IMAGE_SHAPE}, 100)
    )


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(7, *IMAGE_SHAPE)


def compute_reference_loss(model: VariationalAutoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reconstruction error, (batch,), and the KL divergence, (batch, latent), in nats."""
    hidden = model.encoder(images)
    mean, deviation = model.mean(hidden), (0.5 * model.log_variance(hidden)).exp()
    torch.manual_seed(2)
    probabilities = model.decoder(mean + deviation * torch.randn_like(mean)).sigmoid()
    errors = -(images * probabilities.log() + (1 - images) * (1 - probabilities).log())
    posterior, prior = Normal(mean, deviation), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return errors.flatten(1).sum(1), kl_divergence(posterior, prior)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_loss_matches_the_paper(beta: float, images: Tensor) -> None:
    model = make_vae(beta=beta)
    errors, kl = compute_reference_loss(model, images)
    torch.manual_seed(2)
    loss, metrics = model.loss({"image": images}, CLOCK)
    torch.testing.assert_close(loss, errors.mean() + beta * kl.sum(1).mean(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(metrics["reconstruction"], errors.mean().detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(metrics["kl"], kl.sum(1).mean().detach(), rtol=1e-5, atol=1e-5)


def test_evaluation_is_the_negative_elbo_for_any_kl_weight(images: Tensor) -> None:
    model = make_vae(beta=9.0, kl_warmup_epochs=50.0)
    errors, kl = compute_reference_loss(model, images)
    torch.manual_seed(2)
    with torch.no_grad():
        scores = model.evaluate([{"image": images}])
    assert scores["negative_elbo"] == pytest.approx((errors + kl.sum(1)).mean().item(), rel=1e-5)
    assert scores["reconstruction"] + scores["kl"] == pytest.approx(scores["negative_elbo"], rel=1e-6)


def test_scores_do_not_depend_on_the_batch_size(images: Tensor) -> None:
    model = make_vae()
    with torch.no_grad():
        model.log_variance.bias.fill_(-40.0)  # almost no noise
        model.log_variance.weight.zero_()
        whole = model.evaluate([{"image": images}])
        parts = model.evaluate([{"image": images[:5]}, {"image": images[5:]}])
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_kl_weight_warms_up_to_beta() -> None:
    model = make_vae(beta=2.0, kl_warmup_epochs=2.5)
    weights = [model.kl_weight(Clock(step, 100, 10)) for step in range(1, 41)]
    assert weights[:25] == pytest.approx([2.0 * step / 25 for step in range(1, 26)])
    assert set(weights[25:]) == {2.0}
    assert make_vae(beta=2.0).kl_weight(Clock(1, 100, 10)) == 2.0


def test_loss_uses_the_kl_warmup(images: Tensor) -> None:
    model = make_vae(beta=2.0, kl_warmup_epochs=1.0)
    errors, kl = compute_reference_loss(model, images)
    torch.manual_seed(2)
    loss, _ = model.loss({"image": images}, CLOCK)  # in the middle of the warm-up: half of beta
    torch.testing.assert_close(loss, errors.mean() + 1.0 * kl.sum(1).mean(), rtol=1e-5, atol=1e-4)


def test_units_below_free_bits_have_no_gradient(images: Tensor) -> None:
    model = make_vae(free_bits=0.5)
    with torch.no_grad():
        model.mean.bias.copy_(torch.tensor([0.0, 0.0, 3.0, -3.0]))  # two informative units
    errors, kl = compute_reference_loss(model, images)
    units = kl.mean(0)
    assert (units < 0.5).tolist() == [True, True, False, False]
    torch.manual_seed(2)
    loss, metrics = model.loss({"image": images}, CLOCK)
    torch.testing.assert_close(loss, errors.mean() + units.clamp(min=0.5).sum(), rtol=1e-5, atol=1e-4)
    # The reported metric is the divergence without free bits.
    torch.testing.assert_close(metrics["kl"], units.sum().detach())
    (gradient,) = torch.autograd.grad(loss - errors.mean(), model.mean.bias, allow_unused=True)
    assert gradient[:2].abs().max() < 1e-4 < gradient[2:].abs().min()


def test_importance_weighted_loss_matches_the_paper(images: Tensor) -> None:
    """The bound is log of the mean of p(x, z) / q(z|x) over the samples (Burda et al. 2016, equation 8)."""
    model = make_vae(importance_samples=3)
    mean, log_variance = model.posterior(images)
    posterior, prior = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(4), torch.ones(4))
    torch.manual_seed(2)
    noise = torch.randn(7, 3, 4)
    ratios = []
    for sample in range(3):
        latents = posterior.mean + posterior.stddev * noise[:, sample]
        log_prior, log_posterior = prior.log_prob(latents).sum(1), posterior.log_prob(latents).sum(1)
        log_prob = bernoulli_log_likelihood(model.decoder(latents), images)
        ratios.append((log_prob + log_prior - log_posterior).exp().double())
    torch.manual_seed(2)
    loss, metrics = model.loss({"image": images}, CLOCK)
    expected = -torch.stack(ratios).mean(0).log().mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(metrics["kl"], kl_divergence(posterior, prior).sum(1).mean().detach())
    with torch.no_grad():
        scores = model.evaluate([{"image": images}])
    assert scores["negative_bound"] < scores["negative_elbo"]


def test_total_correlation_is_added_to_the_kl_divergence(images: Tensor) -> None:
    losses = []
    for weight in (1.0, 3.0):
        model = make_vae(beta=2.0, total_correlation=weight)
        torch.manual_seed(2)
        loss, metrics = model.loss({"image": images}, CLOCK)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1] - losses[0], 2.0 * 2.0 * metrics["total_correlation"])


@pytest.mark.parametrize("pixels", ["drawn", "fixed"])
def test_bits_are_both_input_and_target(pixels: str, images: Tensor) -> None:
    model = make_vae(pixels=pixels)
    seen: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(2):
        model.loss({"image": images}, CLOCK)
    assert all(set(bits.unique().tolist()) == {0.0, 1.0} for bits in seen)
    assert torch.equal(seen[0], seen[1]) == (pixels == "fixed")


@pytest.mark.parametrize("network", ["conv", "resnet"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian"])
def test_networks_and_likelihoods_train_and_sample(network: str, likelihood: str, images: Tensor) -> None:
    model = make_vae(network=network, likelihood=likelihood, channels=[3, 4])
    loss, _ = model.loss({"image": images}, CLOCK)
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    with torch.no_grad():
        samples = model.sample(5)
    assert samples.shape == (5, *IMAGE_SHAPE)
    assert samples.min() >= 0
    assert samples.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "transformer"}, "model.network=transformer: must be one of dense, conv, resnet"),
        ({"pixels": "grey"}, "model.pixels=grey: must be one of gray, drawn, fixed"),
        ({"likelihood": "poisson"}, "model.likelihood=poisson: must be one of bernoulli"),
        (
            {"likelihood": "gaussian", "pixels": "drawn"},
            "model.likelihood=gaussian: must be bernoulli unless model.pixels=gray",
        ),
        ({"importance_samples": 0}, "model.importance_samples=0: must be at least 1"),
        (
            {"importance_samples": 2, "free_bits": 0.5},
            "model.free_bits=0.5: must be 0 if model.importance_samples",
        ),
        ({"importance_samples": 2, "total_correlation": 4.0}, "model.total_correlation=4.0: must be 1"),
        ({"channels": []}, "model.channels="),
    ],
)
def test_invalid_options_are_rejected_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_vae(**changes)


def test_diagnosis_warns_of_a_collapsed_posterior() -> None:
    model = make_vae()
    warning = model.diagnose({"loss": 206.0, "kl": 0.004})
    assert warning is not None
    assert "posterior collapse: the KL divergence is 0.004 nats" in warning
    assert model.diagnose({"loss": 100.0, "kl": 20.0}) is None


def test_kl_is_accurate_in_bf16(images: Tensor) -> None:
    model = make_vae()
    exact = model.loss({"image": images}, CLOCK)[1]["kl"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics = model.loss({"image": images}, CLOCK)[1]["kl"]
    assert metrics.dtype == torch.float32
    assert metrics.item() == pytest.approx(exact.item(), rel=0.03)


def test_samples_come_from_the_prior_and_reconstructions_from_the_mean(images: Tensor) -> None:
    model = make_vae().eval()
    with torch.no_grad():
        torch.manual_seed(3)
        drawn = model.sample(9)
        torch.manual_seed(3)
        torch.testing.assert_close(drawn, model.decode(torch.randn(9, 4)))
        torch.testing.assert_close(model.reconstruct(images), model.decode(model.posterior(images)[0]))
        assert_same(model.encode({"image": images}), model.posterior(images)[0])


def test_previews_and_gallery_have_valid_range_and_channels(images: Tensor) -> None:
    model = make_vae().eval()
    with torch.no_grad():
        all_images = {**model.preview({"image": images}), **model.render_gallery({"image": images})}
    assert {"samples", "reconstructions", "interpolation", "traversal"} <= set(all_images)
    for image in all_images.values():
        assert image.shape[-3] == 1
        assert image.min() >= 0
        assert image.max() <= 1
    assert all_images["interpolation"].ndim == all_images["traversal"].ndim == 4
    assert all_images["samples"].ndim == all_images["reconstructions"].ndim == 3


def test_vae_learns_digits_in_a_few_hundred_steps() -> None:
    learner = train_on_digits("vae", steps=300)
    scores = evaluate_on_digits(learner)
    model = learner.technique
    assert isinstance(model, VariationalAutoencoder)
    images = load_digits().test.streams["image"]
    assert isinstance(images, Tensor)
    # The mean image is the best reconstruction that does not depend on the input.
    mean = (load_digits().train.streams["image"].float() / 255).mean(0).clamp(1e-4, 1 - 1e-4)  # type: ignore[union-attr]
    mean_image_nll = (
        -bernoulli_log_likelihood(mean.logit().expand(len(images), -1, -1, -1), images / 255).mean().item()
    )
    assert scores["negative_elbo"] < 0.75 * mean_image_nll
    assert scores["active_units"] >= 5
    with torch.no_grad():
        back = model.reconstruct(images[:200] / 255)
    assert (back - images[:200] / 255).square().mean().item() < 0.6 * mean_image_mse()
