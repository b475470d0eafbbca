"""The page in a real browser: no error, every figure drawn, nothing wider than a phone, both themes, its few controls."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

pytest.importorskip("rliable")
webdriver = pytest.importorskip("selenium.webdriver")

from saddlepoint.algd.agent import ALGD  # noqa: E402
from saddlepoint.algd.config import ALGDConfig  # noqa: E402
from saddlepoint.report.command import ReportFlags, follow  # noqa: E402
from saddlepoint.train.config import TrainConfig  # noqa: E402
from saddlepoint.train.start import train  # noqa: E402
from tests.report_runs import write_run  # noqa: E402

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
pytestmark = pytest.mark.skipif(
    not (shutil.which(CHROMIUM) and shutil.which(DRIVER)), reason="Chromium is missing (apt-get install chromium chromium-driver)"
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of one real run with a landscape and a clip, and of six that are written by hand."""
    home = tmp_path_factory.mktemp("browser")
    small = ALGDConfig(energy="augmented", critic_hidden=(16, 16), policy_hidden=(16,), batch_size=8)
    config = TrainConfig(
        env="saddlepoint/Toy-v0", total_steps=80, warmup_steps=60, log_every=60, replay_size=100, quiet=True, out=home / "runs" / "toy",
    )  # fmt: skip
    train(config, ALGD, small)
    (home / "runs" / "toy" / "videos").mkdir()
    frames = [np.full((64, 64, 3), shade, np.uint8) for shade in (50, 200)]
    imageio.mimsave(home / "runs" / "toy" / "videos" / "80.gif", frames)
    rng = np.random.default_rng(0)
    for seed in range(3):
        for energy in ("augmented", "plain"):
            write_run(
                home / "runs" / f"{energy}-{seed}", "tests/A-environment-with-a-rather-long-name-v0", seed, energy=energy,
                returns=lambda step: step / 100 + rng.normal(), cost=float(rng.uniform(5, 15)),
            )  # fmt: skip
    follow([home / "runs"], ReportFlags(out=home / "page.html"))
    return home / "page.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def show(browser: Any, page: Path, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get(page.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_figures_are_drawn_without_error_and_fit(browser: Any, page: Path, width: int, scheme: str) -> None:
    run = browser.execute_script
    show(browser, page, width, scheme)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length") == 0
    assert run("return document.documentElement.scrollWidth") == width
    shown = "[...document.querySelectorAll('figure')].filter(f => getComputedStyle(f).display !== 'none')"
    # 5 charts of the environment with curves (the toy was evaluated once), 5 tables with bars, 2 of the toy's calibration, 2 states x 2 energies,
    # a clip
    sizes = run(f"return {shown}.map(f => {{ const b = f.getBoundingClientRect(); return [b.width, b.height, b.right] }})")
    assert len(sizes) == 5 + 5 + 2 + 4 + 1
    assert all(wide > 100 and high > 50 and right <= width for wide, high, right in sizes)
    lines = run(
        "return [...document.querySelectorAll('.by-steps.from-eval .curve')].filter(g => getComputedStyle(g).display !== 'none')"
        ".map(g => g.getBBox().width)"
    )
    assert len(lines) == 2 * 4 * 3  # mean and three seeds of two methods, for return, cost and violations
    assert min(lines) > 50
    assert run("return document.querySelector('img').naturalWidth") == 64


@pytest.mark.parametrize("width", [390, 1280])
def test_the_verdict_comes_first_and_its_bars_are_to_scale(browser: Any, page: Path, width: int) -> None:
    run = browser.execute_script
    show(browser, page, width)
    first = run("return document.querySelector('.verdict').getBoundingClientRect().top")
    assert first < 800  # within the first screen
    assert first < run("return document.querySelector('svg.chart').getBoundingClientRect().top")
    bars = run(
        "return [...document.querySelectorAll('.meter')].map(m => [m.querySelector('.value').textContent,"
        " m.querySelector('.fill').getBoundingClientRect().width, m.querySelector('.limit').getBoundingClientRect().x"
        " - m.querySelector('.track').getBoundingClientRect().x])"
    )
    for text, fill, limit in bars:
        cost, budget = (float(word) for word in text.split(" of "))
        if cost <= budget:  # beyond the budget the scale may be bent
            assert fill == pytest.approx(max(limit * cost / budget, 2), abs=3)
        else:
            assert fill > limit - 3


def test_the_legend_stays_in_view_and_hides_a_method(browser: Any, page: Path) -> None:
    run = browser.execute_script
    show(browser, page, 390)
    run("window.scrollTo(0, 2500)")
    assert run("return document.getElementById('bar').getBoundingClientRect().top") == 0
    visible = "return [...document.querySelectorAll('.by-steps.from-eval .curve')].filter(g => getComputedStyle(g).display !== 'none').length"
    before = run(visible)
    run("document.querySelector('.legend button:last-child').click()")
    assert run(visible) == before / 2
    run("document.querySelector('.legend button:last-child').click()")
    run("document.querySelector('button[data-value=off]').click()")
    assert run(visible) == before / 4  # means without seeds


def test_a_wide_table_scrolls_under_its_first_column(browser: Any, page: Path) -> None:
    run = browser.execute_script
    show(browser, page, 390)
    table = "const box = document.querySelector('[aria-label=\"Final numbers\"]');"
    assert run(f"{table} return box.scrollWidth > box.clientWidth + 100")
    left = run(f"{table} box.scrollLeft = 150; return box.querySelector('tbody th').getBoundingClientRect().left - box.getBoundingClientRect().left")
    assert abs(left) < 1
    over = "return [...document.querySelectorAll('th[scope=row]')].filter(head => head.scrollWidth > head.clientWidth + 1).map(head => head.textContent)"
    assert run(over) == []  # a long folder does not lie over the next column


def test_it_follows_the_systems_theme_until_the_reader_chooses(browser: Any, page: Path) -> None:
    run = browser.execute_script
    paper = "return getComputedStyle(document.documentElement).backgroundColor"
    show(browser, page, 1280, "light")
    light = run(paper)
    show(browser, page, 1280, "dark")
    dark = run(paper)
    assert light != dark
    run("document.getElementById('theme').click()")
    assert run(paper) == light
    browser.refresh()
    assert run(paper) == light  # remembered


def test_axis_policy_and_tooltip_work_from_the_keyboard(browser: Any, page: Path) -> None:
    run = browser.execute_script
    show(browser, page, 1280)
    visible = "return [...document.querySelectorAll('.by-wall')].filter(f => f.offsetParent).length"
    assert run(visible) == 0
    run("document.querySelector('button[data-value=wall]').click()")
    assert run(visible) == 5
    run("document.querySelector('button[data-value=steps]').click()")
    run("document.querySelector('button[data-value=sampled]').click()")
    assert run("return document.querySelector('.from-sampled.by-steps').offsetParent !== null")
    run("document.querySelector('button[data-value=eval]').click()")
    press = "svg.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', cancelable: true}))"
    chart = "const svg = document.querySelector('.from-eval.by-steps svg.chart');"
    run(f"{chart} {press}")
    assert not run("return document.getElementById('tip').hidden")
    assert run("return document.getElementById('tip').textContent").startswith("step 2,000algd energy=augmented, mean of 3 seeds")
    # The crosshair stands at a value, with a dot on each line.
    cursor, dots = run(f"{chart} return [svg.querySelector('.cursor').getAttribute('x1'), [...svg.querySelectorAll('.here')].map(d => d.getAttribute('cx'))]")
    assert len(dots) == 8
    assert {float(dot) for dot in dots} == {float(cursor)}
    run(f"{chart} {press.replace('ArrowRight', 'Escape')}")
    assert run("return document.getElementById('tip').hidden")
