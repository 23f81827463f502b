"""One picture: the slider over its layers, the figures, the original, the keyboard."""

from typing import TYPE_CHECKING

import pytest

from tests.browser.fake_server import LAYERS, ORIGINAL_COLOR, FakeServer, stream_color

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEY = "photos/000003"
LINK = "#key=photos%2F000003"


def color_at(page: "Page", x: float, y: float) -> tuple[int, int, int]:
    """What is on the screen at a place of the stage, given in parts of its width and height."""
    import io

    from PIL import Image

    shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    return shot.getpixel((int(x * shot.width), int(y * shot.height)))


def wait_for_layer(page: "Page", layers: int) -> None:
    page.wait_for_selector(f"#pane-stream img[data-layers='{layers}']")


def figures(page: "Page") -> list[str]:
    return [page.inner_text(f"#{name}") for name in ("bytes", "bpp", "psnr", "share")]


def test_opening_sharpens_layer_by_layer(page: "Page", fake: FakeServer) -> None:
    page.emulate_media(reduced_motion="no-preference")
    page.goto(fake.url)
    # until the gallery asks nothing more of this one
    page.locator(".tile").nth(3).and_(page.locator("[data-layers='3']")).wait_for()
    fake.requests.clear()
    page.click(".tile >> nth=3")
    wait_for_layer(page, LAYERS)
    assert [one.layers for one in fake.pictures() if one.key == KEY] == [1, 2, 3, 4, 5, 6]
    assert page.inner_text("#layers-of") == "6 of 6"
    assert color_at(page, 0.5, 0.5) == stream_color(6)


def test_where_layers_take_long_a_first_one_bridges_the_time(
    page: "Page", fake: FakeServer
) -> None:
    """Each step would take as long as the whole: between the first and the last there is none."""
    page.emulate_media(reduced_motion="no-preference")
    fake.quick_layers = 1
    page.goto(f"{fake.url}{LINK}")
    wait_for_layer(page, LAYERS)
    asked = [(one.layers, one.query.get("max_side")) for one in fake.pictures()]
    assert asked == [(1, "256"), (6, None)]
    page.keyboard.press("Escape")
    page.wait_for_function(
        "() => document.querySelectorAll('.tile img')[5]?.naturalWidth === 256"
    )  # until the gallery asks nothing more of this one
    fake.requests.clear()
    page.click(".tile >> nth=5")
    wait_for_layer(page, LAYERS)
    asked = [one.layers for one in fake.pictures() if one.key == "photos/000005"]
    assert asked == [6]  # the gallery's first layer is there already


def test_what_is_only_slow_is_said_and_asked_for_once(page: "Page", fake: FakeServer) -> None:
    fake.delay = lambda request: 8 if request.key and request.layers == LAYERS else 0
    page.goto(f"{fake.url}{LINK}&layers=1")
    wait_for_layer(page, 1)
    page.keyboard.press("0")
    page.keyboard.press("+")  # which may want it in another size, but this is the largest
    page.keyboard.press("+")
    page.get_by_text("The server takes its time for this one.").wait_for()
    wait_for_layer(page, LAYERS)
    assert page.inner_text("#stage-words") == ""
    assert [one.layers for one in fake.pictures()].count(LAYERS) == 1


def test_the_slider_shows_what_a_layer_costs_and_asks_for_it(
    page: "Page", fake: FakeServer
) -> None:
    page.goto(f"{fake.url}{LINK}&layers=2")
    wait_for_layer(page, 2)
    assert [one.layers for one in fake.pictures() if one.key == KEY] == [2]
    assert figures(page) == ["900 B", "0.018", "26.3 dB", "0.1 %"]  # of 768x512, 600,000 bytes
    assert page.get_attribute("#bytes", "title") == "900 bytes"

    page.fill("#layers", "4")
    wait_for_layer(page, 4)
    assert fake.pictures()[-1].layers == 4
    assert figures(page) == ["12 kB", "0.24", "38.0 dB", "2.0 %"]
    assert color_at(page, 0.5, 0.5) == stream_color(4)
    assert page.locator("#strata .in").count() == 4
    assert page.get_attribute("#layers", "aria-valuetext") == "4 of 6 layers"
    assert page.url.endswith("layers=4")
    assert "layers=4" in page.get_attribute("#save", "href")

    page.fill("#layers", "6")
    assert figures(page)[2] == "exact"
    wait_for_layer(page, 6)
    # what was loaded once is not asked for again
    before = len(fake.pictures())
    page.fill("#layers", "2")
    wait_for_layer(page, 2)
    assert len(fake.pictures()) == before


def test_the_last_choice_wins_over_slower_ones(page: "Page", fake: FakeServer) -> None:
    fake.delay = lambda request: 1.0 if request.layers == 5 and request.key else 0
    page.goto(f"{fake.url}{LINK}&layers=1")
    wait_for_layer(page, 1)
    page.keyboard.press("5")
    assert figures(page)[0] == "40 kB"  # the figures do not wait
    page.wait_for_timeout(100)
    page.keyboard.press("3")
    wait_for_layer(page, 3)
    page.wait_for_timeout(1200)
    assert color_at(page, 0.5, 0.5) == stream_color(3)


def test_split_and_side_by_side_with_the_original(page: "Page", fake: FakeServer) -> None:
    fake.size = (1536, 1024)  # fills the window
    page.goto(f"{fake.url}{LINK}&layers=3")
    wait_for_layer(page, 3)
    assert not [one for one in fake.requests if "originals" in one.path]  # not before it is wanted
    page.click("button[data-view=split]")
    page.wait_for_selector("#pane-other img")
    assert "/v1/originals/photos%2F000003" in [one.path for one in fake.requests]
    assert page.url.endswith("&view=split")
    assert color_at(page, 0.3, 0.5) == stream_color(3)
    assert color_at(page, 0.7, 0.5) == ORIGINAL_COLOR

    box = page.locator("#stage").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=4)
    page.mouse.up()
    assert page.get_attribute("#divider", "aria-valuenow") == "80"
    assert color_at(page, 0.7, 0.5) == stream_color(3)
    assert color_at(page, 0.9, 0.5) == ORIGINAL_COLOR
    page.keyboard.press("Home")  # the divider has the focus
    assert color_at(page, 0.2, 0.5) == ORIGINAL_COLOR

    page.click("button[data-view=side]")
    assert color_at(page, 0.25, 0.5) == stream_color(3)
    assert color_at(page, 0.75, 0.5) == ORIGINAL_COLOR
    page.click("button[data-view=single]")
    assert color_at(page, 0.75, 0.5) == stream_color(3)


def test_without_an_original_all_layers_are_what_one_compares_with(
    page: "Page", fake: FakeServer
) -> None:
    fake.originals = False
    fake.size = (1536, 1024)
    page.goto(f"{fake.url}{LINK}&layers=1&view=split")
    page.wait_for_selector("#pane-other img")
    assert page.inner_text("#pane-other figcaption") == "all 6 layers"
    assert color_at(page, 0.3, 0.5) == stream_color(1)
    assert color_at(page, 0.7, 0.5) == stream_color(6)
    assert not [one for one in fake.requests if "originals" in one.path]


def test_an_original_that_no_browser_shows_is_said_in_words(page: "Page", fake: FakeServer) -> None:
    fake.fault = lambda request: (200, {}) if "originals" in request.path else None  # JSON
    page.goto(f"{fake.url}{LINK}&layers=1&view=split")
    page.get_by_text("This browser cannot show the original (png).").wait_for()


def test_zoom_loads_what_it_needs(page: "Page", fake: FakeServer) -> None:
    page.set_viewport_size({"width": 700, "height": 500})
    page.goto(f"{fake.url}{LINK}&layers=2")
    wait_for_layer(page, 2)
    assert fake.pictures()[-1].query["max_side"] == "512"
    page.keyboard.press("f")
    page.wait_for_function("() => document.querySelector('#zoom-fit').textContent === '100 %'")
    page.wait_for_function("() => document.querySelector('#pane-stream img').naturalWidth === 768")
    assert "max_side" not in fake.pictures()[-1].query
    before = page.locator("#pane-stream .sheet").bounding_box()
    box = page.locator("#stage").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 70, box["y"] + 90, steps=3)
    page.mouse.up()
    after = page.locator("#pane-stream .sheet").bounding_box()
    assert after["x"] == before["x"] - 30
    page.mouse.wheel(0, -400)
    page.wait_for_function(
        "(width) => document.querySelector('#pane-stream .sheet').getBoundingClientRect().width"
        " > width * 1.5",
        arg=before["width"],
    )


def test_a_small_picture_is_seen_in_its_own_size_and_can_be_zoomed(
    page: "Page", fake: FakeServer
) -> None:
    fake.size = (64, 48)
    page.goto(f"{fake.url}{LINK}&layers=2")
    wait_for_layer(page, 2)
    sheet = page.locator("#pane-stream .sheet")
    assert page.inner_text("#zoom-fit") == "100 %"
    assert sheet.bounding_box()["width"] == 64
    page.keyboard.press("-")  # not smaller than it is
    assert page.inner_text("#zoom-fit") == "100 %"
    page.keyboard.press("+")
    assert page.inner_text("#zoom-fit") == "150 %"
    assert sheet.bounding_box()["width"] == 96
    page.keyboard.press("f")
    assert sheet.bounding_box()["width"] == 64
    page.keyboard.press("f")  # as large as the window
    box, stage = sheet.bounding_box(), page.locator("#stage").bounding_box()
    assert box["width"] == pytest.approx(stage["width"], abs=1) or box["height"] == pytest.approx(
        stage["height"], abs=1
    )
    page.click("#zoom-fit")
    assert page.inner_text("#zoom-fit") == "100 %"


def test_what_was_not_measured_is_not_shown(page: "Page", fake: FakeServer) -> None:
    fake.measured = False
    page.goto(f"{fake.url}{LINK}&layers=2")
    wait_for_layer(page, 2)
    assert page.is_visible("#bytes")
    assert not page.is_visible("#psnr")
    assert page.locator(".figures").inner_text().count("PSNR") == 0
    fake.measured = True
    page.goto(f"{fake.url}#key=photos%2F000004&layers=2")
    page.wait_for_selector("#psnr:visible")


def test_the_original_is_the_last_step_where_it_takes_the_place_of_layers(
    page: "Page", fake: FakeServer
) -> None:
    fake.stored = 2
    page.goto(f"{fake.url}{LINK}&layers=1")
    wait_for_layer(page, 1)
    assert page.get_attribute("#layers", "max") == "3"
    assert page.inner_text("#layers-of") == "1 of 2"
    slabs = page.locator("#strata button").evaluate_all("all => all.map((one) => one.title)")
    assert slabs == ["Layer 1: 300 B", "Layer 2: 600 B", "Original: 600 kB"]
    page.keyboard.press("ArrowUp")
    wait_for_layer(page, 2)
    assert page.inner_text("#layers-of") == "2 of 2"
    assert figures(page)[:3] == ["900 B", "0.018", "26.3 dB"]
    page.keyboard.press("ArrowUp")
    wait_for_layer(page, 3)
    assert fake.pictures()[-1].layers == 3
    assert page.inner_text("#layers-of") == "original"
    assert page.get_attribute("#layers", "aria-valuetext") == "original"
    assert page.inner_text("#pane-stream figcaption") == "original"
    assert figures(page) == ["600 kB", "12.21", "exact", "100 %"]
    assert color_at(page, 0.5, 0.5) == ORIGINAL_COLOR
    page.keyboard.press("ArrowUp")  # there is none above
    assert page.url.endswith("layers=3")
    page.click("summary")
    assert "stream?layers=2" in page.get_attribute("#save-stream", "href")
    page.goto("about:blank")
    page.goto(f"{fake.url}{LINK}")  # by itself it gets that far
    wait_for_layer(page, 3)
    assert page.inner_text("#layers-of") == "original"


def test_captions_and_side_fields_are_text(page: "Page", fake: FakeServer) -> None:
    script = "<img src=x onerror=alert(1)>"
    fake.captions[KEY], fake.labels[KEY] = f"a caption {script}", f"label {script}"
    fake.fields = [
        {"name": script, "bytes": 9, "text": f"line\nof {script}"},
        {"name": "seg.png", "bytes": 12_000, "text": None},
    ]
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"{fake.url}{LINK}&layers=1")
    wait_for_layer(page, 1)
    assert page.locator("#caption").text_content() == fake.captions[KEY]
    assert page.locator("#label").text_content() == fake.labels[KEY]
    page.click("summary")
    assert page.locator("#fields dt").all_text_contents() == [script, "seg.png"]
    assert page.locator("#fields dd").all_text_contents() == [
        f"line\nof {script}",
        "12 kB, not shown",
    ]
    assert page.locator("#viewer img").count() == 1  # the picture
    assert dialogs == []
    fake.fields = []
    page.goto(f"{fake.url}#key=photos%2F000004&layers=1")  # of another picture nothing is left
    page.wait_for_function("() => document.querySelector('#caption').textContent === ''")
    assert page.locator("#fields dt").count() == 0
    assert not page.is_visible(".told")


def test_previous_and_next_of_a_picture_that_was_opened_by_its_link(
    page: "Page", fake: FakeServer
) -> None:
    page.goto(f"{fake.url}{LINK}&layers=1")
    page.wait_for_selector("#following:enabled")
    page.wait_for_selector("#previous:enabled")
    for key, name in (
        ("ArrowRight", "photos/000004"),
        ("ArrowLeft", KEY),
        ("ArrowLeft", "photos/000002"),
        ("ArrowLeft", "photos/000001"),
        ("ArrowLeft", "photos/000000"),
    ):
        page.wait_for_function(
            "(name) => !document.querySelector(name).disabled",
            arg="#following" if key == "ArrowRight" else "#previous",
        )
        page.keyboard.press(key)
        page.wait_for_function(
            "(key) => document.querySelector('#viewer-key').textContent === key", arg=name
        )
        wait_for_layer(page, LAYERS)
    page.wait_for_selector("#following:enabled")
    assert page.is_disabled("#previous")  # it is the first
    assert page.url.endswith("#key=photos%2F000000")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")


def test_previous_and_next_of_a_link_are_those_of_its_search(
    page: "Page", fake: FakeServer
) -> None:
    """However far away they are: a page of a search may hold nothing and not be the last."""
    fake.keys[:] = [f"{'Lake' if number % 70 == 0 else 'x'}/{number:04d}" for number in range(300)]
    fake.scanned = 20
    page.goto(f"{fake.url}#q=lake&key=Lake%2F0140&layers=1")
    page.wait_for_selector("#following:enabled")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "() => document.querySelector('#viewer-key').textContent === 'Lake/0210'"
    )
    page.wait_for_selector("#previous:enabled")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "() => document.querySelector('#viewer-key').textContent === 'Lake/0140'"
    )


def test_the_keyboard_does_all(page: "Page", fake: FakeServer) -> None:
    page.goto(fake.url)
    page.wait_for_selector(".tile[data-layers='3']")
    page.click(".tile >> nth=3")
    page.wait_for_selector("#viewer[open]")
    wait_for_layer(page, LAYERS)
    press = page.keyboard.press
    press("2")
    wait_for_layer(page, 2)
    press("ArrowUp")
    wait_for_layer(page, 3)
    press("ArrowDown")
    press("ArrowDown")
    wait_for_layer(page, 1)
    press("ArrowDown")  # there is none below
    assert page.inner_text("#layers-of") == "1 of 6"
    press("0")
    wait_for_layer(page, 6)
    press("s")
    assert page.get_attribute("#stage", "data-view") == "split"
    press("d")
    assert page.get_attribute("#stage", "data-view") == "side"
    press("ArrowRight")
    page.wait_for_function(
        "() => document.querySelector('#viewer-key').textContent === 'photos/000004'"
    )
    assert page.title() == "photos/000004 – fake"
    press("?")
    page.wait_for_selector("#help[open]")
    press("Escape")
    page.wait_for_selector("#help", state="hidden")
    assert page.locator("#viewer[open]").count() == 1
    press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    # the focus is where one had got to, not where one came from
    focused = page.evaluate("document.activeElement.querySelector('.caption')?.textContent")
    assert focused == "photos/000004"
    assert "key" not in page.url


def test_the_focus_stays_inside(page: "Page", fake: FakeServer) -> None:
    page.goto(f"{fake.url}{LINK}&layers=1")
    wait_for_layer(page, 1)
    for _ in range(25):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "() => [document.body, null].includes(document.activeElement)"
            " || !!document.activeElement.closest('#viewer')"
        )


def test_links_and_back(page: "Page", fake: FakeServer) -> None:
    page.goto(f"{fake.url}#q=photos")
    page.wait_for_selector(".tile[data-layers]")
    page.click(".tile >> nth=3")
    wait_for_layer(page, LAYERS)
    page.keyboard.press("2")
    wait_for_layer(page, 2)
    assert page.url.endswith("#q=photos&key=photos%2F000003&layers=2")
    link = page.url
    page.go_back()  # at once: looking at layers leaves no entries
    page.wait_for_selector("#viewer", state="hidden")
    assert page.url.endswith("#q=photos")
    page.wait_for_selector(".tile[data-layers='3']")
    page.go_forward()
    wait_for_layer(page, 2)

    other = page.context.new_page()
    other.goto(link)
    wait_for_layer(other, 2)
    assert other.inner_text("#viewer-key") == KEY
    other.wait_for_selector("#following:enabled")  # the server knows its neighbours
    other.keyboard.press("Escape")  # there is nothing to go back to
    other.wait_for_selector(".tile[data-layers]")
    assert other.url.endswith("#q=photos")


@pytest.mark.parametrize(
    "address", ["#key=photos%2F000003&layers=99", "#key=photos%2F000003&layers=x"]
)
def test_odd_addresses_show_what_there_is(page: "Page", fake: FakeServer, address: str) -> None:
    page.goto(fake.url + address)
    wait_for_layer(page, LAYERS)
