"""HTML pages of hostile runs in a browser: nothing is injected, and the policy of a page blocks the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from genexp.recorders.latent_plots import write_latents_figure, write_latents_html
from genexp.reports import compare, write_run_report, write_sweep_report
from genexp.snapshot import FinalArtifacts
from tests.support.browser import Browser, needs_browser
from tests.support.report_pages import HOSTILE_TEXT, assert_nothing_injected
from tests.support.run_dirs import make_run_dir

pytestmark = [pytest.mark.browser, needs_browser]
HOSTILE_NAME = HOSTILE_TEXT.replace("/", "")[:120]  # also a valid name of a file


def make_hostile_run_dir(path: Path, seed: int = 0) -> Path:
    """Write the directory of a run with hostile text wherever a page shows text of a run."""
    text = f"{HOSTILE_TEXT} {seed % 2}"
    overrides = {
        "model.name": text,
        "dataset.name": text,
        "device.name": text,
        "optimizer.name": text,
        "trainer.objective": HOSTILE_TEXT,
        "seed": seed,
        "tags": [text],
        "notes": text,
    }
    run_dir = make_run_dir(
        path,
        {HOSTILE_TEXT: 0.1 + seed, "mse": 0.2},
        overrides=overrides,
        error=text if seed == 2 else None,
        state="failed" if seed == 2 else "finished",
        warnings=[text],
        environment={"device": text, text: text},
        data={text: text},
        train={text: 0.3},
    )
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["model"][HOSTILE_TEXT] = {HOSTILE_TEXT: [text]}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([text]))
    (run_dir / "figures").mkdir()
    for name in (
        f"{HOSTILE_NAME}.png",
        f"figures/{HOSTILE_NAME}.png",
        f"{HOSTILE_NAME}.gif",
        "javascript:injected=1.gif",
    ):
        Image.new("L", (8, 8)).save(run_dir / name)
        (run_dir / name).with_suffix(".html").write_text("")
    return run_dir


def test_report_of_a_hostile_run(browser: Browser, tmp_path: Path) -> None:
    run_dir = make_hostile_run_dir(tmp_path / HOSTILE_NAME, seed=2)
    page = write_run_report(run_dir)
    assert_nothing_injected(browser, page, own_links=2)
    links = browser.run("return [...document.querySelectorAll('a[href]')].map((link) => link.protocol)")
    assert links == ["file:"] * 2
    assert HOSTILE_TEXT in browser.run("return document.querySelector('h1').textContent")


def test_comparison_of_hostile_runs(browser: Browser, tmp_path: Path) -> None:
    for seed in range(4):
        run_dir = make_hostile_run_dir(tmp_path / "sweep" / f"{seed}{HOSTILE_NAME}", seed)
        write_run_report(run_dir)
    write_sweep_report(compare([tmp_path / "sweep"]), tmp_path / "page.html")
    assert_nothing_injected(browser, tmp_path / "page.html", own_links=4)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_latents_of_hostile_classes(dimensions: int, browser: Browser, tmp_path: Path) -> None:
    codes, labels = torch.randn(30, dimensions), torch.arange(30) % 2
    artifacts = FinalArtifacts(gallery={}, codes=codes, labels=labels, images=None)
    class_names = [HOSTILE_TEXT, r"$\frac{$"]
    write_latents_figure(tmp_path / "latents.png", artifacts, [r"$\frac{$", "<b>"], r"$\frac{$")
    write_latents_html(tmp_path / "latents.html", artifacts, class_names, HOSTILE_TEXT, tmp_path / ".assets")
    assert_nothing_injected(browser, tmp_path / "latents.html")
    browser.wait("return document.querySelectorAll('.legendtext').length === 2")
    assert browser.run("return document.querySelector('.legendtext').textContent") == HOSTILE_TEXT
    assert browser.run("return document.querySelector('h1').textContent") == HOSTILE_TEXT


ATTACKS = (
    "document.body.innerHTML += '<img src=x onerror=\"window.injected=1\">'",
    "const script = document.createElement('script'); script.textContent = 'window.injected=1';"
    "document.body.append(script)",
    "document.body.innerHTML += '<iframe srcdoc=\"<script>parent.injected=1</script>\"></iframe>'",
    "fetch('https://example.org/').then(() => { window.injected = 1 }, () => {})",
)


def test_policy_blocks_what_would_get_past_the_escaping(browser: Browser, tmp_path: Path) -> None:
    page = write_run_report(make_run_dir(tmp_path / "run"))
    artifacts = FinalArtifacts(gallery={}, codes=torch.randn(30, 2), labels=None, images=None)
    write_latents_html(tmp_path / "latents.html", artifacts, [], "title", tmp_path / ".assets")
    for path in (page, tmp_path / "latents.html"):
        browser.open(path)
        browser.read_errors()
        for attack in ATTACKS:
            browser.run(attack)
            browser.wait("return true")
            assert browser.run("return window.injected") is None
            assert any("Content Security Policy" in error for error in browser.read_errors()), attack
