"""Pages in a real Chromium: no console error, charts drawn under our CSP, nothing sticks out of a phone."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOKEN = "msp_" + "t" * 43


def _screenshots() -> Any:
    file = Path(__file__).parents[2] / "scripts" / "screenshots.py"
    spec = importlib.util.spec_from_file_location("mainspring_screenshots", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(_screenshots().find_browser() is None, reason="no Chromium or Chrome on the PATH"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def tab(shop_server: str) -> Iterator[Any]:
    """A logged-in tab."""
    from mainspring.server import charts

    module = _screenshots()
    if not charts.BUNDLE.exists():
        charts._make_in_child()
    assert charts.BUNDLE.exists()
    browser = module.Browser(module.find_browser())
    try:
        browser.look(1440)
        browser.open(f"{shop_server}/login#{TOKEN}")
        browser.wait("location.pathname === '/' && document.readyState === 'complete'")
        assert browser.evaluate("location.hash") == ""
        browser.errors.clear()
        yield browser
    finally:
        browser.close()


def test_b04_every_page_opens_without_an_error_and_runs_nothing_hostile(
    tab: Any, shop_server: str, shop: Any
) -> None:
    """B04 in a DOM. Seen red with autoescape off in the templates' environment."""
    charts_drawn = 0
    tab.look(1440)
    for path in shop.paths:
        tab.open(shop_server + path)
        assert tab.errors == [], path
        assert tab.evaluate("window.__xss === undefined"), path
        assert tab.evaluate("document.querySelectorAll('img[src=x], [onerror], [onload]').length") == 0, path
        figures, drawn = tab.evaluate(
            "[document.querySelectorAll('figure.chart').length, document.querySelectorAll('figure.chart .plot svg').length]"
        )
        assert figures == drawn, path
        charts_drawn += drawn
    assert charts_drawn >= 8


def test_nothing_sticks_out_of_a_phone_or_a_wide_screen(tab: Any, shop_server: str, shop: Any) -> None:
    for width in (390, 1920):
        tab.look(width)
        for path in shop.paths:
            tab.open(shop_server + path)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (width, path)
    assert tab.errors == []


def test_dark_and_light_have_contrast(tab: Any, shop_server: str) -> None:
    """AA: 4.5 to 1 for text, in each of our text colours on the background and on the soft background."""
    measure = """(() => {
      const light = (name) => {
        const box = document.createElement('i'); box.style.color = `var(--${name})`; document.body.append(box);
        const c = getComputedStyle(box).color.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255); box.remove();
        const [r, g, b] = c.map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const worst = [];
      for (const ground of ['bg', 'soft']) for (const name of ['text', 'quiet', 'accent', 'second', 'good', 'warn', 'bad']) {
        const [a, b] = [light(name), light(ground)].sort((x, y) => y - x);
        worst.push([(a + 0.05) / (b + 0.05), name, ground]); }
      return worst.sort((x, y) => x[0] - y[0])[0]; })()"""
    for dark in (False, True):
        tab.look(1440, dark=dark)
        tab.open(shop_server + "/")
        ratio, name, ground = tab.evaluate(measure)
        assert ratio >= 4.5, (dark, name, ground, ratio)


def test_the_keys_go_places(tab: Any, shop_server: str) -> None:
    tab.look(1440)
    tab.open(shop_server + "/")
    for key in ("g", "t"):
        tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
    tab.wait("location.pathname === '/timeline' && document.readyState === 'complete'")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="/", text="/")
    assert tab.evaluate("document.activeElement.name") == "subject"


def test_an_open_page_follows_the_event_log(tab: Any, shop_server: str, shop_workspace: Any) -> None:
    tab.look(1440)
    tab.open(shop_server + "/models/buy/versions/1")
    tab.evaluate(
        "new Promise((done) => setTimeout(done, 1000))"
    )  # the first look is what later ones compare with
    shop_workspace.models.approve(model="buy", version=1, reason="seen on an open page")
    tab.wait("document.querySelector('main').textContent.includes('seen on an open page')", seconds=20)
    assert tab.errors == []


def test_a_form_changes_things_from_a_real_browser(tab: Any, shop_server: str, shop_workspace: Any) -> None:
    """Origin and Sec-Fetch-Site as a browser sends them pass the gate.

    Seen red under the gate's own referrer policy, in the fixture already: the login form is refused there.
    """
    tab.open(shop_server + "/models/buy/versions/2")
    tab.evaluate(
        "(() => { const form = document.querySelector(\"form[action$='/approve']\"); form.elements.reason.value = 'typed';"
        " form.requestSubmit(); })()"
    )
    tab.wait(
        "document.readyState === 'complete' && document.querySelector('main').textContent.includes('typed')"
    )
    assert shop_workspace.models.list_approvals(model="buy", version=2)[-1].reason == "typed"
    assert tab.errors == []


def test_without_scripts_the_table_is_shown(tab: Any, shop_server: str) -> None:
    tab.look(1440)
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.call("Page.navigate", url=shop_server + "/deployments/buy/monitoring")
        tab.wait(
            "document.readyState === 'complete' && document.querySelectorAll('figure.chart details[open] td').length > 5"
        )
        assert tab.evaluate("document.querySelectorAll('.plot:not([hidden])').length") == 0
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_profile_is_gone_when_the_browser_ends() -> None:
    module = _screenshots()
    browser = module.Browser(module.find_browser())
    folder = browser._profile
    browser.close()
    assert not Path(folder).exists()
