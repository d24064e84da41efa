"""Neural style transfer: losses, scales, colors and weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import genexp
from genexp.images.color import luminance
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from genexp.technique import Clock
from genexp.techniques.style_transfer import StyleTransfer, StyleTransferConfig, clamp_keep_gradient, gram_matrix
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.assertions import assert_same_run
from tests.support.command import format_run_dir_override, load_status, read_metrics_log, run_genexp
from tests.support.datasets import load_photographs
from tests.support.networks import write_weight_file

SMALL_RUN = ("model=style_transfer", "model.scales=[1.0]", "dataset.size=32", "device=cpu", "device.threads=1")
LBFGS = {"name": "lbfgs", "lr": 1.0, "max_iter": 1, "history_size": 10, "line_search_fn": None}
ADAM = {"name": "adam", "lr": 0.05, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}


def make_learner(optimizer: dict[str, Any], **changes: Any) -> tuple[Learner, list[dict[str, Tensor]]]:
    """Return an initialized learner with a random network, and the embedded photographs."""
    values: dict[str, Any] = {
        "weights": "random",
        "equalize_layers": False,
        "pooling": "max",
        "content_loss": "mse",
        "content_loss_options": {},
        "style_loss": "gram",
        "style_loss_options": {},
        "content_layers": ["conv_4"],
        "style_layers": ["conv_1", "conv_2", "conv_3"],
        "content_weight": 1.0,
        "style_weight": 1e5,
        "variation_weight": 0.0,
        "scales": [1.0],
        "preserve_color": "none",
        **changes,
    }
    dataset = load_photographs()
    technique = StyleTransfer(StyleTransferConfig(**values), dataset.spec)
    torch.manual_seed(0)
    plan = plan_optimizers({**optimizer, "schedule": "constant", "warmup_steps": 0, "decay_start": 0.0})
    data = [{name: stream / 255 for name, stream in dataset.train.streams.items() if isinstance(stream, Tensor)}]
    technique.prepare_evaluation(dataset)
    technique.initialize(data)
    return Learner(technique, plan, StepSettings(), torch.device("cpu")), data


def run_steps(learner: Learner, data: list[dict[str, Tensor]], steps: int) -> list[float]:
    return [float(learner.step(data[0], data, Clock(step, steps, 1))["loss"]) for step in range(1, steps + 1)]


ONE_LAYER = ("model.content_layers=[conv_1]", "model.style_layers=[conv_1]", "trainer.max_steps=2")


def test_weights_are_loaded_from_a_file(tmp_path: Path) -> None:
    weight_file = write_weight_file(tmp_path / "vgg.pth")
    result = run_genexp(
        *SMALL_RUN,
        *ONE_LAYER,
        f"model.weights={weight_file}",
        "model.equalize_layers=false",
        format_run_dir_override(tmp_path / "run"),
    )
    assert result.exit_code == 0, result.stderr
    assert {"content", "style"} < set(read_metrics_log(tmp_path / "run")[0])
    assert not load_status(tmp_path / "run")["warnings"]
    technique = genexp.load_run(tmp_path / "run").technique
    weights = technique.get_parameter("features.layers.conv_1.weight")
    assert torch.equal(weights, torch.load(weight_file)["features.0.weight"])
    # No checkpoint contains the frozen weights, so a run cannot continue with others.
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        names = load_checkpoint(path)["technique"].keys()
        assert [name for name in names if name.startswith("features.")] == ["features.fingerprint"]
    write_weight_file(weight_file)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    commands = (
        run_genexp(f"resume={tmp_path / 'run'}", "trainer.max_steps=4"),
        run_genexp(
            *SMALL_RUN,
            *ONE_LAYER,
            f"model.weights={weight_file}",
            "model.equalize_layers=false",
            f"trainer.init_from={tmp_path / 'run'}",
            format_run_dir_override(tmp_path / "other"),
        ),
    )
    for command in commands:
        assert command.exit_code == 1
        message = f"genexp: model.weights={weight_file}: not the weights that the run was trained with. "
        assert message in command.stderr
        assert "Traceback" not in command.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()} == before


def test_frozen_weights_in_checkpoints_of_earlier_versions_are_ignored(tmp_path: Path) -> None:
    settings = (*SMALL_RUN, *ONE_LAYER, "model.weights=random", format_run_dir_override(tmp_path))
    assert run_genexp(*settings).exit_code == 0
    first = genexp.load_run(tmp_path)
    (path,) = (tmp_path / "checkpoints").iterdir()
    content = load_checkpoint(path)
    del content["technique"]["features.fingerprint"], content["format"]
    content["technique"]["features.layers.conv_1.weight"] = torch.ones(64, 3, 3, 3)
    save_checkpoint(path, content)
    second = genexp.load_run(tmp_path)
    assert isinstance(first.technique, StyleTransfer)
    assert isinstance(second.technique, StyleTransfer)
    assert torch.equal(first.technique.stylize(), second.technique.stylize())
    weights = [run.technique.get_parameter("features.layers.conv_1.weight") for run in (first, second)]
    assert torch.equal(*weights)


def test_random_weights_are_marked_in_metrics_and_warnings(tmp_path: Path) -> None:
    result = run_genexp(
        *SMALL_RUN, "model.weights=random", "trainer.max_steps=2", format_run_dir_override(tmp_path)
    )
    assert result.exit_code == 0, result.stderr
    assert all("content_random" in line and "style_random" in line for line in read_metrics_log(tmp_path))
    (warning,) = load_status(tmp_path)["warnings"]
    assert warning.startswith("model.weights=random")
    assert "model.weights=random" in (tmp_path / "train.log").read_text()
    assert (tmp_path / "figures" / "stylized.png").is_file()
    with Image.open(tmp_path / "stylized.gif") as animation:
        animation.seek(1)


def test_gram_matrix_is_normalized_by_the_number_of_elements() -> None:
    features = torch.randn(1, 5, 3, 4)
    flat = features.view(5, 12)
    torch.testing.assert_close(gram_matrix(features)[0], flat @ flat.T / (1 * 5 * 3 * 4))


def test_gram_matrix_and_its_gradient_keep_channels_last() -> None:
    features = torch.rand(1, 5, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    last = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    plain, other = (torch.autograd.grad(gram_matrix(maps).square().sum(), maps)[0] for maps in (features, last))
    torch.testing.assert_close(gram_matrix(last), gram_matrix(features))
    torch.testing.assert_close(other, plain)
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_clamp_gradient_never_leads_out_of_range() -> None:
    values = torch.tensor([-1.0, -1.0, 0.5, 2.0, 2.0], requires_grad=True)
    image = clamp_keep_gradient(values)
    assert image.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (image * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, -1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("optimizer", [LBFGS, ADAM], ids=["lbfgs", "adam"])
def test_loss_decreases_and_stays_low(optimizer: dict[str, Any]) -> None:
    learner, data = make_learner(optimizer)
    loss_values = run_steps(learner, data, 60)
    assert loss_values[-1] < 0.2 * loss_values[0]
    assert max(loss_values[30:]) < 2 * min(
        loss_values[30:]
    )  # L-BFGS diverges here if the image is clamped in place
    assert all(weight.grad is None for weight in learner.technique.get_submodule("features").parameters())


def test_image_is_initialized_with_the_content() -> None:
    learner, data = make_learner(LBFGS)
    assert isinstance(learner.technique, StyleTransfer)
    assert torch.equal(learner.technique.stylize(), data[0]["content"])
    assert run_steps(learner, data, 1)[0] > 0
    assert not torch.equal(learner.technique.stylize(), data[0]["content"])


def test_each_scale_has_an_equal_part_of_the_run() -> None:
    learner, data = make_learner(LBFGS, scales=[0.25, 0.5, 1.0])
    names = [
        set(learner.step(data[0], data, Clock(step, 6, 1))) & set(learner.phase_by_loss) for step in range(1, 7)
    ]
    assert names == [{"scale_1_loss"}] * 2 + [{"scale_2_loss"}] * 2 + [{"scale_3_loss"}] * 2


def test_run_resumed_at_the_next_scale_equals_uninterrupted_run(tmp_path: Path) -> None:
    overrides = (*SMALL_RUN, "model.weights=random", "model.scales=[0.5,1.0]", "model.preserve_color=histogram")
    interval_overrides = ("trainer.epochs=6", "trainer.checkpoint_spacing=0", "trainer.keep_checkpoints=9")
    uninterrupted, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run_genexp(*overrides, *interval_overrides, format_run_dir_override(uninterrupted)).exit_code == 0
    shutil.copytree(uninterrupted, resumed)
    for file in list_checkpoints(resumed)[:3]:
        file.unlink()
    (resumed / "status.json").unlink()
    result = run_genexp(f"resume={resumed}")
    assert result.exit_code == 0, result.stderr
    assert_same_run(uninterrupted, resumed)


def test_luminance_mode_keeps_the_colors_of_the_content() -> None:
    learner, data = make_learner(LBFGS, preserve_color="luminance")
    run_steps(learner, data, 5)
    assert isinstance(learner.technique, StyleTransfer)
    image, content = learner.technique.stylize(), data[0]["content"]
    inside = ((image > 0) & (image < 1)).all(1, keepdim=True)
    color, before = image - luminance(image), content - luminance(content)
    torch.testing.assert_close((color * inside), (before * inside), atol=1e-5, rtol=0)
    assert (luminance(image) - luminance(content)).abs().mean() > 0.01


def test_too_small_image_error_gives_the_remedy(tmp_path: Path) -> None:
    result = run_genexp(*SMALL_RUN, "dataset.size=3", "model.weights=random", format_run_dir_override(tmp_path))
    assert result.exit_code == 1
    assert "too small for layer pool_4. Use a larger dataset.size" in result.stderr
