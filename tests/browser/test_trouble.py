"""Hostile keys, busy and broken servers, narrow windows: the page works and says what is wrong."""

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.browser.conftest import PATIENCE, PHONE
from tests.browser.fake_server import FakeServer, Request

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "a/b/../c",
    "a%2Fb",
    "quotes \"'` and \\ and &amp; # ? ;=+",
    "日本語/ünïcødé 🐈",
    "javascript:alert(1)",
    "</script><script>alert(1)</script>",
    "line\nbreak",
    "x/info",
    "long " + "l" * 300,
]


def encoded(key: str) -> str:
    """The path of a picture as JavaScript's encodeURIComponent makes it."""
    return "/v1/images/" + quote(key, safe="!'()*~")


def test_hostile_keys_are_text_and_are_asked_for_as_they_are(
    page: "Page", fake: FakeServer
) -> None:
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    fake.keys[:] = HOSTILE
    page.goto(fake.url)
    page.wait_for_function(
        "(all) => document.querySelectorAll('.tile[data-layers]').length === all", arg=len(HOSTILE)
    )
    assert [one.text_content() for one in page.locator(".caption").all()] == HOSTILE
    assert {one.path for one in fake.pictures()} == set(map(encoded, HOSTILE))
    for place, key in enumerate(HOSTILE):
        page.click(f".tile >> nth={place}")
        page.wait_for_selector("#pane-stream img[data-layers='6']")
        assert page.locator("#viewer-key").text_content() == key
        assert encoded(key) + "/info" in {one.path for one in fake.requests}
        fake.requests.clear()
        page.reload()  # by its address alone
        page.wait_for_selector("#pane-stream img[data-layers='6']")
        assert page.locator("#viewer-key").text_content() == key
        assert encoded(key) + "/info" in {one.path for one in fake.requests}
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
        page.wait_for_selector("#viewer", state="hidden")
    assert dialogs == []
    assert page.locator("script").count() == 1


def test_keys_that_no_address_can_hold_are_said_in_words(page: "Page", fake: FakeServer) -> None:
    fake.keys[:] = [".", "..", "plain"]
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    for key in (".", ".."):
        page.get_by_text(f"A key “{key}” cannot be part of an address.").wait_for()


def busy(times: int, wait: str, where: str = "/v1/images") -> "Busy":
    return Busy(times, {"Retry-After": wait}, where)


class Busy:
    """Answers so many requests below a path with 503."""

    def __init__(self, times: int, headers: dict[str, str], where: str) -> None:
        self.left, self.headers, self.where = times, headers, where
        self.refused: list[Request] = []

    def __call__(self, request: Request) -> tuple[int, dict[str, str]] | None:
        if not request.path.startswith(self.where) or self.left <= 0:
            return None
        self.left -= 1
        self.refused.append(request)
        return 503, self.headers


def test_a_busy_server_is_waited_for(page: "Page", fake: FakeServer, complaints: list[str]) -> None:
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    while not fake.rests():  # or a refused tile could scroll away and never be asked for again
        page.wait_for_timeout(100)
    fake.fault = fault = busy(3, "4", "/v1/images/")
    page.evaluate("scrollTo(0, 3000)")
    page.get_by_text("The server is busy. Trying again in").wait_for()
    page.wait_for_selector("#notice", state="hidden")
    page.wait_for_function(
        "() => document.querySelectorAll('.tile[data-layers=\"3\"]').length > 20"
    )
    assert page.locator(".fault").count() == 0
    waits = [
        min(two.time - one.time for two in later)
        for one in fault.refused
        if (later := [two for two in fake.pictures() if two.key == one.key and two.time > one.time])
    ]
    assert min(waits) >= 3.9  # Retry-After, and nobody asked before
    assert all("503" in text for text in complaints)  # which the browser itself says
    complaints.clear()


def test_the_list_and_the_view_wait_too(
    page: "Page", fake: FakeServer, complaints: list[str]
) -> None:
    fake.fault = busy(3, "4", "/v1")
    page.goto(f"{fake.url}#key=photos%2F000003&layers=2")
    page.get_by_text("The server is busy. Trying again in").wait_for()
    page.wait_for_selector("#pane-stream img[data-layers='2']")
    complaints.clear()


def test_now_is_now(page: "Page", fake: FakeServer, complaints: list[str]) -> None:
    fake.fault = busy(1, "25", "/v1/dataset")
    page.goto(fake.url)
    page.click("#notice-now")
    page.wait_for_selector(".tile[data-layers='3']", timeout=20_000)
    complaints.clear()


def test_a_server_that_is_gone_is_said_and_waited_for(
    page: "Page", fake: FakeServer, complaints: list[str]
) -> None:
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    fake.fault = lambda request: (0, {})
    page.click(".tile >> nth=2")
    notice = page.get_by_text("The server cannot be reached. Trying again in")
    notice.wait_for()
    page.wait_for_selector("dialog #notice")  # where it can be used, over the picture
    fake.fault = lambda request: None
    # no real click: the page may try again by itself just before, and hide the button
    page.dispatch_event("#notice-now", "click")
    page.wait_for_selector("#pane-stream img[data-layers='6']")
    assert page.is_hidden("#notice")
    complaints.clear()


def test_errors_are_said_in_words(page: "Page", fake: FakeServer, complaints: list[str]) -> None:
    page.goto(f"{fake.url}#key=no%2Fsuch")
    page.get_by_text("Not found: no picture has this key").wait_for()
    page.keyboard.press("Escape")
    fake.fault = lambda request: (404, {}) if request.key == "photos/000001" else None
    page.reload()
    page.get_by_text("fault 404").wait_for()  # one tile; the others are there
    page.wait_for_selector(".tile[data-layers='3']")

    fake.fault = lambda request: (400, {}) if request.path == "/v1/images" else None
    page.reload()
    page.get_by_text("fault 400").wait_for()
    fake.fault = lambda request: None
    page.click("#end-again")
    page.wait_for_selector(".tile[data-layers='3']")
    complaints.clear()


def test_no_request_goes_elsewhere_and_the_policy_holds(page: "Page", fake: FakeServer) -> None:
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split(":")[0:2][-1]))
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    page.click(".tile >> nth=0")
    page.wait_for_selector("#pane-stream img[data-layers='6']")
    assert hosts <= {"//127.0.0.1", "http"}  # "blob:http://..." are pictures in memory
    # a violation would be a complaint; and styles and scripts in the page are refused indeed
    assert page.locator("[style*='url'], [onclick], script:not([src])").count() == 0


@pytest.mark.parametrize("width", [390, 320])
def test_nothing_is_wider_than_a_phone(browser: "Browser", fake: FakeServer, width: int) -> None:
    fake.keys[1] = "w" * 200
    context = browser.new_context(
        viewport={**PHONE, "width": width},
        has_touch=True,
        is_mobile=True,
        device_scale_factor=2,
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE)
    page = context.new_page()

    def fits() -> bool:
        return page.evaluate(
            """(width) => {
                const all = [...document.querySelectorAll("button, input, select, dd, h2")];
                const { documentElement } = document;
                return documentElement.scrollWidth <= width && visualViewport.scale === 1
                    && all.every((one) => {
                        const box = one.getBoundingClientRect();
                        return !box.width || (box.left >= 0 && box.right <= width + 0.5);
                    });
            }""",
            width,
        )

    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    assert page.get_attribute("#grid", "aria-colcount") == {390: "2", 320: "1"}[width]
    assert fits()
    page.tap("#filters-open")
    assert fits()
    page.tap(".tile >> nth=1")
    page.wait_for_selector("#pane-stream img[data-layers='6']")
    assert fits()
    assert page.locator("#stage").bounding_box()["height"] > 300
    page.tap("button[data-view=split]")
    page.wait_for_selector("#pane-other img")
    page.tap("summary")
    assert fits()
    context.close()


def swipe(page: "Page", by: int) -> None:
    """One finger over the stage, as the browser sends it."""
    touch = page.context.new_cdp_session(page)
    box = page.locator("#stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch.send(
        "Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]}
    )
    for step in range(1, 6):
        point = {"x": x + by * step / 5, "y": y}
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_finger_turns_to_the_next_picture(browser: "Browser", fake: FakeServer) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    page.tap(".tile >> nth=1")
    page.wait_for_selector("#pane-stream img[data-layers]")
    swipe(page, -120)
    page.wait_for_function(
        "() => document.querySelector('#viewer-key').textContent === 'photos/000002'"
    )
    swipe(page, 120)
    page.wait_for_function(
        "() => document.querySelector('#viewer-key').textContent === 'photos/000001'"
    )
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system(page: "Page", fake: FakeServer, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(fake.url)
    paper, ink = page.evaluate(
        "() => ['backgroundColor', 'color'].map((name) => getComputedStyle(document.body)[name])"
    )
    light = [sum(map(int, color[4:-1].split(","))) for color in (paper, ink)]
    assert (light[0] > light[1]) == (scheme == "light")
