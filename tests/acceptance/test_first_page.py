"""The first pages in a real browser: nothing blocked, nothing from elsewhere, and alive."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from accounts.models import User
from tests.acceptance.conftest import LiveSite
from tests.integration.pages.snapshots import snapshot, waiting, worker

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


async def log_in(page: Page, site: LiveSite) -> None:
    await page.goto(f"{site.url}/")
    await page.get_by_label("Email").fill("charlie@example.com")
    await page.get_by_label("Password").fill("correct horse battery staple")
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{site.url}/")


async def test_logging_in_leads_to_a_page_that_teaches_how_to_start(
    page: Page, live_site: LiveSite, charlie: User
) -> None:
    await log_in(page, live_site)

    await expect(page.get_by_role("heading", name="No worker has dialled in yet")).to_be_visible()
    await expect(page.locator("#cmd-worker")).to_contain_text(f"--gateway {live_site.url}")
    await expect(page.locator("#cmd-curl")).to_contain_text(f"curl {live_site.url}/v1/chat/completions")


async def test_a_heartbeat_moves_the_panel_and_focus_and_scroll_stay(
    page: Page, live_site: LiveSite, charlie: User
) -> None:
    queue = tuple(waiting(position) for position in range(1, 20))
    live_site.publish(snapshot(1, worker("w-1", tokens_per_s=100), worker("w-2"), head=queue))
    await log_in(page, live_site)
    card = page.locator("#worker-w-1")
    await expect(card.locator(".readings")).to_contain_text("100")
    await page.get_by_role("link", name="w-1").focus()
    await page.locator("#queue-table").evaluate("table => table.scrollTop = 90")
    scrolled = await page.locator("#queue-table").evaluate("table => table.scrollTop")

    live_site.publish(snapshot(2, worker("w-1", tokens_per_s=1234, running=9), worker("w-2"), head=queue[:-1]))

    await expect(card.locator(".readings")).to_contain_text("1,234")
    await expect(page.locator("#waiting-req-0-19")).to_have_count(0)
    await expect(page.get_by_role("link", name="w-1")).to_be_focused()
    assert scrolled > 0
    assert await page.locator("#queue-table").evaluate("table => table.scrollTop") == scrolled


async def test_the_banner_comes_when_the_connection_is_lost_and_goes_when_it_is_back(
    chromium: Browser, live_site: LiveSite, charlie: User
) -> None:
    # The page fixture would complain: a browser logs a lost socket as an error, rightly.
    page = await chromium.new_page()
    await log_in(page, live_site)
    live_site.publish(snapshot(1, worker("w-first")))
    await expect(page.locator("#worker-w-first")).to_be_visible()  # so there is a socket to lose
    await expect(page.locator("#banner")).to_be_hidden()

    await page.context.set_offline(True)
    live_site.drop_sockets()
    await expect(page.locator("#banner")).to_be_visible()

    await page.context.set_offline(False)
    live_site.publish(snapshot(2, worker("w-back")))
    await expect(page.locator("#worker-w-back")).to_be_visible(timeout=20_000)
    await expect(page.locator("#banner")).to_be_hidden()
    await page.close()


async def test_ages_tick_without_a_push(page: Page, live_site: LiveSite, charlie: User) -> None:
    live_site.publish(snapshot(1, worker("w-1", heartbeat_age_s=3.0)))
    await log_in(page, live_site)

    await expect(page.locator("#worker-w-1 time")).to_have_text("6 s ago")


async def test_the_chosen_theme_is_there_before_the_first_paint(page: Page, live_site: LiveSite, charlie: User) -> None:
    await log_in(page, live_site)
    await page.get_by_role("button", name="Theme: automatic").click()
    await page.get_by_role("button", name="Theme: light").click()
    await expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()

    await page.add_init_script(
        "requestAnimationFrame(() => { window.firstTheme = document.documentElement.dataset.theme })"
    )
    await page.reload()

    assert await page.evaluate("window.firstTheme") == "dark"
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 17, 21)"


async def test_nothing_is_wider_than_a_phone_and_the_drawer_opens(
    page: Page, live_site: LiveSite, charlie: User
) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    live_site.publish(snapshot(1, worker("a-rather-long-name-for-a-worker-that-goes-on-and-on"), head=(waiting(1),)))
    await log_in(page, live_site)
    await expect(page.locator(".worker")).to_have_count(1)

    for path in ("/", "/docs/", "/docs/architecture/"):
        await page.goto(live_site.url + path)
        assert await page.evaluate("document.documentElement.scrollWidth") == 360, path
    await page.get_by_role("button", name="Menu").click()
    await page.get_by_role("link", name="Home").click()
    await expect(page.get_by_role("heading", name="The cluster now")).to_be_visible()


async def test_a_command_is_copied(page: Page, live_site: LiveSite, charlie: User) -> None:
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await log_in(page, live_site)

    await page.locator("[data-copy=cmd-token]").click()

    await expect(page.locator("[data-copy=cmd-token]")).to_have_text("Copied")
    copied = await page.evaluate("navigator.clipboard.readText()")
    assert copied == ".venv/bin/python manage.py createworkertoken"


async def test_a_page_is_right_without_javascript(chromium: Browser, live_site: LiveSite, charlie: User) -> None:
    live_site.publish(snapshot(1, worker("w-1", tokens_per_s=4321.0)))
    page = await chromium.new_page(java_script_enabled=False)

    await log_in(page, live_site)

    await expect(page.locator("#worker-w-1")).to_contain_text("4,321")
    await page.close()


async def test_the_admin_obeys_the_same_policy(page: Page, live_site: LiveSite, charlie: User) -> None:
    await log_in(page, live_site)

    await page.get_by_role("link", name="Admin").click()

    await expect(page.get_by_role("heading", name="Site administration")).to_be_visible()
