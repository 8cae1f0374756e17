"""The status page in a real browser, in every state, served by the unchanged server: what it shows, loads, says and keeps."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from ingester.health import HealthServer
from ingester.page.document import REFRESH_SECONDS
from sandbox.s3 import RunningS3
from tests.ingester.states import Place, in_state
from tests.scenarios.place import new_places

pytestmark = [pytest.mark.system, pytest.mark.timeout(60), pytest.mark.asyncio(loop_scope="module")]

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
LOOKS = {"light": 1100, "dark": 1100, "phone light": 360, "small phone dark": 320}
"""Widths in pixels."""
WATCH = "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(e.blockedURI + e.violatedDirective));"

CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (node) => { for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  } };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.checkVisibility() || node.closest('svg, script, style')) continue;
    const [one, other] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), text.data.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
}"""


@dataclass
class Seen:
    """What a page did besides showing itself."""

    url: str
    said: list[str] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append((request.resource_type, request.url)))

    @property
    def elsewhere(self) -> list[str]:
        return [url for _, url in self.asked if urlsplit(url).netloc != urlsplit(self.url).netloc]


@asynccontextmanager
async def serving(place: Place, port: int = 0, token: str | None = None) -> AsyncIterator[str]:
    report = place.run.service.report
    server = HealthServer(
        status=report.status,
        readiness=report.readiness,
        health=report.health,
        page=place.page,
        registry=CollectorRegistry(),
        clock=place.clock,
        telemetry=place.run.telemetry,
        token=SecretStr(token) if token else None,
    )
    yield await server.start("127.0.0.1", port)
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield launched
        await launched.close()


@asynccontextmanager
async def looking(browser: Browser, url: str, **how) -> AsyncIterator[tuple[Page, Seen]]:
    context = await browser.new_context(viewport={"width": 1100, "height": 900}, **how)
    page, seen = await context.new_page(), Seen(url)
    seen.watch(page)
    await page.add_init_script(WATCH)
    await page.clock.install()
    await page.goto(url)
    yield page, seen
    await context.close()


async def refresh(page: Page) -> None:
    """As when the time to the next look is over; returns when that look is done."""
    async with page.expect_response(lambda answer: answer.request.resource_type == "fetch") as answer:
        await page.clock.fast_forward(1000 * REFRESH_SECONDS)
    await (await answer.value).finished()
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => done()))")


HEADLINES = {
    "normal": "Collecting",
    "behind": "Collecting, and catching up",
    "paused": "Paused: the budget is used up",
    "broken": "Not collecting: X refuses the credentials",
    "empty": "Starting",
}


@pytest.mark.parametrize("name", HEADLINES)
async def test_a_state_is_shown_light_and_dark_and_on_a_phone(browser: Browser, tmp_path: Path, name: str) -> None:
    async with in_state(name, tmp_path) as place, serving(place) as url, looking(browser, url) as (page, seen):
        await expect(page.get_by_role("heading", level=1)).to_have_text(HEADLINES[name])
        for look, width in LOOKS.items():
            await page.set_viewport_size({"width": width, "height": 800})
            await page.emulate_media(color_scheme="dark" if "dark" in look else "light")
            await page.screenshot(path=tmp_path / f"{name} {look}.png", full_page=True)
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
            [(lowest, words), *_] = await page.evaluate(CONTRAST)
            assert lowest >= 4.5, f"{words!r} is hard to read: {lowest:.1f}"
            ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(14, 21, 27)") == ("dark" in look)
        assert seen.said == [], "the console is empty"
        assert await page.evaluate("violations") == []
        assert seen.elsewhere == []


async def test_a_refresh_changes_what_changed_and_nothing_else(browser: Browser, tmp_path: Path) -> None:
    async with in_state("normal", tmp_path) as place, serving(place) as url, looking(browser, url) as (page, seen):
        await page.set_viewport_size({"width": 700, "height": 400})
        await page.get_by_role("link", name="metrics").focus()
        await page.evaluate(
            """() => {
              window.kept = [...document.querySelectorAll('body *')];
              window.changes = [];
              new MutationObserver((list) => changes.push(...list.map((each) => each.type)))
                .observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true });
              scrollTo(0, 300);
            }"""
        )
        await refresh(page)
        assert await page.evaluate("changes") == [], "nothing is new, so nothing is touched"
        await place.passes(31)
        await refresh(page)
        assert set(await page.evaluate("changes")) == {"attributes", "characterData"}, "no element went or came"
        assert await page.evaluate("kept.every((node) => node.isConnected)")
        await expect(page.locator("#as-of")).to_have_text("as of 12:07:41 UTC")
        assert await page.evaluate("document.activeElement.textContent") == "metrics"
        assert await page.evaluate("scrollY") == 300
        assert [kind for kind, _ in seen.asked] == ["document", "other", "fetch", "fetch"], "never loaded anew"
        assert seen.said == []


async def test_a_change_for_the_worse_comes_by_itself_and_keeps_the_focus(browser: Browser, tmp_path: Path) -> None:
    async with in_state("normal", tmp_path) as place, serving(place) as url, looking(browser, url) as (page, _):
        await page.get_by_role("link", name="health").focus()
        await page.evaluate("window.here = true")
        place.x.faults.append(lambda _request: place.x.answer(402, {"title": "CreditsDepleted"}))
        await place.passes(200)
        await refresh(page)
        headline = "Not collecting: no credits left at X"
        await expect(page.get_by_role("status").get_by_role("heading", level=1)).to_have_text(headline)
        await expect(page).to_have_title(f"{headline} - Tweetlake")
        await expect(page.locator("#wrong")).to_contain_text("buy credits at X")
        assert await page.evaluate("document.activeElement.textContent") == "health"
        assert await page.evaluate("window.here")


async def test_a_service_that_is_gone_is_told_until_it_is_back(browser: Browser, tmp_path: Path) -> None:
    async with in_state("normal", tmp_path) as place, serving(place) as url, looking(browser, url) as (page, _):
        await expect(page.get_by_role("alert")).to_have_count(0)
        context = page.context
        await context.set_offline(True)
        await page.clock.fast_forward(1000 * REFRESH_SECONDS)
        words = "The service does not answer. This is how it was as of 12:07:10 UTC."
        await expect(page.get_by_role("alert")).to_have_text(words)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Collecting")
        await context.set_offline(False)
        await refresh(page)
        await expect(page.get_by_role("alert")).to_have_count(0)


async def test_a_screen_reader_and_a_keyboard_reach_all_of_it(browser: Browser, tmp_path: Path) -> None:
    async with in_state("broken", tmp_path) as place, serving(place) as url, looking(browser, url) as (page, _):
        for width in (1100, 360):
            await page.set_viewport_size({"width": width, "height": 800})
            for role in ("banner", "main", "contentinfo", "navigation"):
                await expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
            table = page.get_by_role("table", name="Queries")
            await expect(table.get_by_role("columnheader")).to_have_count(8)
            await expect(table.get_by_role("rowheader")).to_have_count(3)
            await expect(table.get_by_role("cell")).to_have_count(3 * 7)
            for title in ("What is wrong now", "Queries", "What waits", "What was spent", "The last day"):
                await expect(page.get_by_role("region", name=title)).to_have_count(1)
                await expect(page.get_by_role("heading", name=title, level=2)).to_have_count(1)
            charts = page.get_by_role("region", name="The last day").get_by_role("img")
            await expect(charts).to_have_count(3)
            words = r"Posts stored per minute Over the last 2 h 5\d min: now \d+, least \d+, most \d+\."
            await expect(charts.first).to_have_accessible_name(re.compile(words))
        reached = []
        for _ in range(3):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate("document.activeElement.textContent"))
            style = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", "one sees where one is"
        assert reached == ["all of it as JSON", "health", "metrics"]


async def test_it_works_without_script(browser: Browser, tmp_path: Path) -> None:
    async with in_state("normal", tmp_path) as place, serving(place) as url:
        context = await browser.new_context(java_script_enabled=False)
        page = await context.new_page()
        await page.goto(url)
        await expect(page.get_by_role("heading", level=1)).to_have_text("Collecting")
        await expect(page.locator("meta[http-equiv=refresh]")).to_have_attribute("content", str(3 * REFRESH_SECONDS))
        await context.close()


async def test_a_browser_sends_the_token_as_password_and_goes_on_doing_so(browser: Browser, tmp_path: Path) -> None:
    token = "a-token-of-a-test-0123456789"
    async with in_state("normal", tmp_path) as place, serving(place, token=token) as url:
        async with looking(browser, url, http_credentials={"username": "me", "password": token}) as (page, seen):
            await expect(page.get_by_role("heading", level=1)).to_have_text("Collecting")
            await refresh(page)
            await expect(page.locator("#stale")).to_be_hidden()
            assert seen.said == []
        context = await browser.new_context(http_credentials={"username": "me", "password": "wrong"})
        answer = await (await context.new_page()).goto(url)
        assert answer is not None
        assert answer.status == 401
        await context.close()


async def test_the_real_service_is_shown_while_it_collects(
    browser: Browser, server: RunningS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    with new_places(server, tmp_path, "status-page") as make:
        place = make(hours=0.02)
        with place.running() as service:
            await asyncio.to_thread(service.until, lambda: place.has_caught_up, 40)
            async with looking(browser, (place.spool / "http-address").read_text()) as (page, seen):
                await expect(page.get_by_role("heading", level=1)).to_have_text("Collecting")
                await expect(page.get_by_role("row")).to_have_count(1 + len(place.rules))
                await refresh(page)
                assert seen.said == []
                assert seen.elsewhere == []
                assert await page.evaluate("violations") == []
