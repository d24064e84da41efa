"""Help of a choice: its keys, values and comments; versions."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from genexp.cli.help import LINE_WIDTH, build_help_page, list_completions
from genexp.config import find_config_dir
from genexp.errors import ConfigError
from genexp.train import parse_command_line
from tests.support.compose import compose_config

CHOICES = [
    f"{path.parent.name}={path.stem}"
    for group in ("model", "dataset", "optimizer", "trainer", "device")
    for path in sorted((find_config_dir() / group).glob("*.yaml"))
]


def build_page(*arguments: str) -> str:
    page = build_help_page(["--help", *arguments])
    assert page is not None
    return page


@pytest.mark.parametrize("choice", CHOICES)
def test_help_of_a_choice_lists_its_keys(choice: str) -> None:
    page, group = build_page(choice), choice.partition("=")[0]
    assert max(map(len, page.splitlines())) <= LINE_WIDTH
    listed = re.findall(rf"^  {group}\.(\w+)=", page, flags=re.MULTILINE)
    keys = set(compose_config(choice)[group]) - {"name", "recipe"}
    assert sorted(listed) == sorted(keys)


def test_help_shows_values_with_the_recommendations_of_the_model() -> None:
    page = build_page("trainer=default", "model=kmeans", "optimizer=adam")
    assert "  trainer.epochs=300\n" in page
    assert "  trainer.batch_size=null " in page
    assert "  optimizer.betas=[0.9,0.999]\n" in page


def test_help_of_a_preset_has_its_values_and_the_keys_of_its_base() -> None:
    page = build_page("trainer=quick", "model=kmeans")
    assert "  trainer.epochs=30\n" in page
    assert "  trainer.deterministic=false " in page


def test_help_joins_comments_of_several_lines() -> None:
    text = re.sub(r"\n +(?!trainer)", " ", build_page("trainer=default"))
    assert re.search(r"trainer\.precision=\w+ +fp32 or bf16\. On a CPU .* auto, amx and bf32 are fp32\.", text)


def test_help_finds_choices_of_a_config_dir(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# Mine.\nname: vae\nlatent: 3  # few\n")
    page = build_page("model=mine", f"--config-dir={tmp_path}")
    assert page.splitlines() == ["model=mine", "Mine.", f"{'  model.latent=3':<32}few"]


def test_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model=vea: unknown\. Did you mean vae\?"):
        build_page("model=vea")


def test_versions_name_the_program_and_its_libraries() -> None:
    page = build_help_page(["--version"])
    assert page is not None
    assert version("torch") in page
    assert version("hydra-core") in page


def test_tab_completes_directories_of_runs_and_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in ("outputs/runs/vae/2026-01", "outputs/runs/vae/2026-02", "outputs/sweeps/1", "other"):
        Path(directory).mkdir(parents=True)
    for run in Path("outputs/runs/vae").iterdir():
        (run / "config.yaml").touch()
    Path("outputs/sweeps/1/sweep.json").touch()
    parser, _ = parse_command_line([])
    for line, expected in {
        "genexp resume=": ["resume=other/", "resume=outputs/"],
        "genexp model=vae resume=out": ["resume=outputs/"],
        "genexp resume=outputs/runs/vae/": ["resume=outputs/runs/vae/2026-01", "resume=outputs/runs/vae/2026-02"],
        "genexp trainer.init_from=outputs/runs/v": ["trainer.init_from=outputs/runs/vae/"],
        "genexp -m sweep.resume=outputs/sweeps/": ["sweep.resume=outputs/sweeps/1"],
        "genexp resume=missing/": [],
        "genexp --plu": ["--plugin"],
        "genexp model=va": [],
        "genexp ": [],
        "": [],
    }.items():
        assert list_completions(line, parser) == expected, line
