"""`report.html`: what it holds, how much it weighs, and that a browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from genexp.recorders.gif import append_frame
from genexp.reports import compare, write_run_report, write_sweep_report
from genexp.reports.curves import downsample_min_max, resample_to_grid
from genexp.reports.embedded_images import drop_gif_frames
from genexp.run_dir.metrics import LoggedCurve
from tests.support.browser import Browser, needs_browser, start_browser
from tests.support.command import REPO_ROOT, load_status, run_dir_override, run_genexp
from tests.support.compose import tiny_overrides
from tests.support.images import read_frames
from tests.support.run_dirs import make_run_dir
from tests.support.snapshots import make_image

LARGE_SWEEP_RUNS = 200
HTML_INJECTION = '</script><img src=x onerror="document.title=1"><b>&amp;'


def read_charts(page: Path) -> list[dict]:
    """Return the data of the charts of a page."""
    (text,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', page.read_text(), re.DOTALL
    )
    content: list[dict] = json.loads(text)
    return content


def write_noise_image(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a picture that packs badly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(path)


def make_sweep_dir(sweep_dir: Path, rates: int, seeds: int, steps: int = 40) -> Path:
    """Write a sweep over learning rates, latents and seeds, with pictures."""
    number = 0
    for rate in range(rates):
        for seed in range(seeds):
            mse = 0.1 + 0.01 * rate + 0.001 * seed
            settings = {"optimizer.lr": 1e-4 * 2**rate, "model.latent": 2 + rate % 3, "seed": seed}
            run = make_run_dir(
                sweep_dir / str(number), {"mse": mse, "psnr": 1 / mse}, overrides=settings, steps=steps
            )
            write_noise_image(run / "figures" / "samples.png", (256, 256), number)
            number += 1
    return sweep_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short run of the program."""
    path = tmp_path_factory.mktemp("runs") / "run"
    result = run_genexp(
        *tiny_overrides("vae"),
        "trainer.epochs=2",
        "optimizer.lr=7e-4",
        f"notes='{HTML_INJECTION}'",
        run_dir_override(path),
    )
    assert result.exit_code == 0, result.stderr
    assert str(path / "report.html") in result.stdout
    return path


def test_run_report_contains_curves_images_and_environment(run_dir: Path) -> None:
    page = run_dir / "report.html"
    text = page.read_text()
    assert {chart["title"] for chart in read_charts(page)} >= {"negative_elbo", "loss", "psnr"}
    for name in ("samples", "interpolation", "prior_samples"):
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
    recipe = yaml.safe_load((REPO_ROOT / "conf" / "model" / "vae.yaml").read_text())["recipe"]
    assert ("2", str(recipe["epochs"])) in marked
    assert len(marked) < 15


def read_report(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text()


def test_user_text_is_escaped(run_dir: Path) -> None:
    assert "&lt;/script&gt;&lt;img src=x" in read_report(run_dir)
    assert "<img src=x" not in read_report(run_dir)


@pytest.mark.parametrize(
    ("overrides", "state", "message"),
    [
        (("optimizer.lr=1e25",), "failed", "lower optimizer.lr"),
        (("trainer.time_budget=1e-9",), "stopped", "of 10"),
    ],
)
def test_report_is_written_for_stopped_and_failed_runs(
    overrides: tuple[str, ...], state: str, message: str, tmp_path: Path
) -> None:
    run_genexp(*tiny_overrides("stacked_autoencoder"), "trainer.epochs=2", *overrides, run_dir_override(tmp_path))
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
    assert f">{tmp_path / 'sweep'}<" in (tmp_path / "report.html").read_text()  # where the runs are


def test_damaged_images_are_skipped(run_dir: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    gif = run / "samples.gif"
    gif.write_bytes(b"")
    (run / "figures" / "prior_samples.png").write_bytes(b"\x89PN")
    text = write_run_report(run).read_text()
    assert "samples.gif, figures/prior_samples.png" in text
    write_sweep_report(compare([run]), tmp_path / "report.html")


def test_downsample_min_max_keeps_every_peak() -> None:
    values = np.zeros(100_000)
    values[[31_234, 77_777]] = 5, -5
    values[500:900] = np.nan
    steps = np.arange(1, 100_001)
    kept, heights = downsample_min_max(LoggedCurve(steps, steps, values), 1000)
    assert len(kept) <= 1000
    assert (np.nanmax(heights), np.nanmin(heights)) == (5, -5)
    assert {31_235, 77_778} <= set(kept.tolist())
    assert np.all(np.diff(kept) > 0)
    assert np.isnan(heights).any()


def test_metric_measured_once_has_no_curve(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        "".join(line for line in lines if '"test"' not in line or '"step": 40' in line)
    )
    assert [chart["title"] for chart in read_charts(write_run_report(run))] == ["loss"]
    write_sweep_report(compare([run]), tmp_path / "report.html")
    assert [chart["title"] for chart in read_charts(tmp_path / "report.html")] == ["loss, train"]


def test_runs_of_different_lengths_are_resampled_to_one_grid() -> None:
    short, long = (LoggedCurve(np.arange(1, n + 1), np.ones(n), np.full(n, float(n))) for n in (10, 1000))
    steps, values = resample_to_grid([short, long], 50)
    assert values.shape == (2, 50) == (2, len(steps))
    assert np.isfinite(values[1]).all()
    assert np.isfinite(values[0]).sum() == 1
    steps, values = resample_to_grid([short, short], 50)
    assert steps.tolist() == list(range(1, 11))


def test_large_gif_is_thinned_and_keeps_first_and_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    for step in range(40):
        append_frame(path, make_image(step, (64, 64)), 100)
    data = path.read_bytes()
    (tmp_path / "b.gif").write_bytes(drop_gif_frames(data, len(data) // 4))
    whole, thin = ([frame.tobytes() for frame in read_frames(tmp_path / name, "L")] for name in ("a.gif", "b.gif"))
    assert 5 <= len(thin) <= 10
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)


def test_report_size_of_a_long_run_is_bounded(tmp_path: Path) -> None:
    run = make_run_dir(tmp_path / "run", steps=20_000)
    page = write_run_report(run)
    assert max(len(trace["x"]) for chart in read_charts(page) for trace in chart["traces"]) <= 1500
    assert page.stat().st_size < 3_000_000


def test_sweep_report_has_table_curves_bands_effects_and_thumbnails(tmp_path: Path) -> None:
    make_sweep_dir(tmp_path / "sweep", rates=3, seeds=3)
    page = tmp_path / "sweep" / "report.html"
    write_sweep_report(compare([tmp_path / "sweep"]), page)
    text = page.read_text()
    assert text.count("data:image/webp") == 9
    assert "more than the noise" in text
    mse, *others = read_charts(page)
    assert mse["title"] == "mse, test"
    assert [trace["name"] for trace in mse["traces"] if trace.get("fill")] == [
        f"model.latent={latent} optimizer.lr={rate}" for latent, rate in ((2, 0.0001), (3, 0.0002), (4, 0.0004))
    ]
    assert {"optimizer.lr", "model.latent", "loss, train", ""} <= {chart["title"] for chart in others}


@pytest.fixture(scope="module")
def large_sweep_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a large sweep."""
    sweep = make_sweep_dir(tmp_path_factory.mktemp("many"), rates=LARGE_SWEEP_RUNS // 5, seeds=5, steps=1000)
    make_run_dir(sweep / "failed", state="failed", error=HTML_INJECTION, overrides={"model.name": HTML_INJECTION})
    write_sweep_report(compare([sweep]), sweep / "report.html")
    return sweep / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def save_screenshot(page: Browser, name: str, tmp_path: Path) -> None:
    page.save_screenshot(Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path)) / f"{name}.png")


def test_report_of_200_runs_is_at_most_15_mb(large_sweep_report: Path) -> None:
    assert large_sweep_report.stat().st_size <= 15_000_000
    assert large_sweep_report.read_text().count("<tr>") >= LARGE_SWEEP_RUNS


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("viewport", [(1360, 900, False), (390, 844, True)], ids=["desktop", "phone in the dark"])
def test_browser_renders_a_run_report(
    viewport: tuple[int, int, bool], run_dir: Path, browser: Browser, tmp_path: Path
) -> None:
    width, height, dark = viewport
    browser.set_viewport(width, height, dark=dark)
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


@pytest.mark.browser
@needs_browser
def test_browser_opens_a_report_of_200_runs_within_3_seconds(
    large_sweep_report: Path, browser: Browser, tmp_path: Path
) -> None:
    browser.set_viewport(1360, 900)
    taken = min(browser.open(large_sweep_report) for _ in range(3))
    assert browser.read_errors() == []
    assert browser.run("return document.title").startswith("201 runs")
    browser.run("document.querySelector('.chart').scrollIntoView()")
    browser.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    assert browser.read_errors() == []
    save_screenshot(browser, "sweep", tmp_path)
    assert taken <= 3


@pytest.mark.browser
@needs_browser
def test_click_on_a_column_header_sorts(large_sweep_report: Path, browser: Browser) -> None:
    browser.set_viewport(1360, 900)
    browser.open(large_sweep_report)
    heads = browser.run("return [...document.querySelectorAll('#runs th')].map((head) => head.textContent)")
    column = heads.index("psnr")
    for sign in (1, -1):
        browser.run(f"document.querySelectorAll('#runs th button')[{column}].click()")
        rows = "[...document.querySelectorAll('#runs tbody tr')]"
        script = f"return {rows}.map((row) => row.cells[{column}].dataset.value)"
        values = [float(value) for value in browser.run(script) if value is not None]
        assert len(values) == LARGE_SWEEP_RUNS + 1
        assert [sign * value for value in values] == sorted(sign * value for value in values)
    assert browser.read_errors() == []


@pytest.mark.browser
@needs_browser
def test_click_on_a_legend_entry_hides_its_curve(large_sweep_report: Path, browser: Browser) -> None:
    browser.set_viewport(1360, 900)
    browser.open(large_sweep_report)
    browser.run("document.querySelector('.chart').scrollIntoView()")
    browser.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    hidden = "return document.querySelector('.chart').data.filter((trace) => trace.visible === false).length"
    assert browser.run(hidden) == 0
    browser.run("document.querySelector('.legend button').click()")
    assert browser.run(hidden) == 3  # the line and the edges of its band
    browser.run("document.querySelector('.legend button').click()")
    assert browser.run(hidden) == 0
    assert browser.read_errors() == []


@pytest.mark.browser
@needs_browser
def test_chart_can_be_zoomed(large_sweep_report: Path, browser: Browser) -> None:
    browser.set_viewport(1360, 900)
    browser.open(large_sweep_report)
    browser.run("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    browser.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    whole = browser.run("return document.querySelector('.chart').layout.xaxis.range")
    browser.drag(".chart .nsewdrag", 0.3, 0.6)
    browser.wait("return document.querySelector('.chart').layout.xaxis.autorange === false")
    low, high = browser.run("return document.querySelector('.chart').layout.xaxis.range")
    assert whole[0] < low < high < whole[1]
    assert browser.read_errors() == []
