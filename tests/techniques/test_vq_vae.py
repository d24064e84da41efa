"""VQ-VAE: phases, codes, prior, scores and warnings."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.technique import Clock
from genexp.techniques.vq_vae import VQVAE, VQVAEConfig, perplexity, used_fraction
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.command import get_error_line, run_genexp
from tests.support.compose import compose_values, make_tiny_overrides
from tests.support.images import make_image_batch, make_image_dataset

SHAPE = (1, 8, 8)
AUTOENCODER_CLOCK, PRIOR_CLOCK = Clock(5, 10, 5), Clock(6, 10, 5)
QUANTIZERS = ("vq", "fsq")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_vq_vae(*overrides: str, shape: tuple[int, int, int] = SHAPE) -> VQVAE:
    """Return a small VQ-VAE with the values of its YAML file."""
    values = compose_values(*make_tiny_overrides("vq_vae"), *overrides)["model"]
    settings = {key: value for key, value in values.items() if key not in ("name", "recipe")}
    torch.manual_seed(0)
    return VQVAE(bind(VQVAEConfig, settings, "model"), DataSpec("test", {"image": shape}, 100))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_autoencoder_trains_first_and_the_prior_on_its_fixed_codes(quantizer: str) -> None:
    technique = make_vq_vae(f"model.quantizer={quantizer}")
    plan = plan_optimizers(compose_values("model=vq_vae")["optimizer"])
    learner = Learner(technique, plan, StepSettings(), torch.device("cpu"))
    changed: list[set[str]] = []
    for clock in (AUTOENCODER_CLOCK, PRIOR_CLOCK):
        before = copy.deepcopy(technique.state_dict())
        learner.step(make_image_batch(shape=SHAPE), [], clock)
        moved = {name for name, value in technique.state_dict().items() if not torch.equal(value, before[name])}
        changed.append({name.split(".")[0] for name in moved})
    codebook = {"quantizer"} if quantizer == "vq" else set()
    assert changed == [{"encoder", "decoder", *codebook}, {"prior"}]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_reconstructions_are_decoded_from_the_codes(quantizer: str) -> None:
    technique = make_vq_vae(f"model.quantizer={quantizer}", shape=(3, 11, 9)).eval()
    images = torch.rand(4, 3, 11, 9)
    with torch.no_grad():
        codes = technique.encode_codes(images)
        reconstructions = technique.reconstruct(images)
        torch.testing.assert_close(technique.decode_codes(codes), reconstructions)
        vectors = technique.quantizer(technique.encode_vectors(images)).vectors
        torch.testing.assert_close(technique.decode_logits(vectors).sigmoid(), reconstructions)
    assert reconstructions.shape == images.shape
    assert codes.shape == (4, technique.prior.length)


def test_codebook_is_initialized_from_images() -> None:
    technique = make_vq_vae()
    batch = make_image_batch(20, SHAPE)
    with torch.no_grad():
        technique.initialize([batch])
        vectors = technique.encode_vectors(batch["image"]).flatten(0, 1)
        assert torch.cdist(technique.quantizer.look_up(torch.arange(8)), vectors).min(1).values.max() < 1e-3


def test_perplexity_and_used_fraction() -> None:
    shares = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert float(perplexity(shares)) == pytest.approx(2)
    assert float(used_fraction(shares)) == 0.5


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_evaluation_scores_reconstructions_codes_and_samples(quantizer: str) -> None:
    overrides = (f"model.quantizer={quantizer}", "model.evaluation_samples=1000")
    technique = make_vq_vae(*overrides, shape=(1, 28, 28)).eval()
    technique.prepare_evaluation(make_image_dataset(1000))
    with torch.no_grad():
        scores = technique.evaluate([make_image_batch(600), make_image_batch(400)])
        preview = technique.preview(make_image_batch(4))
    assert {"frechet_mnist-v1", "mse", "psnr", "reconstruction_frechet", "recall_mnist-v1"} <= scores.keys()
    assert list(scores) == technique.list_metrics()
    assert technique.get_evaluation_options() == {"generated": 1000, "real": 1000}
    assert 1 <= scores["perplexity"] <= technique.quantizer.num_codes
    assert 0 < scores["codes_used"] <= 1
    assert scores["prior_nll"] > 0
    assert preview.keys() == {"samples", "reconstructions", "codebook"}
    assert all(0 <= image.min() <= image.max() <= 1 for image in preview.values())


def test_codebook_picture_shows_the_mean_region_of_each_code() -> None:
    technique = make_vq_vae()
    images = torch.zeros(2, 1, 8, 8)
    images[1] = 1
    codes = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1]])
    technique.encode_codes = lambda images: codes  # type: ignore[method-assign]
    picture = technique.render_codebook(images)[0]
    cell = 12 + 2  # three times the 4 pixels of a position, and the line between cells
    first, second, unused = (picture[2 : 2 + 12, 2 + cell * index :][:, :12] for index in range(3))
    assert float(first[6, 6]) == pytest.approx(0.2)  # one of five
    assert float(second[6, 6]) == 1
    assert (unused == 0.5).all()


def test_dead_codes_are_diagnosed() -> None:
    technique = make_vq_vae()
    warning = technique.diagnose({"test/codes_used": 0.3})
    assert warning is not None
    assert "model.codes" in warning
    assert technique.diagnose({"test/codes_used": 0.8}) is None
    assert technique.diagnose({"codes_used": 0.05}) is None  # of a batch
    other = make_vq_vae("model.quantizer=fsq").diagnose({"test/codes_used": 0.3})
    assert other is not None
    assert "model.levels" in other


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("channels=[]", "positive"),
        ("blocks=-1", "0 or more"),
        ("loss=l2", "mse"),
        ("quantizer=rvq", "vq, fsq"),
        ("codes=1", "at least 2"),
        ("code_size=0", "at least 1"),
        ("commitment=-1", "0 or more"),
        ("decay=1", "[0, 1)"),
        ("restart_threshold=-1", "0 or more"),
        ("levels=[8,2]", "3 or more"),
        ("prior_start=0", "must be a fraction of the run in (0, 1)"),
        ("prior_width=10", "multiple of prior_heads=4"),
        ("prior_layers=0", "at least 1"),
        ("evaluation_samples=5", "6 or more"),
        ("channels=[8,8,8,8,8,8]", "too small"),
    ],
)
def test_invalid_value_is_one_line(override: str, reason: str, tmp_path: Path) -> None:
    line = get_error_line(run_genexp("model=vq_vae", f"model.{override}", f"hydra.run.dir={tmp_path}"), "genexp")
    assert reason in line
    assert f"model.{override.split('=')[0]}" in line or "too small" in line
