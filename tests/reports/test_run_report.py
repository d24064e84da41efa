"""Report of one run: content, escaping, damaged files, size and rendering."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
from pathlib import Path

import pytest

from genexp.cli import report
from genexp.reports import compare, write_run_report, write_sweep_report
from tests.support.browser import Browser, needs_browser
from tests.support.command import (
    FIGURES_ON,
    format_run_dir_override,
    get_error_line,
    load_status,
    run_genexp,
    run_main,
)
from tests.support.compose import compose_config, make_tiny_overrides
from tests.support.report_pages import HTML_INJECTION, assert_readable, read_charts, save_screenshot
from tests.support.run_dirs import make_run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a short run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    result = run_genexp(
        *make_tiny_overrides("vae"),
        FIGURES_ON,
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
    assert '<img src="previews/samples/' in text
    assert "data:image" not in text
    assert page.stat().st_size < 150_000
    (script,) = (run_dir / ".assets").iterdir()
    assert f'href=".assets/{script.name}"' in text
    assert load_status(run_dir)["environment"]["torch"] in text
    assert not list(run_dir.glob("*.tmp"))


def test_report_loads_nothing_from_the_network(run_dir: Path) -> None:
    text = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", (run_dir / "report.html").read_text())
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert not re.findall(r"url\(|@import", text)


def test_values_that_differ_from_the_defaults_are_marked(run_dir: Path) -> None:
    configuration = read_report(run_dir).partition("<summary>Configuration</summary>")[2]
    marked = re.findall(r'<span class="overridden">([^<]*)</span> <small>default ([^<]*)</small>', configuration)
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
        FIGURES_ON,
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
    (run / "figures" / "interpolation.gif").write_bytes(b"")
    newest = max((run / "previews" / "samples").iterdir())
    newest.write_bytes(b"\x89PNG" + bytes(20))
    (run / "figures" / "prior_samples.png").write_bytes(b"\x89PN")
    text = write_run_report(run).read_text()
    assert "figures/interpolation.gif, figures/prior_samples.png" in text
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


def test_sweep_shares_one_script_and_a_single_run_has_its_own(tmp_path: Path) -> None:
    for job in "01":
        write_run_report(make_run_dir(tmp_path / "sweep" / job))
        assert (tmp_path / "sweep" / job / ".assets").is_dir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    page = write_run_report(make_run_dir(tmp_path / "sweep" / "2"))
    (script,) = (tmp_path / "sweep" / ".assets").iterdir()
    assert f'href="../.assets/{script.name}"' in page.read_text()
    assert not (tmp_path / "sweep" / "2" / ".assets").exists()


def test_assets_are_not_written_through_a_link(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (run / ".assets").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a link"):
        write_run_report(run)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_page_of_a_running_run_shows_progress_and_time_left(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run", state="running", step=10, total_steps=40, seconds=60.0)
    text = write_run_report(run, "running").read_text()
    assert "step 10 of 40, 25%, about 0:03:00 left" in text
    assert 'data-state="running"' in text


def test_command_writes_the_pages_of_a_sweep_and_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for job in "01":
        make_run_dir(Path("sweep", job), overrides={"seed": int(job)})
    Path("sweep/sweep.json").write_text("{}")
    result = run_main("genexp-report", report.main, "sweep", "sweep/0")
    assert (result.exit_code, result.stdout) == (0, "sweep/report.html\nsweep/0/report.html\n")
    assert Path("sweep/1/report.html").is_file()
    result = run_main("genexp-report", report.main, "sweep/0", "--single-file")
    assert '<link rel="stylesheet"' not in Path("sweep/0/report.html").read_text()
    for arguments in (("nothing",), (), ("sweep", "--bad"), ("sweep.json",)):
        result = run_main("genexp-report", report.main, *arguments)
        assert result.exit_code == 1
        assert get_error_line(result, "genexp-report")


@pytest.fixture(scope="module")
def static_dir(tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> Path:
    """Return a copy of the run that tests damage."""
    return Path(shutil.copytree(run_dir, tmp_path_factory.mktemp("damaged") / "run"))


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1300])
def test_page_is_readable(width: int, is_dark: bool, run_dir: Path, browser: Browser, tmp_path: Path) -> None:
    assert_readable(browser, run_dir / "report.html", width, is_dark=is_dark)
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == is_dark
    lines = browser.run("return getComputedStyle(document.querySelector('.chart .trace')).filter")
    assert lines == ("brightness(1.5)" if is_dark else "none"), "curves are lighter on a dark page"
    save_screenshot(browser, f"run_{width}_{is_dark}", tmp_path)


def set_value(browser: Browser, selector: str, value: object) -> None:
    """Set the value of a control as a user does."""
    browser.run(
        f"const control = document.querySelector('{selector}'); control.value = '{value}';"
        "for (const name of ['input', 'change']) control.dispatchEvent(new Event(name))"
    )


@pytest.mark.browser
@needs_browser
def test_controls_change_the_curves(run_dir: Path, browser: Browser) -> None:
    browser.set_viewport(1300, 900)
    browser.open(run_dir / "report.html")
    browser.run("sessionStorage.clear(); document.querySelector('.chart').scrollIntoView()")
    browser.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    chart = "document.querySelector('.chart')"
    assert browser.run(f"return {chart}.data.some((trace) => trace.name.startsWith('best: '))")
    steps = browser.run(f"return {chart}.data[0].x")
    set_value(browser, "#x-axis", browser.run("return document.querySelector('#x-axis').options[1].value"))
    epochs = browser.run(f"return {chart}.data[0].x")
    assert epochs[-1] == pytest.approx(2)
    assert steps[-1] > 2
    assert browser.run(f"return {chart}.layout.xaxis.title.text") == "epoch"
    set_value(browser, "#y-scale", "log")
    assert browser.run(f"return {chart}.layout.yaxis.type") == "log"
    raw = browser.run(f"return {chart}.data[0].y")
    set_value(browser, "#smoothing", "0.9")
    assert browser.run(f"return {chart}.data[0].y") != raw
    browser.open(run_dir / "report.html")  # as at a reload of the page of a running run
    assert browser.run("return document.querySelector('#y-scale').value") == "log"
    browser.run("sessionStorage.clear()")
    assert browser.read_errors() == []


@pytest.mark.browser
@needs_browser
def test_slider_shows_the_previews_and_charts_can_be_saved(run_dir: Path, browser: Browser) -> None:
    browser.set_viewport(1300, 900)
    browser.open(run_dir / "report.html")
    set_value(browser, "[data-frames]", 0)
    browser.wait("return document.querySelector('.hero img').src.endsWith('/00000000.png')")
    assert browser.run("return document.querySelector('.hero output').textContent") == "step 0"
    browser.wait(
        "const image = document.querySelector('.hero img'); return image.complete && image.naturalWidth > 0"
    )
    browser.run("document.querySelector('.chart').scrollIntoView()")
    browser.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    browser.run(
        "HTMLAnchorElement.prototype.click = function () { (window.saved ??= []).push(this.download) };"
        "document.querySelectorAll('.plot')[0].querySelectorAll('button').forEach((button) => button.click())"
    )
    browser.wait("return window.saved && window.saved.length === 2")
    assert sorted(browser.run("return window.saved")) == ["negative_elbo.csv", "negative_elbo.png"]
    browser.run("document.querySelector('[data-copy]').click()")
    assert browser.run("return getSelection().toString()").startswith("genexp model=vae")
    assert browser.read_errors() == []


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("content", [None, "", '#plotly{--part-0:"####"}', "hostile"])
def test_page_without_its_script_shows_the_figure(content: str | None, static_dir: Path, browser: Browser) -> None:
    """A script in the place of plotly.js does not run: it has another hash."""
    (script,) = (static_dir / ".assets").glob("*.css") if content is None else [static_dir / ".assets" / "x"]
    page = static_dir / "report.html"
    (name,) = re.findall(r'href="(\.assets/[^"]+)"', page.read_text())
    if content is None:
        script.unlink()
    else:
        code = base64.b64encode(gzip.compress(b"window.injected = 1; window.Plotly = {}")).decode()
        (static_dir / name).write_text(f'#plotly{{--part-0:"{code}"}}' if content == "hostile" else content)
    browser.open(page)
    assert browser.run("return document.body.className") == "without-plotly"
    browser.run("document.querySelector('.fallback').scrollIntoView()")
    browser.wait(
        "const image = document.querySelector('.fallback img'); return image.complete && image.naturalWidth > 0"
    )
    assert browser.run("return window.injected") is None
    errors = browser.read_errors()
    assert all("ERR_FILE_NOT_FOUND" in error or "Content Security Policy" in error for error in errors)
