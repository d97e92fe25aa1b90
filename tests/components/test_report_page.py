"""The report in a real browser: on a wide screen and on a phone, by day and by night."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser

# Contrast (WCAG 2) of every text in the page with what is behind it, the smallest first.
CONTRASTS = """() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                       return .2126 * r + .7152 * g + .0722 * b; };
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
                        if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('section *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(numbers(getComputedStyle(e).color).slice(0, 3)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.textContent.slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
}"""


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_report_is_readable(browser: Browser, evaluated: Any, width: int, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((evaluated.report / "report.html").resolve().as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert complaints == []
    assert [url for url in asked if not url.startswith(("data:image/webp;base64,", "file:"))] == []
    assert page.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"

    broken = "[...document.images].filter(each => !each.complete || !each.naturalWidth || !each.alt).length"
    assert (page.locator("img").count() > 50, page.evaluate(broken)) == (True, 0)
    sides = page.evaluate("[...document.images].map(each => Math.min(each.clientWidth, each.clientHeight))")
    assert min(sides) >= 48, "a picture is too small to see anything"
    narrow, text = page.evaluate(CONTRASTS)[0]
    assert narrow >= 4.5, f"{text!r} is hard to read"

    shot = page.locator("#mistakes img").first
    with Image.open(io.BytesIO(shot.screenshot())) as image:
        assert np.asarray(image.convert("L")).std() > 10, "the first picture is blank"
    corner = Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((2, 2))
    assert (corner > 200) == (scheme == "light")
    context.close()
