"""The page in a real browser, Debian's Chromium: each tab as a person uses it, at two widths, without a request elsewhere."""

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from flowergen.errors import UserError
from flowergen.explorer import latent_map, mixing
from flowergen.explorer.model import ExplorerModel
from tests.explorer.serving import served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium, or a skip that says how to get it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("THE PAGE IS NOT TESTED IN A BROWSER: no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def explorer(diffusion_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExplorerModel:
    """A copy, as pictures are added to it."""
    run = tmp_path_factory.mktemp("explorer") / "run"
    shutil.copytree(diffusion_run, run)
    return ExplorerModel.load(str(run))


@pytest.fixture(scope="module")
def address(explorer: ExplorerModel) -> Iterator[str]:
    with served(explorer) as address:
        yield address


@pytest.fixture(params=[1300, 400], ids=["wide", "narrow"])
def page(browser: "Browser", address: str, request: pytest.FixtureRequest) -> Iterator["Page"]:
    """A tab of the browser. At its end, nothing has been asked of another server, and no script has failed."""
    context = browser.new_context(viewport={"width": request.param, "height": 900}, accept_downloads=True)
    page, asked, failed = context.new_page(), list[str](), list[str]()
    page.set_default_timeout(30_000)
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.on("console", lambda line: failed.append(line.text) if line.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("#generate-button")
    yield page
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= request.param, f"{width} px wide"
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert failed == []
    context.close()


def open_tab(page: "Page", name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.is_visible():  # a narrow page has the others in a menu
        page.locator(".overflow-menu > button:visible").first.click()
        tab = page.locator(".overflow-dropdown button:visible", has_text=name)
    tab.click()


def set_number(page: "Page", name: str, value: float) -> None:
    entry = page.locator(f"#{name} input[type=number]").first
    entry.fill(str(value))
    entry.press("Tab")


def shown(page: "Page", name: str, num: int) -> list[np.ndarray]:
    """Wait for ``num`` downloads in an output, and return their pixels."""
    links = page.locator(f"#{name} figure a[download]")
    page.wait_for_function(f"document.querySelectorAll('#{name} figure a[download]').length === {num}")
    found = [link.get_attribute("href") or "" for link in links.all()]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))) for url in found]


def pixels(x: torch.Tensor) -> np.ndarray:
    return x.mul(255).round().byte().permute(1, 2, 0).numpy()


def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def upload(page: "Page", name: str, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(f"#{name}").click()
    chooser.value.set_files([str(file) for file in files])


def centre_of(box: "Locator") -> tuple[float, float, float, float]:
    box.scroll_into_view_if_needed()
    found = box.bounding_box()
    assert found is not None
    return found["x"], found["y"], found["width"], found["height"]


def position_of_point(explorer: ExplorerModel, canvas: "Locator", number: int) -> tuple[float, float]:
    """Where a point of the map is on the page."""
    left, top, width, height = centre_of(canvas)
    points = np.asarray([point[:2] for point in latent_map.map_data(explorer)["points"]])
    low, high = points.min(0), points.max(0)
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    across, up = (points[number] - low) / (high - low)
    return left + across * width, top + (1 - up) * height


def test_generate_by_class(page: "Page", explorer: ExplorerModel, tmp_path: Path) -> None:
    """The denoising is seen on its way; the downloads are the model's samples."""
    chosen = page.locator("#generate-panel .classes input")
    chosen.click()
    page.get_by_role("option", name=explorer.class_names[2], exact=True).click()
    set_number(page, "num", 2)
    set_number(page, "seed", 5)
    set_number(page, "steps", 60)
    page.evaluate("""() => {
        window.notes = [];
        new MutationObserver(() => {
            const note = document.querySelector("#generated .note");
            if (note && window.notes.at(-1) !== note.textContent) window.notes.push(note.textContent);
        }).observe(document.querySelector("#generated"), { subtree: true, childList: true, characterData: true });
    }""")
    page.locator("#generate-button").click()
    found = shown(page, "generated", 2)
    expected = explorer.model.sample(2, 5, [2], steps=60)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, pixels(theirs))
    notes = page.evaluate("window.notes")
    assert len([note for note in notes if re.fullmatch(r"step \d+ of 60", note)]) >= 3, notes
    assert page.locator("#generated figcaption").first.inner_text().startswith(explorer.class_names[2])
    with page.expect_download() as waited:
        page.locator("#generated a[download$='.zip']").click()
    assert waited.value.suggested_filename == "seed5.zip"


def test_stop_ends_the_denoising_and_the_next_request_is_answered(page: "Page") -> None:
    set_number(page, "num", 16)
    set_number(page, "steps", 200)
    page.locator("#generate-button").click()
    note = page.locator("#generated .note")
    note.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(500)  # frames that are on their way
    step = note.inner_text()
    assert re.fullmatch(r"step \d+ of 200", step)
    page.wait_for_timeout(1500)
    assert note.inner_text() == step
    set_number(page, "num", 1)
    set_number(page, "steps", 4)
    page.locator("#generate-button").click()
    shown(page, "generated", 1)


def test_pictures_are_large_and_single_pixels_or_smooth(page: "Page") -> None:
    set_number(page, "num", 1)
    page.locator("#generate-button").click()
    shown(page, "generated", 1)
    nearest, bicubic = (page.locator(f"#generated img.{name}") for name in ("nearest", "bicubic"))
    assert (nearest.is_visible(), bicubic.is_visible()) == (True, False)
    assert centre_of(nearest)[2] >= 300
    page.get_by_label("smooth (bicubic)").check()
    bicubic.wait_for(state="visible")
    assert not nearest.is_visible()


def test_edit_an_upload_and_inpaint(page: "Page", explorer: ExplorerModel, tmp_path: Path) -> None:
    open_tab(page, "Edit")
    upload(page, "upload", photo(tmp_path))
    fitted, reconstruction = shown(page, "fitted", 2)
    x = explorer.model.read(tmp_path / "photo.png")
    assert np.array_equal(fitted, pixels(x[0]))
    assert np.array_equal(reconstruction, pixels(explorer.model.decode(explorer.model.encode(x).mean)[0]))

    page.locator("#vary-button").click()
    assert len(shown(page, "vary-out", 4)) == 4
    open_tab(page, "Image to image")
    page.locator("#img2img-button").click()
    assert len(shown(page, "img2img-out", 2)) == 2

    open_tab(page, "Inpaint")
    page.locator("#inpaint-button").click()
    page.get_by_text("paint over the part of the picture").wait_for()
    page.locator(".toast-close").click()
    page.locator(".toast-close").wait_for(state="detached")  # until then it covers a narrow page
    left, top, width, height = centre_of(page.locator("#mask canvas"))
    assert width >= 250
    page.mouse.move(left + 0.2 * width, top + 0.2 * height)
    page.mouse.down()
    page.mouse.move(left + 0.2 * width, top + 0.8 * height, steps=5)
    page.mouse.up()
    page.locator("#inpaint-button").click()
    for painted in shown(page, "inpaint-out", 2):
        assert np.array_equal(painted[:, 16:], fitted[:, 16:])
        assert not np.array_equal(painted[8:24, 4:9], fitted[8:24, 4:9])

    open_tab(page, "Traverse")
    set_number(page, "direction-1", 2)
    assert len(shown(page, "traverse-out", 1)) == 1


def test_a_file_that_is_no_picture_is_a_sentence(page: "Page", tmp_path: Path) -> None:
    (tmp_path / "<b>no.png").write_bytes(b"no picture")
    open_tab(page, "Edit")
    upload(page, "upload", tmp_path / "<b>no.png")
    page.get_by_text("this file cannot be read as a picture: not a picture").wait_for()
    upload(page, "upload", photo(tmp_path))
    assert len(shown(page, "fitted", 2)) == 2


def test_mix_an_upload_and_a_sample(page: "Page", explorer: ExplorerModel, tmp_path: Path) -> None:
    open_tab(page, "Mix")
    upload(page, "add-files", photo(tmp_path))
    page.locator("#ingredients figure").first.wait_for()
    page.locator("#add-sample").click()
    page.wait_for_function("document.querySelectorAll('#ingredients figure').length === 2")
    x = explorer.model.read(tmp_path / "photo.png")
    ends = (explorer.model.decode(explorer.model.encode(x).mean)[0], explorer.model.sample(1, 0)[0])
    for place, end in zip((0, 1), ends, strict=True):
        before = page.locator("#mixture a[download]").get_attribute("href")
        set_number(page, "place", place)
        page.wait_for_function("before => document.querySelector('#mixture a[download]').href !== before", arg=before)
        (mixed,) = shown(page, "mixture", 1)
        assert np.abs(mixed.astype(int) - pixels(end)).max() <= 1
    page.locator("#walk").click()
    assert len(shown(page, "way", 8)) == 8


def test_class_arithmetic(page: "Page", explorer: ExplorerModel) -> None:
    """A sample moves by the difference of two classes' mean latents."""
    open_tab(page, "Mix")
    page.locator("#add-sample").click()
    page.locator("#ingredients figure").first.wait_for()
    page.get_by_role("button", name="Class arithmetic").click()
    for label, number in (("Towards", 2), ("Away from", 0)):
        before = page.locator("#mixture a[download]").get_attribute("href")
        entry = page.get_by_label(label)
        entry.fill(explorer.class_names[number])
        entry.press("Enter")
        page.wait_for_function("before => document.querySelector('#mixture a[download]').href !== before", arg=before)
    (mixed,) = shown(page, "mixture", 1)
    sample = mixing.from_sample(explorer, None, 0)
    expected = mixing.mix(explorer, [sample], 0.5, 2, 0, 1)[0]
    assert np.abs(mixed.astype(int) - pixels(expected)).max() <= 1
    assert np.abs(pixels(sample.picture).astype(int) - pixels(expected)).max() > 8


def test_hover_click_and_drag_on_the_map(page: "Page", explorer: ExplorerModel) -> None:
    open_tab(page, "Map")
    canvas = page.locator("#plane canvas")
    page.mouse.move(*position_of_point(explorer, canvas, 11))
    page.wait_for_function("document.querySelector('#plane .hover img').style.visibility === 'visible'")
    hovered = page.locator("#plane .hover img").get_attribute("src") or ""
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(hovered.partition("base64,")[2]))))
    assert np.array_equal(image, pixels(latent_map.picture_of_point(explorer, 11)[0]))
    page.mouse.click(*position_of_point(explorer, canvas, 11))
    _, nearest = shown(page, "place-out", 2)
    assert np.array_equal(nearest, image)
    page.mouse.move(*position_of_point(explorer, canvas, 11))
    page.mouse.down()
    page.mouse.move(*position_of_point(explorer, canvas, 30), steps=4)
    page.mouse.up()
    way = shown(page, "place-out", latent_map.NUM_STEPS)
    assert np.abs(way[0].astype(int) - image).max() <= 8  # a pixel of the screen from the point itself


@pytest.mark.parametrize("page", [1300], indirect=True, ids=["wide"])
def test_a_pointer_that_rests_asks_again_while_the_model_is_busy(
    page: "Page", explorer: ExplorerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, asked = latent_map.picture_of_point, list[int]()

    def busy_at_first(explorer: ExplorerModel, number: int) -> torch.Tensor:
        asked.append(number)
        if len(asked) < 3:
            raise UserError("busy")
        return decode(explorer, number)

    monkeypatch.setattr(latent_map, "picture_of_point", busy_at_first)
    open_tab(page, "Map")
    page.mouse.move(*position_of_point(explorer, page.locator("#plane canvas"), 22))
    page.wait_for_function("document.querySelector('#plane .hover img').style.visibility === 'visible'")
    assert asked == [asked[0]] * 3


def test_the_tab_run_follows_a_training(page: "Page", explorer: ExplorerModel) -> None:
    open_tab(page, "Run")
    page.get_by_text("Training: finished.").wait_for()
    page.locator("#curves img").wait_for()
    source = page.locator("#epoch-pictures img").first
    source.wait_for()
    images = explorer.model.run.images
    last = max(int(path.stem.rpartition("_")[2]) for path in images.glob("generated_*.png"))
    shutil.copy(images / f"generated_epoch_{last:04d}.png", images / f"generated_epoch_{last + 1:04d}.png")
    page.get_by_text(f"epoch {last + 1}").first.wait_for()


@pytest.mark.parametrize("page", [1300], indirect=True, ids=["wide"])
def test_two_visitors_do_not_block_each_other(page: "Page", browser: "Browser", address: str) -> None:
    """While one generates for long, another opens the page and sees the run."""
    set_number(page, "num", 16)
    set_number(page, "steps", 100)
    page.locator("#generate-button").click()
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#generate-button")
    open_tab(other, "Run")
    other.get_by_text("Training: finished.").wait_for(timeout=5000)
    assert page.locator("#generated a[download]").count() == 0
    other.close()
    shown(page, "generated", 16)
