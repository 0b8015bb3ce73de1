"""HTML pages in tests: their elements, what a headless browser shows of them, and words that would break out of one."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

VOID = {"meta", "link", "img", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(2)" x="',
    "</script></style><img src=x onerror=alert(3)>",
    "{{ 7 * 7 }}{% raw %} & &lt;b&gt; 'quoted' \u202e",
)


def picture(path: Path, hue: int) -> str:
    """The absolute path of a drawn lesion, which now lies there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (400, 300), (226, 190, 165))
        ImageDraw.Draw(image).ellipse((120, 70, 290, 230), fill=(60 + hue * 3 % 90, 40 + hue * 7 % 60, 40))
        image.save(path)
    return str(path)


class Page(HTMLParser):
    """A page's elements in order, its text, and whether every element was closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closes what is open: {self.open}"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """What a reader sees, with single spaces."""
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("style", "script")).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of the name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag: str) -> str:
        """The text in the elements of the name."""
        return "".join(text for name, text in self.texts if name == tag)


def palettes(sheet: str) -> tuple[dict[str, str], dict[str, str]]:
    """The colours of a style sheet by name, in light and in dark: of its blocks of them, every second is dark."""
    light, dark = dict[str, str](), dict[str, str]()
    for number, block in enumerate(sheet.split(":root {")[1:]):
        colours = re.findall(r"--([a-z]+[0-9]*): #([0-9a-f]{6})", block.partition("}")[0])
        (dark if number % 2 else light).update(colours)
    assert light.keys() == dark.keys()
    return light, dark


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, as WCAG 2.2 defines it: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@contextmanager
def browser(page: Path, width: int, *, dark: bool = False, scripts: bool = True) -> Iterator[Any]:
    """Headless Chromium with the page open, in a window of this width; it must not complain about the page."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.fail(f"{' and '.join(missing)} not programs; install them: apt-get install chromium chromium-driver")
    os.environ["SE_OFFLINE"] = "true"  # selenium would fetch a driver of its own
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs["chromium"])
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=Service(executable_path=str(programs["chromedriver"])), options=options)
    try:
        window = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def console(driver: Any) -> list[str]:
    """What the browser's console holds: errors, and everything that the page's policy stopped."""
    return [entry["message"] for entry in driver.get_log("browser")]


def visible(driver: Any) -> list[Any]:
    """The cards that are shown."""
    return [card for card in driver.find_elements("css selector", ".card") if card.is_displayed()]


def brightness(driver: Any) -> float:
    """The mean of the window's pixels, 0 to 255."""
    with Image.open(io.BytesIO(driver.get_screenshot_as_png())) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.std() > 10  # something is there to see
    return float(pixels.mean())
