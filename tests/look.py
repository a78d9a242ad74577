"""Look at a page as people do: on a phone, on a desk, on paper. Needs `playwright` and a Chromium.

python tests/look.py PAGE.html FOLDER writes phone.png, desk.png and paper.pdf, and says what is wrong with the page.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"phone": 390, "desk": 1440}
#: Elements that reach over the page's edge and are not inside a box that scrolls sideways by itself.
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !e.closest('.scroll, svg');
}).map(e => e.tagName.toLowerCase() + ' ' + (e.textContent || '').trim().slice(0, 40))"""


def chromium() -> str | None:
    """The browser: $CHROMIUM, or one that is installed."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def _watch(page: Page, problems: list[str]) -> None:
    page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on(
        "request", lambda r: problems.append(f"network: {r.url}") if not r.url.startswith(("file:", "data:")) else None
    )
    page.on("requestfailed", lambda r: problems.append(f"not loaded: {r.url[:80]}"))


def _switch(page: Page, problems: list[str]) -> None:
    """Every currency shows its own figure and no other."""
    labels = page.locator(".switch > label")
    for k in range(labels.count()):
        labels.nth(k).click()
        shown = [pane.is_visible() for pane in page.locator(".pane").all()]
        if shown != [j == k for j in range(len(shown))]:
            problems.append(f"currency {k}: panes shown {shown}")
    if labels.count():
        labels.nth(0).click()


def _see(browser: Browser, page_file: Path, out: Path, name: str, width: int) -> list[str]:
    problems: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    _watch(page, problems)
    page.goto(page_file.resolve().as_uri())
    _switch(page, problems)
    page.locator("details").evaluate_all("found => found.forEach(d => d.open = true)")
    problems += [f"over the edge: {element}" for element in page.evaluate(OVERFLOWING)]
    if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
        problems.append(f"the page is {wide} px wide")
    page.locator("details").evaluate_all("found => found.forEach(d => d.open = false)")
    page.screenshot(path=out / f"{name}.png", full_page=True)
    if name == "desk":
        page.pdf(path=out / "paper.pdf", format="A4")
    page.close()
    return [f"{width} px: {problem}" for problem in problems]


def look(page_file: Path, out: Path) -> list[str]:
    """What is wrong with a page; its pictures go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # a browser as root, as in containers, has no sandbox; it only opens our own file
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        problems = [p for name, width in WIDTHS.items() for p in _see(browser, page_file, out, name, width)]
        browser.close()
    return problems


if __name__ == "__main__":
    found = look(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(found) or f"nothing wrong; pictures in {sys.argv[2]}")
    sys.exit(bool(found))
