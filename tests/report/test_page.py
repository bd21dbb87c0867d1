"""The page in a real browser (Chromium): what a reader's machine does with it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from autotune.contract import RunDir
from autotune.report.figures import FIGURES
from autotune.report.html import write_report

from .conftest import ALL_FAILURES, EDGE_RUNS, default_results, make_run, tried_rows, with_probes

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"):
        options.add_argument(argument)
    options.add_argument("--disable-background-networking")
    options.add_argument("--window-size=1200,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def requests(browser: webdriver.Chrome) -> list[str]:
    """Addresses that the page asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def open_report(browser: webdriver.Chrome, folder: RunDir) -> Any:
    """Open the page; console errors and requests beyond the file fail here. Returns a function that evaluates JS."""
    browser.get("about:blank")
    browser.get_log("browser")
    requests(browser)
    browser.get(write_report(folder.path).as_uri())
    assert browser.get_log("browser") == []
    urls = requests(browser)
    assert folder.report.as_uri() in urls, "the log of requests works"
    assert [u for u in urls if not u.startswith(("file:", "data:"))] == []
    return lambda script: browser.execute_script(f"return {script}")  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", EDGE_RUNS)
def test_every_figure_is_there_and_every_trial_a_point(browser: webdriver.Chrome, tmp_path: Path, name: str) -> None:
    folder = EDGE_RUNS[name](tmp_path / "run with <b>spaces</b> é")
    js = open_report(browser, folder)
    for figure in FIGURES:
        n_plots = js(f"document.querySelectorAll('#{figure} .plot svg.main-svg').length")
        n_tables = js(f"document.querySelectorAll('#{figure} tbody tr').length")
        n_reasons = js(f"document.querySelectorAll('#{figure} .reason').length")
        assert bool(n_plots) + bool(n_tables) + n_reasons == 1, figure
    n_rows = len(folder.trials_csv.read_text(encoding="utf-8").splitlines()) - 1
    assert js("document.querySelectorAll('#plot-best_so_far path.point').length") == tried_rows(folder)
    assert js("document.querySelectorAll('#trials tbody tr').length") == n_rows


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_never_scrolls_sideways(browser: webdriver.Chrome, tmp_path: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    results = with_probes(default_results(20, ALL_FAILURES))
    js = open_report(browser, make_run(tmp_path / "r", results=results, gpu=True))
    assert js("document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_table_sorts_by_number_with_dashes_last(browser: webdriver.Chrome, tmp_path: Path) -> None:
    js = open_report(browser, make_run(tmp_path / "r", 12, failures=ALL_FAILURES, finalists=False))
    speed = js("[...document.querySelectorAll('#trials th')].findIndex(th => th.textContent == 'img/s')")
    for descending in (False, True):
        js(f"document.querySelectorAll('#trials th button')[{speed}].click()")
        shown = js(f"[...document.querySelectorAll('#trials tbody tr')].map(r => r.cells[{speed}].textContent.trim())")
        numbers = [float(text) for text in shown if text != "-"]
        assert numbers == sorted(numbers, reverse=descending)
        assert len(numbers) == 5
        assert shown[len(numbers) :] == ["-"] * 7


def test_hostile_text_makes_no_element(browser: webdriver.Chrome, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"
    info = {"name": hostile, "baseline_params": {hostile: 1}, "train_args": {"model": hostile, "data": hostile}}
    js = open_report(browser, make_run(tmp_path / "r", 6, info=info))
    assert js("document.title") != "owned"
    assert js("document.querySelectorAll('img').length") == 0
