"""report.html in a real browser: its pictures load, its tables sort. Needs Debian's chromium on the PATH."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from made_runs import make_run
from simclr_lightning.report import write_report

BROWSER = shutil.which("chromium")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on the PATH: apt-get install chromium")
SCORES = {0.05: 0.5, 0.1: 0.7, 0.5: 0.6, 1.0: None}  # a missing score is sorted last
# Clicks the headings of the settings table, and writes the resulting orders into the page.
PROBE = """
<script>
window.addEventListener("load", () => {
  const table = document.querySelector("table"), seen = {};
  const column = name => [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
  const read = name => [...table.tBodies[0].rows].map(row => row.cells[column(name)].textContent);
  const click = name => { table.tHead.rows[0].cells[column(name)].click(); return read("loss.temperature"); };
  seen.before = read("loss.temperature");
  seen.up = click("linear probe, top-1 %");
  seen.down = click("linear probe, top-1 %");
  seen.marked = table.querySelector("[aria-sort]").getAttribute("aria-sort");
  seen.numbers = click("loss.temperature");
  seen.pictures = [...document.images].map(image => [image.complete, image.naturalWidth]);
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  document.body.append(pre);
});
</script>
"""


def browse(page: Path, home: Path, *words: str) -> str:
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--hide-scrollbars", f"--user-data-dir={home}", *words, page.as_uri()]  # fmt: skip
    env = {**os.environ, "HOME": str(home)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    for tau, score in SCORES.items():
        make_run(root / "runs" / str(tau), f"loss.temperature={tau}", linear_top1=score)
    write_report(root / "runs")
    return root


def test_pictures_load_and_a_click_on_a_heading_sorts(folder: Path) -> None:
    page = folder / "probe.html"
    page.write_text((folder / "runs" / "report.html").read_text("utf-8").replace("</body>", f"{PROBE}</body>"))
    dom = browse(page, folder / "home", "--virtual-time-budget=5000", "--dump-dom")
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
    assert found is not None, dom[-500:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert seen["before"] == seen["numbers"] == ["0.05", "0.1", "0.5", "1"]
    assert seen["up"] == ["0.05", "0.5", "0.1", "1"]
    assert seen["down"] == ["0.1", "0.5", "0.05", "1"]
    assert seen["marked"] == "descending"
    assert len(seen["pictures"]) == 4
    assert all(complete and width > 200 for complete, width in seen["pictures"])


def test_a_screenshot_shows_the_report(folder: Path) -> None:
    shot = folder / "shot.png"
    browse(folder / "runs" / "report.html", folder / "home", "--window-size=1200,2400", f"--screenshot={shot}")
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (2400, 1200, 3)
    blue = (abs(pixels - (0, 114, 178)).sum(2) < 12).sum()  # lines in the pictures
    assert blue > 500
    assert 0.01 < (pixels.sum(2) < 300).mean() < 0.5  # text and lines on a light ground
