"""The page in a real browser: keys change the frame, bars move, and a recording is read back."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlir_ray.data.recordings import open_recordings
from rlir_ray.evaluation.video import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the shipped Doom model beside itself."""
    import numpy as np
    from PIL import Image

    context = tmp_path_factory.mktemp("play") / "context.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(context)
    model = "asset:doom/world_model"
    command = [sys.executable, "-m", "rlir_ray", "play", "--policy", model, "--against", model, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--context", str(context), "--context", str(context)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"drive at (http://127\.0\.0\.1:\d+/)", line):
            yield found[1]
            break
    else:
        pytest.fail("the command ended without an address")
    process.terminate()
    process.wait(30)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "install chromium, or run make test-browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1300, "height": 900})
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.goto(address)
        opened.wait_for_selector("body[data-number='0']", timeout=WAIT_MS)
        yield opened
        assert not problems
        browser.close()


def wait_for_frame(page: Page, number: int) -> None:
    """Wait until so many frames are shown; the page's policy forbids Playwright's own way, which evaluates texts."""
    deadline = time.monotonic() + WAIT_MS / 1000
    while int(page.get_attribute("body", "data-number") or 0) < number:
        assert time.monotonic() < deadline, f"frame {number} did not come"
        page.wait_for_timeout(50)


def shown(page: Page) -> str:
    return page.get_attribute("[data-model='policy'].model img", "src") or ""


def widths(page: Page) -> list[str]:
    return page.eval_on_selector_all(".bar > div", "bars => bars.map(bar => bar.style.width)")


def test_a_key_changes_the_frame_and_the_bars_move(page: Page) -> None:
    before = shown(page)
    assert page.locator(".model").count() == 2 and widths(page) == ["0px"] * 8
    page.keyboard.down("w")
    wait_for_frame(page, 3)
    assert page.locator("kbd.down").inner_text() == "W"
    page.keyboard.up("w")
    assert shown(page) != before and any(
        float(width.removesuffix("%").removesuffix("px")) > 1 for width in widths(page)
    )
    assert "follows" in page.locator(".score").first.inner_text()
    assert "frames/s" in page.locator("#state").inner_text()
    assert not page.locator("#error").inner_text()


def test_buttons_step_undo_reset_and_run(page: Page) -> None:
    page.click("#step")
    page.wait_for_selector("body[data-number='1']", timeout=WAIT_MS)
    page.click("#undo")
    page.wait_for_selector("body[data-number='0']", timeout=WAIT_MS)
    page.click("#run")
    wait_for_frame(page, 2)
    page.click("#run")
    page.click("#contexts button >> nth=1")
    page.wait_for_selector("body[data-number='0']", timeout=WAIT_MS)
    page.set_viewport_size({"width": 420, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420


def test_a_recording_is_downloaded_and_read_back(page: Page, tmp_path: Path) -> None:
    page.keyboard.down("f")
    wait_for_frame(page, 2)
    page.keyboard.up("f")
    page.wait_for_timeout(2000 / FRAMES_PER_SECOND)
    number = int(page.get_attribute("body", "data-number") or 0)
    with page.expect_download(timeout=WAIT_MS) as started:
        page.click("a.download[data-model='policy']")
    with zipfile.ZipFile(started.value.path()) as archive:
        archive.extractall(tmp_path)
    source = open_recordings(tmp_path)
    recording = source.recording(source.names[0])
    assert len(recording) >= number + 1
    attacks = recording.actions.values_of(["use_attack"])[:, 0].tolist()
    assert attacks[:3] == [0, 2, 2]
