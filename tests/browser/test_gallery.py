"""The gallery: any number of pictures, first layers first, then more layers of those in view."""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import PATIENCE
from tests.browser.fake_server import BYTES, FakeServer

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Scrolls as far as the list goes, again and again, and notes the most elements at any time.
SCROLL_TO_THE_END = """async (last) => {
    let most = 0, tallest = 0;
    const frame = () => new Promise(requestAnimationFrame);
    while (![...document.querySelectorAll(".caption")].some((one) => one.textContent === last)) {
        scrollTo(0, document.documentElement.scrollHeight);
        await frame();
        most = Math.max(most, document.querySelectorAll("*").length);
        tallest = Math.max(tallest, document.getElementById("grid").offsetHeight);
    }
    return [most, tallest];
}"""


def tile(page: "Page", key: str) -> str:
    return f".tile[title^='{key}\\a']"


def until(page: "Page", condition: Callable[[], bool]) -> None:
    """Waits for something outside the page, while the page goes on."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        page.wait_for_timeout(20)


def wait_for_layers(page: "Page", layers: int, selector: str = ".tile") -> None:
    page.wait_for_function(
        """([selector, layers]) => {
            const seen = [...document.querySelectorAll(selector)].filter((tile) => {
                const box = tile.getBoundingClientRect();
                return box.bottom > 60 && box.top < innerHeight;
            });
            return seen.length && seen.every((tile) => tile.dataset.layers === String(layers));
        }""",
        arg=[selector, layers],
    )


@pytest.mark.parametrize(("width", "many"), [(1280, 20_000), (390, 100_000)])
def test_any_number_of_pictures_scrolls_through_few_elements(
    page: "Page", serve: Callable[[list[str]], FakeServer], width: int, many: int
) -> None:
    keys = [f"photos/{number:06d}" for number in range(many)]
    fake = serve(keys)
    page.set_default_timeout(120_000)
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers]")

    most, tallest = page.evaluate(SCROLL_TO_THE_END, keys[-1])

    assert most < 1200
    assert tallest <= 2_000_000  # CSS pixels: browsers have limits
    assert page.inner_text("#place").endswith(f"of {many:,}")
    # the last pictures are there, not only their places
    wait_for_layers(page, 3)
    assert fake.pictures()[-1].key in keys[-100:]

    # back at the start, which was forgotten meanwhile and is read again
    pages = [one for one in fake.requests if one.path == "/v1/images"]
    page.focus(".tile[tabindex='0']")
    page.keyboard.press("Control+Home")
    page.wait_for_selector(f"{tile(page, keys[0])}:focus")
    again = [one for one in fake.requests if one.path == "/v1/images"][len(pages) :]
    assert "after" not in again[0].query
    # and nothing is lost in the middle
    page.evaluate(
        """async () => {
            scrollTo(0, 12345);
            for (let frames = 0; frames < 3; frames++) await new Promise(requestAnimationFrame);
        }"""
    )
    page.wait_for_function(
        """() => {
            const captions = [...document.querySelectorAll(".caption")];
            const drawn = document.querySelectorAll(".tile[data-layers]");
            return captions.every((one) => one.textContent) && drawn.length > 6;
        }"""
    )
    shown = sorted(page.locator(".caption").all_inner_texts())
    first = keys.index(shown[0] if shown[0] != keys[0] else shown[-5])
    seen = [key for key in shown if keys.index(key) >= first and key != keys[0]]
    assert seen == keys[first : first + len(seen)]


def test_first_layers_come_first_and_small_then_what_is_seen_sharpens(
    page: "Page", fake: FakeServer
) -> None:
    fake.delay = lambda request: 0.05 if request.key else 0
    page.goto(fake.url)
    wait_for_layers(page, 3)
    until(page, fake.rests)
    asked = fake.pictures()

    firsts = [one for one in asked if one.layers == 1]
    visible = set(page.locator(".caption").all_inner_texts())
    assert {one.key for one in firsts} == visible
    # before any other layer of any picture; four are on their way at a time, and may overtake
    assert asked.index(firsts[-1]) < len(firsts) + 3
    assert {one.query["max_side"] for one in firsts} == {"128"}

    # each picture that is seen, layer by layer
    steps: dict[str | None, list[int]] = {}
    for one in asked:
        steps.setdefault(one.key, []).append(one.layers)
    assert steps["photos/000000"] == [1, 2, 3]
    assert set(map(tuple, steps.values())) == {(1, 2, 3), (1,)}  # (1,): just outside the window
    assert {one.query["max_side"] for one in asked if one.layers > 1} == {"256"}
    assert fake.busiest <= 4
    read = BYTES[2] * list(steps.values()).count([1, 2, 3]) + BYTES[0] * list(steps.values()).count(
        [1]
    )
    assert page.inner_text("#read") == f"{round(read / 1000)} kB of streams"


def test_a_tile_shows_the_layers_it_got(page: "Page", fake: FakeServer) -> None:
    fake.delay = lambda request: 30 if request.key and request.layers > 2 else 0
    page.goto(fake.url)
    wait_for_layers(page, 2)
    color = page.evaluate(
        """() => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.drawImage(document.querySelector(".tile img"), 0, 0, 9, 9);
            return [...canvas.getImageData(4, 4, 1, 1).data];
        }"""
    )
    assert color == [80, 175, 60, 255]
    width = page.locator(".depth i").first.bounding_box()["width"]
    whole = page.locator(".depth").first.bounding_box()["width"]
    assert width == pytest.approx(whole * 2 / 6, abs=1)


def test_the_number_of_layers_can_be_chosen(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    wait_for_layers(page, 3)
    page.select_option("#depth", "6")
    wait_for_layers(page, 6)
    assert max(one.layers for one in fake.pictures()) == 6


def test_where_layers_take_long_the_gallery_asks_for_first_ones(
    page: "Page", fake: FakeServer
) -> None:
    fake.quick_layers = 1
    page.goto(fake.url)
    wait_for_layers(page, 1)
    until(page, fake.rests)
    assert {one.layers for one in fake.pictures()} == {1}
    assert page.input_value("#depth") == "1"
    page.select_option("#depth", "2")  # unless somebody wants more
    wait_for_layers(page, 2)
    assert max(one.layers for one in fake.pictures()) == 2


def test_first_layers_do_not_wait_for_sharper_ones(page: "Page", fake: FakeServer) -> None:
    fake.delay = lambda request: 60 if request.key and request.layers > 1 else 0
    page.goto(fake.url)
    wait_for_layers(page, 1)
    until(page, lambda: sum(one.layers == 2 for one in fake.pictures()) == 4)
    height = page.evaluate("document.querySelector('.row').offsetHeight")
    page.evaluate("(height) => scrollBy(0, 4 * height)", height)
    columns = int(page.get_attribute("#grid", "aria-colcount"))
    page.wait_for_selector(f".tile[data-index='{7 * columns}'][data-layers='1']")
    wait_for_layers(page, 1)
    assert page.locator(".fault").count() == 0


def test_what_scrolls_away_is_cancelled(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    wait_for_layers(page, 3)
    fake.delay = lambda request: 30 if request.key and request.key < "photos/000150" else 0
    before = len(fake.pictures())
    page.evaluate("scrollTo(0, 1800)")
    until(page, lambda: len(fake.pictures()) == before + 4)  # they are under way now, and slow
    with page.expect_event("requestfailed") as failed:
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    assert "ABORTED" in failed.value.failure
    # the slow ones hold nobody up
    page.wait_for_function("() => document.querySelectorAll('.tile[data-layers]').length > 12")


def test_search_finds_and_can_be_linked(page: "Page", fake: FakeServer) -> None:
    fake.keys[250] = "Lake/at dawn & later"
    page.goto(fake.url)
    page.wait_for_selector(".tile")
    page.keyboard.press("/")
    page.keyboard.type("lake")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")
    assert page.inner_text(".caption") == "Lake/at dawn & later"
    assert page.inner_text("#end-words") == "1 picture, no more."
    page.wait_for_function("() => location.hash === '#q=lake'")  # who types slowly gets there, too
    page.fill("#query", "nothing like it")
    page.wait_for_function(
        "() => document.querySelector('#end-words').textContent === 'No picture matches.'"
    )

    page.goto("about:blank")
    page.goto(f"{fake.url}#q=dawn+%26")
    page.wait_for_selector(tile(page, "Lake/at dawn & later"))
    assert page.input_value("#query") == "dawn &"
    page.click("#home")
    page.wait_for_function("() => document.querySelectorAll('.tile').length > 20")
    page.go_back()
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")


def test_arrows_go_on_where_a_search_finds_little(page: "Page", fake: FakeServer) -> None:
    """A page of a search may hold nothing and still not be the last."""
    fake.keys[:] = [f"{'Lake' if number % 150 == 0 else 'x'}/{number:04d}" for number in range(301)]
    fake.scanned = 20
    fake.delay = lambda request: 0.2 if request.query.get("after") else 0
    page.goto(f"{fake.url}#q=lake")
    page.locator(".tile").first.click()
    page.wait_for_selector("#viewer[open]")
    for key in ("Lake/0150", "Lake/0300"):
        page.wait_for_selector("#following:enabled")
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "(key) => document.querySelector('#viewer-key').textContent === key", arg=key
        )


def test_a_list_that_has_become_another_is_read_anew(
    page: "Page", serve: Callable[[list[str]], FakeServer], complaints: list[str]
) -> None:
    """Cursors hold for one state of a dataset: the server was started anew with a later one."""
    fake = serve([f"photos/{number:06d}" for number in range(2000)])
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers]")
    fake.fault = lambda request: (400, {}) if request.query.get("after") else None
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.get_by_text("fault 400").wait_for()
    fake.fault = lambda request: None
    fake.requests.clear()
    page.click("#end-again")
    page.wait_for_function("() => document.querySelector('#end-words').textContent === ''")
    page.wait_for_selector(".tile[data-layers]")
    lists = [one.query for one in fake.requests if one.path == "/v1/images"]
    assert "after" not in lists[0]
    complaints.clear()


def test_filters_go_to_the_server(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    page.click("#filters-open")
    page.fill("[name=min_width]", "640")
    offered = page.locator("[name=format] option").all_text_contents()
    assert offered == ["any", "jpeg", "png"]  # those of the dataset
    with page.expect_request("**/v1/images?*format=png*"):
        page.select_option("[name=format]", "png")
    assert page.url.endswith("#min_width=640&format=png")
    page.wait_for_selector(".tile[data-layers]")
    asked = [one.query for one in fake.requests if one.path == "/v1/images"][-1]
    assert (asked["min_width"], asked["format"]) == ("640", "png")
    assert "max_width" not in asked
    with page.expect_request("**/v1/images?*format=avif*"):  # a link may name any
        page.goto(f"{fake.url}#format=avif")
    page.wait_for_function("() => document.querySelector('[name=format]').value === 'avif'")


def test_arrows_move_the_focus_and_enter_opens(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    page.wait_for_function("() => document.querySelector('#grid').ariaRowCount > 0")  # all is read
    columns = int(page.get_attribute("#grid", "aria-colcount"))

    def focused() -> str:
        return page.evaluate("document.activeElement.querySelector('.caption')?.textContent")

    page.focus(".tile[tabindex='0']")
    assert focused() == "photos/000000"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert focused() == f"photos/{columns + 1:06d}"
    for _ in range(20):
        page.keyboard.press("ArrowDown")
    expected = f"photos/{21 * columns + 1:06d}"
    assert focused() == expected
    box = page.locator(".tile:focus").bounding_box()
    assert 56 <= box["y"]
    assert box["y"] + box["height"] <= 800
    # one stop of the Tab key, and it stays with the picture when the grid scrolls away from it
    assert page.locator(".tile[tabindex='0']").count() == 1
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector(tile(page, "photos/000000"))
    assert focused() == expected
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer[open]")
    assert page.inner_text("#viewer-key") == expected
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    assert focused() == expected


def test_the_grid_tells_where_one_is(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers]")
    tree = page.locator("#grid").aria_snapshot()
    assert re.search(r'gridcell "photos/000000, 768 by 512"', tree), tree
    rows = page.locator("[role=row]").evaluate_all("rows => rows.map((row) => row.ariaRowIndex)")
    assert rows[:3] == ["1", "2", "3"]


def test_another_width_keeps_the_place(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    page.wait_for_selector(".tile")
    page.evaluate("scrollTo(0, 4000)")
    page.wait_for_selector(tile(page, "photos/000140"))
    before = int(page.inner_text("#place").split("–")[0])
    page.set_viewport_size({"width": 700, "height": 800})
    page.wait_for_function("() => document.querySelector('#grid').ariaColCount === '3'")
    page.wait_for_function(
        """(before) => {
            const place = Number.parseInt(document.querySelector("#place").textContent);
            return Math.abs(place - before) < 6;
        }""",
        arg=before,
    )


def test_captions_stand_below_pictures_and_are_found(page: "Page", fake: FakeServer) -> None:
    keys = fake.keys
    fake.captions = {keys[0]: "<b>a cat</b> on a mat", keys[250]: "a dog in the harbour"}
    fake.labels = {keys[0]: "tabby", keys[1]: "siamese"}
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers]")
    captions = page.locator(".caption").all_text_contents()[:3]
    assert captions == ["<b>a cat</b> on a mat", f"siamese · {keys[1]}", keys[2]]
    title = page.locator(".tile").first.get_attribute("title")
    assert title == f"{keys[0]}\n<b>a cat</b> on a mat\ntabby\n768 × 512"
    # two lines have room, and no caption is cut by the row below
    boxes = [page.locator(".caption").nth(n).bounding_box() for n in (0, 1)]
    below = page.locator(".row").nth(1).bounding_box()
    assert all(box["y"] + box["height"] <= below["y"] for box in boxes)
    assert page.get_attribute("#query", "placeholder") == "Search 300 keys and captions"
    page.fill("#query", "HARBOUR")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")
    assert page.inner_text(".caption") == "a dog in the harbour"
    fake.unread = 7
    page.fill("#query", "harbou")
    page.get_by_text("The captions of 7 pictures were not searched").wait_for()


def test_a_dataset_without_captions_is_not_asked_for_any(page: "Page", fake: FakeServer) -> None:
    page.goto(f"{fake.url}#q=photos")
    page.wait_for_selector(".tile[data-layers]")
    assert page.get_attribute("#query", "placeholder") == "Search 300 keys"
    assert not [one for one in fake.requests if "captions" in one.query]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((768, 512), "fill"),  # hardly anything is cut off
        ((512, 512), "fill"),
        ((512, 768), "whole"),  # half of it would be
        ((2000, 300), "whole"),
        ((64, 48), "own"),
    ],
)
def test_a_cell_shows_the_whole_picture_or_its_upper_middle(
    page: "Page", fake: FakeServer, size: tuple[int, int], shown: str
) -> None:
    fake.size = size
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers]")
    frame = page.locator(".frame").first
    assert shown in frame.get_attribute("class").split()
    look = page.locator(".frame img").first.evaluate(
        "(image) => [getComputedStyle(image).objectFit, getComputedStyle(image).objectPosition]"
    )
    assert look[0] == ("contain" if shown == "whole" else "cover")
    if shown == "fill":
        assert look[1] == "50% 15%"
    if shown == "own":
        box, around = page.locator(".frame img").first.bounding_box(), frame.bounding_box()
        assert (box["width"], box["height"]) == size
        assert box["x"] - around["x"] == pytest.approx((around["width"] - 64) / 2, abs=1)


def test_who_wants_all_layers_gets_the_original_in_place_of_those_not_stored(
    page: "Page", fake: FakeServer
) -> None:
    fake.stored = 2
    page.goto(fake.url)
    wait_for_layers(page, 2)
    until(page, fake.rests)
    assert max(one.layers for one in fake.pictures()) == 2
    page.select_option("#depth", "6")
    page.wait_for_selector(".tile[data-layers='original']")
    until(page, fake.rests)
    assert {one.layers for one in fake.pictures()} == {1, 2, 3}
