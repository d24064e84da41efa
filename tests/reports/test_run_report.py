"""Report of one run: content, escaping, damaged files, size and rendering."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from genexp.reports import compare, write_run_report, write_sweep_report
from tests.support.browser import Browser, needs_browser
from tests.support.command import format_run_dir_override, load_status, run_genexp
from tests.support.compose import compose_config, make_tiny_overrides
from tests.support.report_pages import HTML_INJECTION, read_charts, save_screenshot
from tests.support.run_dirs import make_run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    result = run_genexp(
        *make_tiny_overrides("vae"),
        "trainer.epochs=2",
        "optimizer.lr=7e-4",
        f"notes='{HTML_INJECTION}'",
        format_run_dir_override(path),
    )
    assert result.exit_code == 0, result.stderr
    assert str(path / "report.html") in result.stdout
    return path


def test_run_report_contains_curves_images_and_environment(run_dir: Path) -> None:
    page = run_dir / "report.html"
    text = page.read_text()
    assert {chart["title"] for chart in read_charts(page)} >= {"negative_elbo", "loss", "psnr"}
    for name in ("samples", "interpolation", "traversal"):
        assert f'alt="{name}"' in text
    assert "data:image/gif;base64," in text
    assert load_status(run_dir)["environment"]["torch"] in text
    assert not list(run_dir.glob("*.tmp"))


def test_report_loads_nothing_from_the_network(run_dir: Path) -> None:
    text = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", (run_dir / "report.html").read_text())
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert not re.findall(r"url\(|@import", text)


def test_values_that_differ_from_the_defaults_are_marked(run_dir: Path) -> None:
    marked = re.findall(
        r'<span class="overridden">([^<]*)</span> <small>default ([^<]*)</small>', read_report(run_dir)
    )
    assert ("0.0007", "0.001") in marked
    assert ("2", str(compose_config("model=vae").trainer.epochs)) in marked
    assert len(marked) < 15


def read_report(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text()


def test_user_text_is_escaped(run_dir: Path) -> None:
    assert "&lt;/script&gt;&lt;img src=x" in read_report(run_dir)
    assert "<img src=x" not in read_report(run_dir)


@pytest.mark.parametrize(
    ("overrides", "state", "message"),
    [
        (("optimizer.lr=1e25",), "failed", "Use a smaller optimizer.lr"),
        (("trainer.time_budget=1e-9",), "stopped", "of 10"),
    ],
)
def test_report_is_written_for_stopped_and_failed_runs(
    overrides: tuple[str, ...], state: str, message: str, tmp_path: Path
) -> None:
    run_genexp(
        *make_tiny_overrides("stacked_autoencoder"),
        "trainer.epochs=2",
        *overrides,
        format_run_dir_override(tmp_path),
    )
    assert load_status(tmp_path)["state"] == state
    text = read_report(tmp_path)
    assert f'<span class="state {state}">' in text
    assert message in text


def test_report_of_a_failed_run_shows_error_and_warnings(tmp_path: Path) -> None:
    run = make_run_dir(
        tmp_path / "run", state="failed", error=f"broken {HTML_INJECTION}", warnings=["the loss rose"]
    )
    text = write_run_report(run).read_text()
    assert "broken &lt;/script&gt;" in text
    assert "the loss rose" in text


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, "", '{"a": [', '{"a": 1}\n', "\0\0\n"])
def test_report_tolerates_partly_written_files(name: str, content: str | None, tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "sweep" / "0")
    make_run_dir(tmp_path / "sweep" / "1", overrides={"model.latent": 3})
    (run / ".hydra").mkdir()
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert write_run_report(run).is_file()
    write_sweep_report(compare([tmp_path / "sweep"]), tmp_path / "report.html")
    assert f">{tmp_path / 'sweep'}<" in (tmp_path / "report.html").read_text()  # the location of the runs


def test_damaged_images_are_skipped(run_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    gif = run / "samples.gif"
    gif.write_bytes(b"")
    (run / "figures" / "prior_samples.png").write_bytes(b"\x89PN")
    text = write_run_report(run).read_text()
    assert "samples.gif, figures/prior_samples.png" in text
    write_sweep_report(compare([run]), tmp_path / "report.html")


def test_metric_measured_once_has_no_curve(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        "".join(line for line in lines if '"test"' not in line or '"step": 40' in line)
    )
    assert [chart["title"] for chart in read_charts(write_run_report(run))] == ["loss"]
    write_sweep_report(compare([run]), tmp_path / "report.html")
    assert [chart["title"] for chart in read_charts(tmp_path / "report.html")] == ["loss, train"]


def test_report_size_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run", steps=20_000)
    page = write_run_report(run)
    assert max(len(trace["x"]) for chart in read_charts(page) for trace in chart["traces"]) <= 1500
    assert page.stat().st_size < 3_000_000


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("viewport", [(1360, 900, False), (390, 844, True)], ids=["desktop", "phone in the dark"])
def test_browser_renders_a_run_report(
    viewport: tuple[int, int, bool], run_dir: Path, browser: Browser, tmp_path: Path
) -> None:
    width, height, dark = viewport
    browser.set_viewport(width, height, is_dark=dark)
    browser.open(run_dir / "report.html")
    for position in range(len(read_charts(run_dir / "report.html"))):
        browser.run(f"document.querySelectorAll('.chart')[{position}].scrollIntoView()")
        browser.wait(f"return document.querySelectorAll('.chart')[{position}].dataset.drawn === 'yes'")
    assert browser.read_errors() == []
    assert browser.run("return document.documentElement.scrollWidth") == width
    assert browser.run("return [...document.images].every((image) => image.naturalWidth > 0 || !image.complete)")
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == dark
    save_screenshot(browser, f"run_{width}", tmp_path)
