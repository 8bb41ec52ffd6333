#!/usr/bin/env python3
"""Take the pictures of the live page in docs/live from a running demo: light and dark, wide and narrow.

    tools/screenshots.py [SECONDS]    how long the demo runs before the pictures are taken, 240 by default

Needs Chromium (Debian: apt install chromium) and the development requirements.
"""

import asyncio
import shutil
import sys
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright

from outlive_service.demo import Demo

FOLDER = Path(__file__).parents[1] / "docs" / "live"
CLIENTS = 25
SEED = 7
SECONDS = 240.0
HEIGHTS = {1200: 1060, 400: 1500}
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


async def take(page: Page, view: str, scheme: str, width: int) -> None:
    """Take one picture of what there is to see."""
    # The same times whenever the pictures are taken would be a lie; the pointer and the caret aren't told of.
    await page.screenshot(path=FOLDER / f"{view}-{scheme}-{width}.png", caret="hide")


async def overview(browser: Browser, url: str, scheme: str, width: int) -> None:
    """The page as it opens."""
    context = await browser.new_context(
        viewport={"width": width, "height": HEIGHTS[width]}, color_scheme=scheme
    )
    page = await context.new_page()
    await page.goto(url)
    await page.locator("#flow-list li").first.wait_for()
    await take(page, "overview", scheme, width)
    await context.close()


async def waterfall(browser: Browser, url: str, scheme: str, width: int) -> None:
    """A flow with a run that timed out and one that was cancelled, as far as there is one."""
    context = await browser.new_context(viewport={"width": width, "height": 820}, color_scheme=scheme)
    page = await context.new_page()
    await page.goto(f"{url}#outcome=timed_out")
    rows = page.locator("#flow-list a")
    await rows.first.wait_for()
    rich = rows.filter(has_text="cancelled")
    await (rich if await rich.count() else rows).first.click()
    await page.locator("#waterfall .spans").wait_for()
    await page.locator("#flows").evaluate("section => scrollTo(0, section.offsetTop - 16)")
    await page.mouse.move(0, 0)
    await take(page, "waterfall", scheme, width)
    await context.close()


async def main(seconds: float) -> None:
    """Play the demo and look at it."""
    FOLDER.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("Chromium is not installed (Debian: apt install chromium)")
    demo = Demo(CLIENTS, SEED, {})
    async with demo.running(), async_playwright() as playwright:
        visits = asyncio.create_task(demo.traffic.run(seconds + 60))
        await asyncio.sleep(seconds)
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        for scheme in ("light", "dark"):
            for width in (1200, 400):
                await overview(browser, demo.addresses.live, scheme, width)
                await waterfall(browser, demo.addresses.live, scheme, width)
        await browser.close()
        demo.traffic.stop()
        await visits


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
