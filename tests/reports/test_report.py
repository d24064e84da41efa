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
from PIL import Image, ImageSequence

from genexp.recorders.gif import append_frame
from genexp.reports import compare, write_run_report, write_sweep_report
from genexp.reports.curves import downsample_min_max, resample_to_grid
from genexp.reports.embedded_images import drop_gif_frames
from genexp.run_dir.metrics import LoggedCurve
from tests.support.browser import Browser, needs_browser, start_browser
from tests.support.command import REPOSITORY, genexp, in_folder, status
from tests.support.compose import tiny
from tests.support.run_dirs import make_run
from tests.support.snapshots import picture

MANY = 200
HOSTILE = '</script><img src=x onerror="document.title=1"><b>&amp;'


def charts(page: Path) -> list[dict]:
    """Return the data of the charts of a page."""
    (text,) = re.findall(
        r'<script type="application/json" id="charts">(.*?)</script>', page.read_text(), re.DOTALL
    )
    content: list[dict] = json.loads(text)
    return content


def noise(path: Path, size: tuple[int, int], seed: int) -> None:
    """Write a picture that packs badly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)).save(path)


def make_sweep(folder: Path, rates: int, seeds: int, steps: int = 40) -> Path:
    """Write a sweep over learning rates, latents and seeds, with pictures."""
    number = 0
    for rate in range(rates):
        for seed in range(seeds):
            mse = 0.1 + 0.01 * rate + 0.001 * seed
            settings = {"optimizer.lr": 1e-4 * 2**rate, "model.latent": 2 + rate % 3, "seed": seed}
            run = make_run(folder / str(number), {"mse": mse, "psnr": 1 / mse}, settings=settings, steps=steps)
            noise(run / "figures" / "samples.png", (256, 256), number)
            number += 1
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a short run of the program."""
    path = tmp_path_factory.mktemp("runs") / "run"
    ended = genexp(*tiny("vae"), "trainer.epochs=2", "optimizer.lr=7e-4", f"notes='{HOSTILE}'", in_folder(path))
    assert ended.code == 0, ended.err
    assert str(path / "report.html") in ended.out
    return path


def test_a_run_leaves_a_page_with_all_of_it(folder: Path) -> None:
    page = folder / "report.html"
    text = page.read_text()
    assert {chart["title"] for chart in charts(page)} >= {"negative_elbo", "loss", "psnr"}
    for name in ("samples", "interpolation", "prior_samples"):
        assert f'alt="{name}"' in text
    assert "data:image/gif;base64," in text
    assert status(folder)["environment"]["torch"] in text
    assert not list(folder.glob("*.tmp"))


def test_it_needs_no_network(folder: Path) -> None:
    text = re.sub(r'<script type="text/plain" id="plotly">.*?</script>', "", (folder / "report.html").read_text())
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert not re.findall(r"url\(|@import", text)


def test_what_differs_from_the_defaults_is_marked(folder: Path) -> None:
    marked = re.findall(r'<span class="overridden">([^<]*)</span> <small>default ([^<]*)</small>', text_of(folder))
    assert ("0.0007", "0.001") in marked
    recipe = yaml.safe_load((REPOSITORY / "conf" / "model" / "vae.yaml").read_text())["recipe"]
    assert ("2", str(recipe["epochs"])) in marked
    assert len(marked) < 15


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text()


def test_what_a_user_wrote_is_escaped(folder: Path) -> None:
    assert "&lt;/script&gt;&lt;img src=x" in text_of(folder)
    assert "<img src=x" not in text_of(folder)


@pytest.mark.parametrize(
    ("words", "state", "said"),
    [
        (("optimizer.lr=1e25",), "failed", "lower optimizer.lr"),
        (("trainer.time_budget=1e-9",), "stopped", "of 10"),
    ],
)
def test_a_run_leaves_a_page_however_it_ends(
    words: tuple[str, ...], state: str, said: str, tmp_path: Path
) -> None:
    genexp(*tiny("stacked_autoencoder"), "trainer.epochs=2", *words, in_folder(tmp_path))
    assert status(tmp_path)["state"] == state
    text = text_of(tmp_path)
    assert f'<span class="state {state}">' in text
    assert said in text


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", state="failed", error=f"broken {HOSTILE}", warnings=["the loss rose"])
    text = write_run_report(run).read_text()
    assert "broken &lt;/script&gt;" in text
    assert "the loss rose" in text


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", [None, "", '{"a": [', '{"a": 1}\n', "\0\0\n"])
def test_a_half_written_run_has_a_page_and_a_row(name: str, content: str | None, tmp_path: Path) -> None:
    run = make_run(tmp_path / "sweep" / "0")
    make_run(tmp_path / "sweep" / "1", settings={"model.latent": 3})
    (run / ".hydra").mkdir()
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert write_run_report(run).is_file()
    write_sweep_report(compare([tmp_path / "sweep"]), tmp_path / "report.html")
    assert f">{tmp_path / 'sweep'}<" in (tmp_path / "report.html").read_text()  # where the runs are


def test_damaged_pictures_are_left_out(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    gif = run / "samples.gif"
    gif.write_bytes(b"")
    (run / "figures" / "prior_samples.png").write_bytes(b"\x89PN")
    text = write_run_report(run).read_text()
    assert "samples.gif, figures/prior_samples.png" in text
    write_sweep_report(compare([run]), tmp_path / "report.html")


def test_thinning_keeps_every_peak() -> None:
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


def test_a_metric_that_was_measured_once_is_no_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(
        "".join(line for line in lines if '"test"' not in line or '"step": 40' in line)
    )
    assert [chart["title"] for chart in charts(write_run_report(run))] == ["loss"]
    write_sweep_report(compare([run]), tmp_path / "report.html")
    assert [chart["title"] for chart in charts(tmp_path / "report.html")] == ["loss, train"]


def test_runs_of_different_length_share_a_grid() -> None:
    short, long = (LoggedCurve(np.arange(1, n + 1), np.ones(n), np.full(n, float(n))) for n in (10, 1000))
    steps, values = resample_to_grid([short, long], 50)
    assert values.shape == (2, 50) == (2, len(steps))
    assert np.isfinite(values[1]).all()
    assert np.isfinite(values[0]).sum() == 1
    steps, values = resample_to_grid([short, short], 50)
    assert steps.tolist() == list(range(1, 11))


def test_a_heavy_gif_loses_frames_but_not_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    for step in range(40):
        append_frame(path, picture(step, (64, 64)), 100)
    data = path.read_bytes()
    (tmp_path / "b.gif").write_bytes(drop_gif_frames(data, len(data) // 4))
    frames = []
    for name in ("a.gif", "b.gif"):
        with Image.open(tmp_path / name) as gif:
            frames.append([frame.convert("L").tobytes() for frame in ImageSequence.Iterator(gif)])
    whole, thin = frames
    assert 5 <= len(thin) <= 10
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
    assert set(thin) <= set(whole)


def test_a_long_run_is_bounded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=20_000)
    page = write_run_report(run)
    assert max(len(trace["x"]) for chart in charts(page) for trace in chart["traces"]) <= 1500
    assert page.stat().st_size < 3_000_000


def test_a_sweep_has_table_curves_bands_effects_and_thumbnails(tmp_path: Path) -> None:
    make_sweep(tmp_path / "sweep", rates=3, seeds=3)
    page = tmp_path / "sweep" / "report.html"
    write_sweep_report(compare([tmp_path / "sweep"]), page)
    text = page.read_text()
    assert text.count("data:image/webp") == 9
    assert "more than the noise" in text
    mse, *others = charts(page)
    assert mse["title"] == "mse, test"
    assert [trace["name"] for trace in mse["traces"] if trace.get("fill")] == [
        f"model.latent={latent} optimizer.lr={rate}" for latent, rate in ((2, 0.0001), (3, 0.0002), (4, 0.0004))
    ]
    assert {"optimizer.lr", "model.latent", "loss, train", ""} <= {chart["title"] for chart in others}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a large sweep."""
    sweep = make_sweep(tmp_path_factory.mktemp("many"), rates=MANY // 5, seeds=5, steps=1000)
    make_run(sweep / "failed", state="failed", error=HOSTILE, settings={"model.name": HOSTILE})
    write_sweep_report(compare([sweep]), sweep / "report.html")
    return sweep / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def keep_picture(page: Browser, name: str, tmp_path: Path) -> None:
    page.save_screenshot(Path(os.environ.get("GENEXP_SCREENSHOTS", tmp_path)) / f"{name}.png")


def test_two_hundred_runs_weigh_at_most_15_mb(many: Path) -> None:
    assert many.stat().st_size <= 15_000_000
    assert many.read_text().count("<tr>") >= MANY


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("look", [(1360, 900, False), (390, 844, True)], ids=["desktop", "phone in the dark"])
def test_a_browser_shows_a_run(
    look: tuple[int, int, bool], folder: Path, chromium: Browser, tmp_path: Path
) -> None:
    width, height, dark = look
    chromium.set_viewport(width, height, dark=dark)
    chromium.open(folder / "report.html")
    for place in range(len(charts(folder / "report.html"))):
        chromium.run(f"document.querySelectorAll('.chart')[{place}].scrollIntoView()")
        chromium.wait(f"return document.querySelectorAll('.chart')[{place}].dataset.drawn === 'yes'")
    assert chromium.read_errors() == []
    assert chromium.run("return document.documentElement.scrollWidth") == width
    assert chromium.run("return [...document.images].every((image) => image.naturalWidth > 0 || !image.complete)")
    background = chromium.run("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == dark
    keep_picture(chromium, f"run_{width}", tmp_path)


@pytest.mark.browser
@needs_browser
def test_a_browser_opens_two_hundred_runs_within_3_s(many: Path, chromium: Browser, tmp_path: Path) -> None:
    chromium.set_viewport(1360, 900)
    taken = min(chromium.open(many) for _ in range(3))
    assert chromium.read_errors() == []
    assert chromium.run("return document.title").startswith("201 runs")
    chromium.run("document.querySelector('.chart').scrollIntoView()")
    chromium.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    assert chromium.read_errors() == []
    keep_picture(chromium, "sweep", tmp_path)
    assert taken <= 3


@pytest.mark.browser
@needs_browser
def test_a_click_on_a_head_sorts(many: Path, chromium: Browser) -> None:
    chromium.set_viewport(1360, 900)
    chromium.open(many)
    heads = chromium.run("return [...document.querySelectorAll('#runs th')].map((head) => head.textContent)")
    column = heads.index("psnr")
    for sign in (1, -1):
        chromium.run(f"document.querySelectorAll('#runs th button')[{column}].click()")
        rows = "[...document.querySelectorAll('#runs tbody tr')]"
        script = f"return {rows}.map((row) => row.cells[{column}].dataset.value)"
        values = [float(value) for value in chromium.run(script) if value is not None]
        assert len(values) == MANY + 1
        assert [sign * value for value in values] == sorted(sign * value for value in values)
    assert chromium.read_errors() == []


@pytest.mark.browser
@needs_browser
def test_a_click_on_a_name_hides_its_curve(many: Path, chromium: Browser) -> None:
    chromium.set_viewport(1360, 900)
    chromium.open(many)
    chromium.run("document.querySelector('.chart').scrollIntoView()")
    chromium.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    hidden = "return document.querySelector('.chart').data.filter((trace) => trace.visible === false).length"
    assert chromium.run(hidden) == 0
    chromium.run("document.querySelector('.legend button').click()")
    assert chromium.run(hidden) == 3  # the line and the edges of its band
    chromium.run("document.querySelector('.legend button').click()")
    assert chromium.run(hidden) == 0
    assert chromium.read_errors() == []


@pytest.mark.browser
@needs_browser
def test_a_chart_zooms_and_comes_back(many: Path, chromium: Browser) -> None:
    chromium.set_viewport(1360, 900)
    chromium.open(many)
    chromium.run("document.querySelector('.chart').scrollIntoView({block: 'center'})")
    chromium.wait("return document.querySelector('.chart').dataset.drawn === 'yes'")
    whole = chromium.run("return document.querySelector('.chart').layout.xaxis.range")
    chromium.drag(".chart .nsewdrag", 0.3, 0.6)
    chromium.wait("return document.querySelector('.chart').layout.xaxis.autorange === false")
    low, high = chromium.run("return document.querySelector('.chart').layout.xaxis.range")
    assert whole[0] < low < high < whole[1]
    assert chromium.read_errors() == []
