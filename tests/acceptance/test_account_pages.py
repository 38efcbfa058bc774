"""Registering, changing a password and browsing the API, in a real browser: nothing blocked, nothing too wide."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, Page, expect

from accounts.models import User
from tests.acceptance.conftest import LiveSite

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PASSWORD, NEW = "correct horse battery staple", "a wholly different passphrase"


async def register(page: Page, site: LiveSite) -> None:
    await page.goto(f"{site.url}/login/")
    await page.get_by_role("link", name="Register").click()
    await page.get_by_label("Email").fill("dana@example.com")
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await page.get_by_label("Password again").fill(PASSWORD)
    await page.get_by_role("button", name="Make an account").click()
    await page.wait_for_url(f"{site.url}/")


async def change_password(page: Page) -> None:
    await page.get_by_role("link", name="Password").click()
    await page.get_by_label("Current password").fill(PASSWORD)
    await page.get_by_label("New password", exact=True).fill(NEW)
    await page.get_by_label("New password again").fill(NEW)
    await page.get_by_role("button", name="Change password").click()
    await expect(page.get_by_text("Your password is changed.")).to_be_visible()


async def test_an_account_is_made_and_its_password_changed(page: Page, live_site: LiveSite) -> None:
    await register(page, live_site)
    await change_password(page)

    await page.get_by_role("button", name="Log out").click()
    await page.get_by_label("Email").fill("dana@example.com")
    await page.get_by_label("Password").fill(NEW)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{live_site.url}/")


async def test_it_works_without_javascript(chromium: Browser, live_site: LiveSite) -> None:
    page = await chromium.new_page(java_script_enabled=False)
    await register(page, live_site)
    await change_password(page)
    await page.close()


async def test_the_forms_fit_a_phone(page: Page, live_site: LiveSite, charlie: User) -> None:
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.goto(f"{live_site.url}/register/")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    await page.goto(f"{live_site.url}/login/")
    await page.get_by_label("Email").fill("charlie@example.com")
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{live_site.url}/")

    await page.goto(f"{live_site.url}/password/")

    assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_the_api_is_browsed_under_the_same_policy(page: Page, live_site: LiveSite) -> None:
    await page.goto(f"{live_site.url}/api/docs")

    login = page.locator("#operations-auth-log_in")
    await expect(login).to_be_visible()
    await login.get_by_role("button").first.click()
    await login.get_by_role("button", name="Try it out").click()
    await expect(login.get_by_role("textbox")).to_be_visible()
