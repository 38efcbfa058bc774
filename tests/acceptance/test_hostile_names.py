"""Names that are programs, in every field that somebody may fill in, in a real browser.

Each page is opened with all of them on it. Nothing may run, nothing may be asked of another origin,
and the Content-Security-Policy must have had nothing to refuse: escaping is what holds, and the
policy is there for the day when it does not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import cycle, islice

import pytest
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.urls import reverse
from django.utils import timezone
from playwright.async_api import Browser, Page

from accounts.models import ApiKey, User
from accounts.services import create_key, save_key
from cluster.models import Worker, WorkerToken
from cluster.services import create_worker_token
from gpucloud.lib.audit import Actor
from inference.models import Request
from tests.acceptance.conftest import LiveSite
from tests.integration.pages.snapshots import snapshot, waiting, worker

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PAYLOADS = (
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<img src=//evil.example/pixel>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "\"><script>alert(1)</script>",
    "'><img src=x onerror=alert(1)>",
    "\" onmouseover=alert(1) x=\"",
    "' onfocus=alert(1) autofocus x='",
    "\" autofocus onfocus=alert(1) x=\"",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</option></select><img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "--><script>alert(1)</script>",
    "<iframe src=javascript:alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href=javascript:alert(1) id=x>x</a>",
    "javascript:alert(1)//",
    "<form action=//evil.example><input type=submit autofocus>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example/x.css';</style>",
    "<div style='background:url(//evil.example/x)'>x</div>",
    "<div hx-get=//evil.example/ hx-trigger=load>x</div>",
    "<div hx-on:load=alert(1) hx-trigger=\"load[alert(1)]\">x</div>",
    "{{constructor.constructor('alert(1)')()}}{% csrf_token %}",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "\\x3cimg src=x onerror=alert(1)\\x3e\\u003cscript\\u003e",
    "<img/src=`x`onerror=alert`1`>",
    "&lt;script&gt;alert(1)&lt;/script&gt;&#x3c;img src=x onerror=alert(1)&#x3e;",
)  # fmt: skip


@pytest.fixture
async def tab(chromium: Browser, live_site: LiveSite, charlie: User) -> AsyncIterator[Page]:
    """A logged-in operator's tab, which fails the test if anything ran, leaked or was refused."""
    complaints: list[str] = []
    context = await chromium.new_context(user_agent=f"Mozilla/5.0 {PAYLOADS[0]}")
    page = await context.new_page()

    async def dismiss(dialog: object) -> None:
        complaints.append(f"a dialog on {page.url}")
        await dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dismiss)
    page.on("console", lambda said: complaints.append(f"{page.url}: {said.text}") if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))
    page.on("framenavigated", lambda frame: complaints.append(f"a frame {frame.url}") if frame.parent_frame else None)
    page.on(
        "request",
        lambda sent: None if sent.url.startswith((live_site.url, "data:")) else complaints.append(f"asked {sent.url}"),
    )
    await context.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"
    )
    await page.goto(f"{live_site.url}/login/")
    await page.get_by_label("Email").fill("charlie@example.com")
    await page.get_by_label("Password").fill("correct horse battery staple")
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{live_site.url}/")
    yield page
    await context.close()
    assert complaints == []


def name_everything(charlie: User) -> None:
    """Put every payload into every field that takes words from somebody."""
    actor = Actor(charlie.pk, charlie.email)
    now = timezone.now()
    for number, payload in enumerate(PAYLOADS):
        key, _ = create_key(user=charlie, name=payload[:100], actor=actor)
        key.name = payload[::-1][:100]
        save_key(key=key, actor=actor)
        key.name = payload[:100]
        save_key(key=key, actor=actor)
        token, _ = create_worker_token(name=payload[:100], models=["*"], actor=actor)
        Worker.objects.create(
            id=f"{number}{payload}"[:64],
            name=payload[:64],
            instance=payload[:64],
            token=token,
            gpu=payload[:64],
            gpus=1,
            models=[payload],
            capacity=1,
            first_seen_at=now,
            last_seen_at=now,
        )
        Request.objects.create(
            id=f"{number}{payload}"[:64],
            user=charlie,
            key=key,
            model=payload[:128],
            source="api",
            stream=True,
            tier=payload[:16],
            node=payload[:64],
            state="failed",
            error_code=payload[:64],
            prompt_tokens=1,
            worker_id=payload[:64],
            worker_name=payload[:64],
            created_at=now,
            ended_at=now,
        )
        User.objects.bulk_create([User(email=f"{number}{payload}".lower()[:200] + "@example.com")])
        LogEntry.objects.create(
            user=charlie,
            content_type=ContentType.objects.get_for_model(ApiKey),
            object_id=str(key.pk),
            object_repr=payload,
            action_flag=CHANGE,
            change_message=payload,
        )


def admin_pages() -> list[str]:
    """List the admin's pages: lists, searches, forms and histories, each with some of the payloads."""
    paths = [reverse("admin:index"), reverse("admin:password_change")]
    for model in admin.site._registry:
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        paths += [reverse(f"{name}_changelist"), reverse(f"{name}_changelist") + "?q=%3Cscript%3Ealert(1)%3C/script%3E"]
        for row in list(model._default_manager.all().order_by("pk")[:2]):
            paths += [reverse(f"{name}_{page}", args=[row.pk]) for page in ("change", "history")]
    return [*paths, reverse("admin:accounts_user_add"), reverse("admin:app_list", args=["accounts"])]


def payload_pages() -> list[str]:
    """List the forms and histories of rows that are named by programs, some of each kind."""
    paths = []
    for model in (ApiKey, WorkerToken, Worker, Request, User):
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        rows = model._default_manager.order_by("pk").values_list("pk", flat=True)
        for row, page in zip(islice(rows, 4, None, 9), cycle(("change", "history")), strict=False):
            paths.append(reverse(f"{name}_{page}", args=[row]))
    return paths


@pytest.fixture
def admin_paths(charlie: User) -> list[str]:
    """Fill the database with programs for names, and list the pages that show them."""
    name_everything(charlie)
    return [*admin_pages(), *payload_pages()]


async def test_asvs_1_2_1_no_name_runs_in_the_admin(tab: Page, live_site: LiveSite, admin_paths: list[str]) -> None:
    for path in admin_paths:
        answer = await tab.goto(live_site.url + path)
        assert answer is not None
        assert answer.status == 200, path


async def test_asvs_1_3_2_no_name_runs_on_pages_and_panels(tab: Page, live_site: LiveSite) -> None:
    fleet = [worker(f"w-{number}", name=name, models=(name,)) for number, name in enumerate(PAYLOADS)]
    queue = tuple(waiting(number, f"u:{number}", name) for number, name in enumerate(PAYLOADS, 1))

    live_site.publish(snapshot(1, *fleet, head=queue))
    await tab.wait_for_selector("#worker-w-35")  # came by the socket, swapped in by htmx
    await tab.reload()  # and by the page itself

    assert PAYLOADS[0] in await tab.locator("#worker-w-0").inner_text()
    for path in ("/docs/", "/docs/settings/", "/api/docs", "/docs/?q=<svg onload=alert(1)>"):
        await tab.goto(live_site.url + path, wait_until="networkidle")


async def test_asvs_1_2_1_what_is_typed_into_a_form_does_not_run_when_it_comes_back(
    chromium: Browser, live_site: LiveSite
) -> None:
    ran: list[str] = []
    page = await chromium.new_page()
    page.on("dialog", lambda dialog: ran.append(dialog.message))
    page.on("console", lambda said: ran.append(said.text) if "Content Security Policy" in said.text else None)

    for path in ("/login/", "/register/"):
        for typed in PAYLOADS[7:12]:
            await page.goto(live_site.url + path)
            await page.locator("form[method=post].stack").evaluate("form => form.noValidate = true")
            await page.locator("input[type=email]").fill(typed)
            for field in await page.locator("input[type=password]").all():
                await field.fill(typed)
            await page.locator("form.stack button[type=submit]").click()
            await page.wait_for_load_state()
            assert await page.locator("input[type=email]").input_value() == typed.strip()

    assert ran == []
    await page.close()
