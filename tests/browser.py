"""A pytest plugin: the fixture `chromium`, a real browser for tests marked `browser`.

Where no Chromium is installed those tests are skipped, and one line at the end of the run says
so; with `GPUCLOUD_REQUIRE_BROWSER=1` they fail instead. Playwright is used through its async
API: its sync one leaves the process with a running loop, which breaks the ORM afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, async_playwright

CANDIDATES = ("/usr/bin/chromium", "chromium", "chromium-browser", "google-chrome")
NO_CHROMIUM = "no Chromium on this machine"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Return the path of an installed Chromium."""
    return next((path for name in CANDIDATES if (path := shutil.which(name))), None)


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium, started for one test."""
    path = find_chromium()
    if path is None:
        if os.environ.get("GPUCLOUD_REQUIRE_BROWSER") == "1":
            pytest.fail("GPUCLOUD_REQUIRE_BROWSER=1, but no Chromium is installed.")
        pytest.skip(NO_CHROMIUM)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            await browser.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if NO_CHROMIUM in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"NOT TESTED IN A BROWSER: {len(skipped)} tests skipped, no Chromium found "
            f"(tried {', '.join(CANDIDATES)}). Install one; GPUCLOUD_REQUIRE_BROWSER=1 makes this an error.",
            red=True,
            bold=True,
        )
