"""Flow matching: loss, samplers, guidance, optimal transport and figures."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.technique import Clock
from genexp.techniques.flow_matching import (
    SAMPLERS,
    TIME_DISTRIBUTIONS,
    FlowMatching,
    FlowMatchingConfig,
    pair_with_images,
)
from tests.support.command import get_error_line, run_genexp
from tests.support.compose import compose_values, make_tiny_overrides
from tests.support.images import make_image_batch, make_image_dataset

CLOCK = Clock(1, 10, 5)
SHAPE = (1, 8, 8)
pytestmark = pytest.mark.usefixtures("one_thread")


class RecordingNetwork(nn.Module):
    """Network that returns its images times its weight, plus the class, and records its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(1, 1)
        self.inputs: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, images: Tensor, times: Tensor, classes: Tensor) -> Tensor:
        self.inputs.append((images, times, classes))
        return images + classes[:, None, None, None]


def make_flow(*overrides: str, classes: int = 10, shape: tuple[int, int, int] = SHAPE) -> FlowMatching:
    """Return a small flow-matching technique with the values of its YAML file."""
    values = compose_values(*make_tiny_overrides("flow_matching"), *overrides)["model"]
    settings = {key: value for key, value in values.items() if key not in ("name", "recipe")}
    spec = DataSpec(
        "test", {"image": shape, "label": ()}, 100, tuple(f"class {index}" for index in range(classes))
    )
    torch.manual_seed(0)
    return FlowMatching(bind(FlowMatchingConfig, settings, "model"), spec)


def record_inputs(technique: FlowMatching) -> RecordingNetwork:
    """Replace the network of `technique`."""
    network = RecordingNetwork()
    technique.network = network
    return network


def test_loss_is_the_error_of_the_velocity_on_a_straight_path() -> None:
    technique, batch = make_flow("model.label_dropout=0"), make_image_batch(6, SHAPE)
    network = record_inputs(technique)
    torch.manual_seed(3)
    loss, _ = technique.loss(batch, CLOCK)
    torch.manual_seed(3)
    images = 2 * batch["image"] - 1
    noise, times = torch.randn_like(images), torch.rand(6)
    path = torch.lerp(noise, images, times[:, None, None, None])
    ((path_seen, times_seen, classes_seen),) = network.inputs
    torch.testing.assert_close(path_seen, path)
    assert torch.equal(times_seen, times)
    assert torch.equal(classes_seen, batch["label"])
    velocity = path + batch["label"][:, None, None, None]
    torch.testing.assert_close(loss, (velocity - (images - noise)).square().mean())


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_sampler_has_the_expected_order_and_number_of_evaluations(name: str, order: int) -> None:
    """For dx/dt = x·t the result is x·exp(1/2). Half the step divides the error by 2 or by 4."""
    calls: list[float] = []

    def velocity(images: Tensor, time: float) -> Tensor:
        calls.append(time)
        return images * time

    def integrate(num_steps: int) -> Tensor:
        images = torch.ones(1, dtype=torch.float64)
        for index in range(num_steps):
            images = SAMPLERS[name].step(velocity, images, index / num_steps, 1 / num_steps)
        return images

    exact = torch.tensor(0.5, dtype=torch.float64).exp()
    coarse, fine = (integrate(16) - exact).abs(), (integrate(32) - exact).abs()
    assert len(calls) == 48 * SAMPLERS[name].evaluations
    assert float(coarse / fine) == pytest.approx(2**order, rel=0.1)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampling_evaluates_the_network_as_often_as_set(name: str) -> None:
    technique = make_flow(f"model.sampler={name}", "model.function_evaluations=6")
    network = record_inputs(technique)
    assert technique.sample(4).shape == (4, *SHAPE)
    assert len(network.inputs) == 6


def test_guidance_extrapolates_from_the_null_class_through_the_class() -> None:
    images, classes = torch.zeros(2, *SHAPE), torch.tensor([1, 4])
    for weight, expected in ((1.0, [1.0, 4.0]), (0.0, [10.0, 10.0]), (3.0, [-17.0, -8.0])):
        technique = make_flow(f"model.guidance={weight}")
        network = record_inputs(technique)
        velocity = technique.guided_velocity(images, 0.5, classes)
        assert velocity[:, 0, 0, 0].tolist() == expected
        assert len(network.inputs[0][0]) == (2 if weight == 1 else 4)  # without guidance, one pass


def test_label_dropout_hides_this_fraction_of_the_classes() -> None:
    batch = {"image": torch.zeros(10_000, *SHAPE), "label": torch.arange(10_000) % 10}
    for probability in (0.0, 0.3):
        classes = make_flow(f"model.label_dropout={probability}").drop_labels(batch)
        is_dropped = classes == 10
        assert float(is_dropped.float().mean()) == pytest.approx(probability, abs=0.02)
        assert torch.equal(classes[~is_dropped], batch["label"][~is_dropped])


def test_optimal_transport_finds_the_pairs_of_least_distance() -> None:
    torch.manual_seed(0)
    noise, images = torch.randn(5, *SHAPE), torch.rand(5, *SHAPE)
    paired = pair_with_images(noise, images)
    costs = [(noise[list(order)] - images).square().sum() for order in itertools.permutations(range(5))]
    torch.testing.assert_close((paired - images).square().sum(), torch.stack(costs).min())


def test_optimal_transport_shortens_the_paths_of_the_loss() -> None:
    lengths = []
    for is_enabled in (False, True):
        technique = make_flow(f"model.optimal_transport={is_enabled}", "model.label_dropout=0")
        record_inputs(technique)
        torch.manual_seed(0)
        batch = {"image": torch.rand(64, 1, 2, 2), "label": torch.zeros(64, dtype=torch.long)}
        lengths.append(float(technique.loss(batch, CLOCK)[0]))
    assert lengths[1] < 0.8 * lengths[0]


def test_logit_normal_times_are_most_frequent_in_the_middle() -> None:
    torch.manual_seed(0)
    fractions = {}
    for name, draw in TIME_DISTRIBUTIONS.items():
        times = draw(20_000, torch.device("cpu"))
        assert 0 <= times.min() < times.max() <= 1
        fractions[name] = float(((times > 0.25) & (times < 0.75)).float().mean())
    assert fractions["uniform"] == pytest.approx(0.5, abs=0.02)
    assert fractions["logit_normal"] == pytest.approx(0.73, abs=0.02)


def test_samples_cycle_through_the_classes() -> None:
    technique = make_flow(classes=3)
    assert technique.cycle_labels(7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_unconditional_flow_needs_no_labels() -> None:
    technique = make_flow("model.conditional=false", "model.guidance=3", classes=0)
    network = record_inputs(technique)
    technique.loss({"image": torch.rand(4, *SHAPE)}, CLOCK)
    technique.sample(4)
    assert all(not classes.any() and len(classes) == 4 for _, _, classes in network.inputs)


def test_conditional_flow_requires_classes() -> None:
    with pytest.raises(ConfigError, match=r"model\.conditional=true: .*model\.conditional=false"):
        make_flow(classes=0)


def test_evaluation_scores_images_and_classes() -> None:
    technique = make_flow("model.evaluation_samples=1000", shape=(1, 28, 28)).eval()
    technique.prepare_evaluation(make_image_dataset(1000))
    with torch.no_grad():
        scores = technique.evaluate([make_image_batch(1000)])
    assert {"frechet_mnist-v1", "recall_mnist-v1", "coverage_mnist-v1", "label_accuracy_mnist-v1"} <= scores.keys()
    assert list(scores) == technique.list_metrics()
    assert technique.get_evaluation_options() == {"generated": 1000, "real": 1000}


def test_gallery_shows_the_way_from_noise_and_the_quality_of_each_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    technique = make_flow("model.compared_evaluations=[1,4,2]", shape=(1, 28, 28)).eval()
    technique.prepare_evaluation(make_image_dataset())
    drawn: list[dict[str, dict[int, float]]] = []

    def record_lines(lines: Any, **labels: str) -> Tensor:
        drawn.append(lines)
        return torch.zeros(3, 4, 4)

    monkeypatch.setattr("genexp.techniques.flow_matching.draw_lines", record_lines)
    with torch.no_grad():
        gallery = technique.render_gallery(make_image_batch(4))
    assert {name: list(line) for name, line in drawn[0].items()} == {
        "euler": [1, 2, 4],
        "midpoint": [2, 4],
        "heun": [2, 4],
    }
    frames = gallery["noise_to_images"]
    assert torch.equal(frames[-1], frames[-2])  # the result is held
    assert not torch.equal(frames[0], frames[-1])
    assert gallery["interpolation"].dim() == 4


@pytest.mark.parametrize(
    ("guidance", "precision", "recall", "is_diagnosed"),
    [(4.0, 0.95, 0.2, True), (4.0, 0.95, 0.7, False), (4.0, 0.3, 0.1, False), (1.0, 0.95, 0.2, False)],
)
def test_too_strong_guidance_is_diagnosed(
    guidance: float, precision: float, recall: float, is_diagnosed: bool
) -> None:
    metrics = {"loss": 0.2, "test/recall_mnist-v1": recall, "test/precision_mnist-v1": precision}
    warning = make_flow(f"model.guidance={guidance}").diagnose(metrics)
    assert (warning is not None and "Use a smaller model.guidance" in warning) == is_diagnosed
    assert make_flow(f"model.guidance={guidance}").diagnose({"loss": 0.2}) is None


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("width=12", "multiple of 8"),
        ("blocks=0", "at least 1"),
        ("label_dropout=1", "[0, 1)"),
        ("guidance=-1", "0 or more"),
        ("time_distribution=normal", "uniform"),
        ("sampler=rk4", "euler"),
        ("function_evaluations=3", "multiple of 2 with sampler=heun"),
        ("compared_evaluations=[0]", "at least 1"),
        ("evaluation_samples=5", "6 or more"),
    ],
)
def test_invalid_value_is_one_line(override: str, reason: str, tmp_path: Path) -> None:
    result = run_genexp("model=flow_matching", f"model.{override}", f"hydra.run.dir={tmp_path}")
    line = get_error_line(result, "genexp")
    assert f"model.{override.split('=')[0]}=" in line
    assert reason in line
