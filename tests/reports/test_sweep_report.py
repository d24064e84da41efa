"""Report of a sweep: content, size, speed and interaction in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from genexp.reports import compare, write_sweep_report
from tests.support.browser import Browser, needs_browser
from tests.support.images import write_noise_image
from tests.support.report_pages import HTML_INJECTION, assert_readable, read_charts, save_screenshot
from tests.support.run_dirs import make_run_dir

LARGE_SWEEP_RUNS = 200


def make_sweep_dir(sweep_dir: Path, rates: int, seeds: int, steps: int = 40) -> Path:
    """Write a sweep over learning rates, latent sizes and seeds, with images."""
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


def test_sweep_report_has_table_curves_bands_effects_and_thumbnails(tmp_path: Path) -> None:
    make_sweep_dir(tmp_path / "sweep", rates=3, seeds=3)
    page = tmp_path / "sweep" / "report.html"
    write_sweep_report(compare([tmp_path / "sweep"]), page)
    text = page.read_text()
    assert text.count('<img src="') == text.count("/figures/samples.png") == 9
    assert "significant (paired t-test" in text
    mse, *others = read_charts(page)
    assert mse["title"] == "mse, test"
    assert [trace["name"] for trace in mse["traces"] if trace.get("fill")] == [
        f"model.latent={latent} optimizer.lr={rate}" for latent, rate in ((2, 0.0001), (3, 0.0002), (4, 0.0004))
    ]
    assert {"optimizer.lr", "model.latent", "loss, train"} <= {chart["title"] for chart in others}


def test_warnings_that_differ_in_their_numbers_are_one(tmp_path: Path) -> None:
    for number in range(3):
        warnings = [f"the loss rose by {number}.5", f"by {number}"] if number else ["no labels"]
        make_run_dir(tmp_path / str(number), warnings=warnings)
    write_sweep_report(compare([tmp_path]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r"<li>([^<]*) <small>([^<]*)</small></li>", text) == [
        *(("no labels", "0"), ("the loss rose by 1.5", "1, 2"), ("by 1", "1, 2"))
    ]


@pytest.fixture(scope="module")
def large_sweep_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a large sweep."""
    sweep = make_sweep_dir(tmp_path_factory.mktemp("many"), rates=LARGE_SWEEP_RUNS // 5, seeds=5, steps=1000)
    make_run_dir(sweep / "failed", state="failed", error=HTML_INJECTION, overrides={"model.name": HTML_INJECTION})
    write_sweep_report(compare([sweep]), sweep / "report.html")
    return sweep / "report.html"


def test_report_of_200_runs_is_at_most_15_mb(large_sweep_report: Path) -> None:
    assert large_sweep_report.stat().st_size <= 15_000_000
    assert large_sweep_report.read_text().count("<tr>") >= LARGE_SWEEP_RUNS


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


@pytest.mark.browser
@needs_browser
def test_filter_and_columns_choose_what_a_table_shows(large_sweep_report: Path, browser: Browser) -> None:
    browser.set_viewport(1360, 900)
    browser.open(large_sweep_report)
    shown = "return [...document.querySelectorAll('#runs tbody tr')].filter((row) => row.checkVisibility()).length"
    for text, count in (("FAILED", 1), ("", LARGE_SWEEP_RUNS + 1), ("no such text", 0)):
        browser.run(
            f"const input = document.querySelector('[data-filter]'); input.value = '{text}';"
            "input.dispatchEvent(new Event('input'))"
        )
        assert browser.run(shown) == count
    figures = "[...document.querySelectorAll('.thumbnails figure')]"
    assert browser.run(f"return {figures}.filter((figure) => figure.checkVisibility()).length") == 0
    heads = "[...document.querySelectorAll('#runs th')].filter((head) => head.checkVisibility()).length"
    count = browser.run(f"return {heads}")
    browser.run("document.querySelector('[data-column]').click()")
    assert browser.run(f"return {heads}") == count - 1
    assert browser.read_errors() == []


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize(("width", "is_dark"), [(390, True), (800, False), (1300, True)])
def test_page_of_a_sweep_is_readable(
    width: int, is_dark: bool, small_sweep_report: Path, browser: Browser
) -> None:
    assert_readable(browser, small_sweep_report, width, is_dark=is_dark)
    widths = "return document.querySelector('.thumbnails figure').offsetWidth"
    before = browser.run(widths)
    browser.run(
        "const slider = document.querySelector('[data-width]'); slider.value = 600;"
        "slider.dispatchEvent(new Event('input'))"
    )
    assert browser.run(widths) > before or width == 390


@pytest.fixture(scope="module")
def small_sweep_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a sweep with two seeds for each of three settings, one of which failed."""
    sweep = make_sweep_dir(tmp_path_factory.mktemp("few"), rates=3, seeds=2)
    make_run_dir(sweep / "6", state="failed", error="out of memory", warnings=["the loss rose"])
    write_sweep_report(compare([sweep]), sweep / "report.html")
    return sweep / "report.html"
