"""MLflow's pages after a sweep, in a browser; their screenshots are saved in $FGST_TEST_PICTURES."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.workspace import TIMEOUT, TINY, Workspace

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM or not DRIVER,
        reason="a browser is needed: install chromium and chromium-driver (apt-get install chromium chromium-driver)",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1500,1000",
)  # fmt: skip


@pytest.fixture
def server_url(workspace: Workspace) -> Iterator[str]:
    """The address of an MLflow server that shows the workspace's tracking store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", workspace.store.uri, "--host", "127.0.0.1",
         "--port", str(port), "--workers", "1"],
        cwd=workspace.folder, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A Chromium driven by Selenium."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(flag)
    options.binary_location = str(CHROMIUM)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def test_mlflow_pages_of_a_sweep(workspace: Workspace, server_url: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    screenshots = Path(os.environ.get("FGST_TEST_PICTURES", tmp_path / "pictures"))
    screenshots.mkdir(parents=True, exist_ok=True)

    def wait(until: Callable[[Any], Any]) -> Any:
        return WebDriverWait(browser, 60).until(until)

    def wait_for_text(*texts: str) -> None:
        wait(lambda b: all(text in b.find_element(By.TAG_NAME, "body").text for text in texts))

    result = workspace.sweep(
        "--dataset", "data", "--preset", "tiny", "--values", "2,4,6", "--epochs", "2", "--local", *TINY
    )
    assert result.returncode == 0, result.stderr
    [sweep] = workspace.sweeps()
    experiment, parent = sweep.info.experiment_id, sweep.info.run_id
    children = {child.info.run_name: child for child in workspace.store.children(parent)}
    page = result.stderr.split("http://127.0.0.1:5000/")[1].split()[0]  # of the address that the sweep printed

    # The list of runs: the trials are folded under the sweep.
    browser.get(f"{server_url}/{page}")
    wait_for_text("small x-sub", "focal_k joint")
    row = next(r for r in browser.find_elements(By.CSS_SELECTOR, "[role=row]") if "focal_k joint" in r.text)
    row.find_element(By.TAG_NAME, "button").click()
    wait_for_text(*children)
    browser.save_screenshot(str(screenshots / "runs.png"))

    # The comparison of the trials plots K against the validation accuracy.
    ids = [child.info.run_id for child in children.values()]
    browser.get(
        f"{server_url}/#/compare-runs?runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment]))}"
    )
    wait_for_text("Comparing 3 Runs", "model.focal_joints", "val/top1", *children)
    wait(lambda b: b.find_elements(By.CSS_SELECTOR, ".js-plotly-plot"))
    plot_text = wait(lambda b: b.find_element(By.CSS_SELECTOR, ".js-plotly-plot").text)
    assert "model.focal_joints" in plot_text
    assert "val/top1" in plot_text
    browser.save_screenshot(str(screenshots / "comparison.png"))

    # The sweep's page shows its table.
    browser.get(f"{server_url}/#/experiments/{experiment}/runs/{parent}")
    wait_for_text("How many focal joints K?", "val top-1 %", "K=6")
    browser.save_screenshot(str(screenshots / "sweep.png"))

    # The report and a figure can be opened from the artifacts.
    browser.get(f"{server_url}/#/experiments/{experiment}/runs/{parent}/artifacts/report.html")
    browser.switch_to.frame(wait(lambda b: b.find_elements(By.TAG_NAME, "iframe"))[0])
    wait_for_text("How many focal joints K?", "best by validation")
    assert all(wait(lambda b: [i.get_property("naturalWidth") for i in b.find_elements(By.TAG_NAME, "img")]))
    browser.switch_to.default_content()
    browser.save_screenshot(str(screenshots / "report.png"))
    run = next(iter(children.values())).info.run_id
    browser.get(f"{server_url}/#/experiments/{experiment}/runs/{run}/artifacts/figures/confusion.png")
    wait(lambda b: any(i.get_property("naturalWidth") > 300 for i in b.find_elements(By.TAG_NAME, "img")))
    browser.save_screenshot(str(screenshots / "figure.png"))
    assert all(screenshot.stat().st_size > 20_000 for screenshot in screenshots.iterdir())
