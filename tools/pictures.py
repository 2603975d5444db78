"""Take the README's two pictures: the head of a run's page of results, and its attention explorer.

Usage: python tools/pictures.py RUN_FOLDER OUT_FOLDER. `make pictures` does it for the demo.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

LARGEST = 300_000  # bytes of a picture
HEIGHT = 1350  # pixels: the figure of all methods is in it
QUALITIES = (90, 80, 70, 60, 50, 40)  # of WebP, until the picture is small enough
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]


def results(page: Page) -> bytes:
    """Return the head of the page of results as PNG: the finding and its figure."""
    return page.screenshot()


def attention(page: Page) -> bytes:
    """Return a patch opened in the viewer as PNG."""
    page.locator("figure.explorer .pictures button").first.click()
    page.locator("dialog[open] .lens .layers").first.wait_for()
    return page.locator("dialog[open]").screenshot()


PICTURES = {"report.webp": ("04_results.html", results), "attention.webp": ("06_attention.html", attention)}


def save_webp(png: bytes, path: Path) -> None:
    """Write a screenshot as WebP of at most LARGEST bytes."""
    for quality in QUALITIES:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
        if len(buffer.getvalue()) <= LARGEST:
            path.write_bytes(buffer.getvalue())
            return
    sys.exit(f"{path}: larger than {LARGEST:,} bytes at every quality")


def main(run: Path, out: Path) -> None:
    """Write both pictures."""
    missing = [run / page for page, _ in PICTURES.values() if not (run / page).is_file()]
    if missing:
        sys.exit(f"{missing[0]} is not there. Run `make report` first.")
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, (file, take) in PICTURES.items():
            page = browser.new_page(viewport={"width": 1200, "height": HEIGHT}, device_scale_factor=1.5)
            page.goto((run / file).resolve().as_uri())
            page.wait_for_load_state("load")
            save_webp(take(page), out / name)
            print(out / name)
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:])) if len(sys.argv) == 3 else sys.exit(__doc__)
