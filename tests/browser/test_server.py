"""The page with the real server, on a small dataset; screenshots of it, when they are asked for.

STRATA_SCREENSHOTS=DATASET draws docs/images/ anew from a dataset of photographs, such as

    python jobs/compress_dataset.py --input kodak.tar --output DATASET \\
        --keep-original always --lossless --target-quality 20dB
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from codec import EncodedImage
from pipeline.reader.dataset import open_dataset
from pipeline.serving.limits import Limits
from tests.browser.conftest import DESKTOP, PHONE
from tests.browser.preview_server import previews
from tests.pipeline.conftest import Make, make_dataset, toy
from tests.pipeline.makers import ToyCodec, png, samples, write_tar

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["make_dataset", "toy"]

HOSTILE = "<img src=x onerror=alert(1)> \"ü/%2F'"
CAPTION = "a caption </span><script>alert(2)</script>"
IMAGES = Path(__file__).parents[2] / "docs" / "images"


Serve = Callable[[int], str]


@pytest.fixture
def serve(make_dataset: Make, toy: ToyCodec, tmp_path: Path) -> Iterator[Serve]:
    """``serve(layers)``: the address of thirty small pictures, a large one and a hostile key.

    All four layers give every pixel back.
    """
    extra = [("large.png", png(7, 200, 300)), (f"{HOSTILE}.png", png(11))]
    extra += [(f"{HOSTILE}.txt", CAPTION.encode()), (f"{HOSTILE}.cls", b"of a kind")]
    write_tar(tmp_path / "a.tar", samples(30))
    write_tar(tmp_path / "b.tar", extra)
    inputs = [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with ExitStack() as servers:

        def serve(layers: int) -> str:
            kept = {"keep_original": "always", "target_quality": "10dB"}
            dataset = make_dataset(inputs, layers=layers, store_layers=layers, **kept)
            return servers.enter_context(previews(dataset, toy, Limits()))

        yield serve


@pytest.fixture
def url(serve: Serve) -> str:
    return serve(3)


def test_the_gallery_shows_the_dataset(page: "Page", url: str) -> None:
    page.goto(url)
    page.wait_for_selector(".tile[data-layers='3']")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 32")
    assert page.inner_text("#place").endswith("of 32")
    page.wait_for_function("() => !document.querySelector('.tile:not([data-layers])')")
    assert page.locator(".fault").count() == 0
    page.fill("#query", "LARGE")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")
    page.fill("#query", "")
    page.click("#filters-open")
    page.fill("[name=min_width]", "100")
    page.press("[name=min_width]", "Enter")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")
    assert page.inner_text(".caption") == "large"


def test_a_picture_its_layers_and_its_original(page: "Page", url: str) -> None:
    page.goto(f"{url}#q=large")
    page.click(".tile")
    page.wait_for_selector("#pane-stream img[data-layers='3']")
    assert page.inner_text("#pane-stream figcaption") == "3 of 3 layers"
    all_bytes, all_decibels = page.inner_text("#bytes"), page.inner_text("#psnr")
    page.keyboard.press("1")
    page.wait_for_selector("#pane-stream img[data-layers='1']")
    assert page.inner_text("#bytes") != all_bytes
    assert float(page.inner_text("#psnr")[:-3]) < float(all_decibels[:-3])  # "21.0 dB"
    page.keyboard.press("s")
    page.wait_for_function(
        "() => document.querySelector('#pane-other img')?.naturalWidth === 300"
        " && document.querySelector('#pane-other figcaption').textContent === 'original'"
    )
    with page.expect_download() as saved:
        page.click("summary")
        page.click("#save")
    assert saved.value.suggested_filename == "large-layers-1.png"
    assert Image.open(saved.value.path()).size == (300, 200)


def test_layers_that_lose_nothing_are_called_exact(page: "Page", serve: Serve) -> None:
    page.goto(f"{serve(4)}#key=large")
    page.wait_for_selector("#pane-stream img[data-layers='4']")
    assert page.inner_text("#psnr") == "exact"
    page.keyboard.press("3")
    assert page.inner_text("#psnr").endswith(" dB")


def test_a_hostile_key_reaches_the_server_as_it_is(page: "Page", url: str) -> None:
    page.goto(url)
    page.click('.tile[aria-label^="<img"]')
    page.wait_for_selector("#pane-stream img[data-layers='3']")
    assert page.locator("#viewer-key").text_content() == HOSTILE
    page.reload()
    page.wait_for_selector("#pane-stream img[data-layers='3']")
    page.keyboard.press("s")
    page.wait_for_selector("#pane-other img")


def test_a_caption_is_text_and_is_found(page: "Page", url: str) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(url)
    page.wait_for_selector(".tile[data-layers]")
    page.fill("#query", "A CAPTION")
    page.wait_for_function("() => document.querySelectorAll('.tile').length === 1")
    assert page.inner_text(".caption") == CAPTION
    page.click(".tile")
    page.wait_for_selector("#pane-stream img[data-layers='3']")
    assert page.locator("#caption").text_content() == CAPTION
    assert page.locator("#label").text_content() == "of a kind"
    page.click("summary")
    assert page.locator("#fields dd").all_text_contents() == [CAPTION, "of a kind"]
    with page.expect_download() as saved:
        page.click("#save-stream")
    assert EncodedImage.from_bytes(saved.value.path().read_bytes()).num_layers == 3
    assert dialogs == []


def test_pictures_beside_one_that_was_linked(page: "Page", url: str) -> None:
    page.goto(f"{url}#key=s0029&layers=1")
    page.wait_for_selector("#following:enabled")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#viewer-key').textContent === 'large'")
    page.wait_for_selector("#previous:enabled")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.querySelector('#viewer-key').textContent === 's0029'")


def test_a_key_that_is_not_there(page: "Page", url: str, complaints: list[str]) -> None:
    page.goto(f"{url}#key=no%2Fsuch")
    page.get_by_text("Not found: there is no picture with the key 'no/such'").wait_for()
    complaints.clear()


def shoot(page: "Page", name: str) -> None:
    """What the window shows, as docs/images/page-``name``.webp, below 400 kB."""
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = IMAGES / f"page-{name}.webp"
    shot.save(file, quality=82, method=6)
    assert file.stat().st_size < 400_000


def wait_for_layers(page: "Page", layers: int) -> None:
    """Until all pictures of the window have come so far, in the size that they are seen in."""
    page.wait_for_function(
        """(layers) => {
            const seen = [...document.querySelectorAll(".tile")].filter((tile) => {
                const box = tile.getBoundingClientRect();
                return box.top < innerHeight && box.bottom > 60;
            });
            const longest = (image) => Math.max(image.naturalWidth, image.naturalHeight);
            return seen.every((tile) => tile.dataset.layers === String(layers)
                && longest(tile.querySelector("img")) > 128);
        }""",
        arg=layers,
    )


@pytest.mark.skipif("STRATA_SCREENSHOTS" not in os.environ, reason="STRATA_SCREENSHOTS=DATASET")
@pytest.mark.timeout(3600)  # the pictures are decoded on whatever there is
def test_screenshots(browser: "Browser") -> None:
    """Writes docs/images/page-*.webp: gallery and picture, at two widths."""
    dataset = open_dataset(os.environ["STRATA_SCREENSHOTS"])
    IMAGES.mkdir(exist_ok=True)
    looks = {"wide": (DESKTOP, "light", 1.25), "narrow": (PHONE, "dark", 2)}
    with previews(dataset, dataset.codec(), Limits(timeout=600.0)) as url:
        for name, (viewport, scheme, scale) in looks.items():
            context = browser.new_context(
                viewport=viewport,
                color_scheme=scheme,
                device_scale_factor=scale,
                reduced_motion="reduce",
            )
            context.set_default_timeout(1_800_000)
            page = context.new_page()
            page.goto(url)
            page.wait_for_selector(".tile")
            for layers, view in ((1, "first"), (3, "gallery"))[name == "narrow" :]:
                page.select_option("#depth", str(layers))
                wait_for_layers(page, layers)
                shoot(page, f"{view}-{name}")
            page.click(".tile >> nth=4")
            page.wait_for_selector("#viewer[open] #layers:enabled")
            page.keyboard.press("2")
            page.wait_for_selector("#pane-stream img[data-layers='2']")
            page.keyboard.press("s")
            page.wait_for_selector("#pane-other img")
            shoot(page, f"picture-{name}")
            context.close()
