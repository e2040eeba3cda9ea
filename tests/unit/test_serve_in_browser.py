"""The page of `repmode-cl serve` in a browser: from a file to a download, at two widths, by mouse and by keyboard."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from browser import Browser, chromium
from serving import image_bytes, make_served_model, served

pytestmark = pytest.mark.skipif(chromium() is None, reason="chromium is not installed")

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
# Resolved: a browser takes no path with two dots.
FIELD = (SHARED / "data/real/AICS-10_5_5_endoplasmic_reticulum.ome.tif").resolve()
needs_data = pytest.mark.skipif(not FIELD.is_file(), reason="real images are not part of the repository")

#: What Chromium logs of an answer that is an error, as of a broken file.
REFUSED = "log: Failed to load resource: the server responded with a status of 4"

SHOWN = "document.getElementById('canvas').dataset.drawn && !document.getElementById('view').hidden"
RESULT = "!document.getElementById('result-tools').hidden"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("served") / "model", window=(16, 48, 48))


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(model, tmp_path_factory.mktemp("store") / "images", max_voxels=8_000_000) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    assert path is not None
    with Browser(path, timeout=90) as opened:
        yield opened


def opened(browser: Browser, address: str, width: int = 1280) -> Browser:
    browser.open(address, width)
    browser.until("document.querySelectorAll('#structures li').length === 2")
    return browser


def text(browser: Browser, identifier: str) -> str:
    """Return the text of an element, with a plain x; empty of one that is hidden."""
    element = f"document.getElementById({identifier!r})"
    found: str = browser.run(f"{element}.checkVisibility() ? {element}.innerText : ''")
    return found.replace("\N{MULTIPLICATION SIGN}", "x")


def pixels(browser: Browser) -> str:
    drawn: str = browser.run("document.getElementById('canvas').toDataURL()")
    return drawn


def fits(browser: Browser) -> bool:
    return bool(browser.run("document.documentElement.scrollWidth <= innerWidth"))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    path = tmp_path / "cells.ome.tif"
    path.write_bytes(image_bytes((2, 8, 24, 30), axes="CZYX", Channel={"Name": ["GFP", "brightfield"]}))
    return path


def test_from_a_file_to_a_download(browser: Browser, address: str, cells: Path, tmp_path: Path) -> None:
    page = opened(browser, address)
    assert page.run("document.getElementById('predict').disabled")
    assert text(page, "predict-hint") == "First choose a structure and choose an image."
    page.choose_file("#file", cells)
    page.until(SHOWN)
    assert text(page, "image-size").startswith("8 x 24 x 30 voxels (z, y, x), uint16")
    assert page.run("document.getElementById('channel').selectedOptions[0].textContent") == "brightfield"
    assert page.run("document.getElementById('voxel-y').value") == "0.29"
    before = pixels(page)
    page.run("document.getElementById('z').focus()")
    page.press("ArrowRight", 39)
    page.until("document.getElementById('canvas').ariaLabel === 'Plane 6 with brightfield'")
    assert pixels(page) != before
    page.click("#structures li:first-child label")
    page.click("#structures li:last-child label")
    assert text(page, "predict") == "Predict 2 structures"
    page.click("#predict")
    page.until(RESULT)
    assert "unknown" in text(page, "structures")
    assert "cell membrane: unknown: no held-out figures" in text(page, "notes")
    page.until(
        "document.getElementById('canvas').ariaLabel === 'Plane 6 with transmitted light, dna, cell membrane'"
    )
    # An overlay: each layer changes the picture.
    with_all = pixels(page)
    page.click("#channels li:last-child label")
    page.until("document.getElementById('canvas').ariaLabel === 'Plane 6 with transmitted light, dna'")
    assert pixels(page) != with_all
    page.keep_downloads(tmp_path / "downloads")
    page.click("#download")
    assert page.downloaded() == "cells-predicted.ome.tif"
    with tifffile.TiffFile(tmp_path / "downloads" / "cells-predicted.ome.tif") as file:
        assert file.series[0].shape == (3, 8, 24, 30)
    assert page.problems == []
    page.click("#delete")
    page.until("document.getElementById('view').hidden")
    assert page.problems == []


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 400])
def test_the_page_fits_its_window(browser: Browser, address: str, cells: Path, width: int) -> None:
    page = opened(browser, address, width)
    assert fits(page)
    page.choose_file("#file", cells)
    page.until(SHOWN)
    page.click("#structures label")
    page.click("#predict")
    page.until(RESULT)
    assert fits(page)
    outside = page.run(
        "[...document.querySelectorAll('main *, header *')].filter((e) => e.checkVisibility() && "
        "!e.classList.contains('visually-hidden') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map((e) => e.outerHTML)"
    )
    assert outside == []
    assert page.problems == []


def test_errors_are_those_of_the_readers(browser: Browser, address: str, cells: Path, tmp_path: Path) -> None:
    page = opened(browser, address, 400)
    broken, header = tmp_path / "broken.ome.tif", tmp_path / "huge.npy"
    broken.write_bytes(cells.read_bytes()[:2000])
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f4", "fortran_order": False, "shape": (10**4, 10**5, 10**5)}
    )
    header.write_bytes(out.getvalue())
    many = tmp_path / "many.tif"
    tifffile.imwrite(many, np.zeros((9, 1000, 1000), "uint8"), compression="zlib", photometric="minisblack")
    for path, message in (
        (broken, "broken.ome.tif: "),
        (header, "huge.npy: truncated: its header claims 400000000000000 bytes of voxels"),
        (
            many,
            "many.tif: 9 x 1,000 x 1,000 = 9,000,000 voxels (z, y, x) in a channel; this server takes up to",
        ),
    ):
        page.run("document.getElementById('image-error').textContent = ''")
        page.choose_file("#file", path)
        page.until("document.getElementById('image-error').textContent")
        assert message in text(page, "image-error")
        assert page.run("document.getElementById('image-error').getAttribute('role')") == "alert"
        assert not page.run("document.getElementById('view').checkVisibility()")
        assert fits(page)
    assert [problem for problem in page.problems if not problem.startswith(REFUSED)] == []


@pytest.mark.slow
def test_a_voxel_size_is_corrected(browser: Browser, address: str, tmp_path: Path) -> None:
    page = opened(browser, address)
    path = tmp_path / "coarse.ome.tif"
    path.write_bytes(image_bytes((8, 24, 30), voxel=3.0))
    page.choose_file("#file", path)
    page.until(SHOWN)
    page.click("#structures label")
    page.click("#predict")
    page.until("document.getElementById('job-error').textContent")
    assert "voxels of 3 x 3 x 3 um" in text(page, "job-error")
    for axis in "zyx":
        page.run(f"document.getElementById('voxel-{axis}').value = '0.29'")
    page.click("#predict")
    page.until(RESULT)
    assert text(page, "job-error") == ""


def test_it_is_used_by_keyboard(browser: Browser, address: str) -> None:
    """Every control is reached by the tabulator, in the order of the page, and works by the space bar."""
    page = opened(browser, address)
    reached: list[str] = []
    page.run("document.body.focus()")
    for _ in range(9):
        page.press("Tab", 9)
        reached.append(page.run("document.activeElement.id || document.activeElement.value"))
    assert reached[:6] == ["all", "none", "dna", "cell_membrane", "file", "sample"]
    page.run("document.querySelector('#structures input').focus()")
    page.press(" ", 32, " ")
    assert page.run("document.querySelector('#structures input').checked")


def test_nothing_of_an_image_runs_in_the_page(browser: Browser, address: str, tmp_path: Path) -> None:
    """Names come from files of others: they are text, and the policy of the page would not run them either."""
    page = opened(browser, address)
    path = tmp_path / "<img src=x onerror=alert(1)>.ome.tif"
    path.write_bytes(
        image_bytes((2, 8, 24, 30), axes="CZYX", Channel={"Name": ["<script>x()</script>", "<b>b"]})
    )
    page.choose_file("#file", path)
    page.until(SHOWN)
    assert page.run("document.getElementById('channel').options[0].textContent") == "<script>x()</script>"
    assert page.run("document.querySelectorAll('#facts img, #facts script, #facts option b').length") == 0
    assert page.problems == []
    for harm in (
        "document.body.insertAdjacentHTML('beforeend', '<b id=harm onclick=\"window.ran = 1\">b</b>');"
        "document.getElementById('harm').click()",
        "document.body.append(Object.assign(new Image(), {src: 'https://example.org/a.png'}))",
    ):
        page.run(harm)
        page.run("1")
        assert page.problems, harm
        page.problems.clear()
    assert page.run("window.ran") is None


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("width", [1280, 400])
def test_a_real_field(browser: Browser, address: str, width: int, tmp_path: Path) -> None:
    page = opened(browser, address, width)
    page.choose_file("#file", FIELD)
    page.until(SHOWN)
    assert text(page, "image-size").startswith("65 x 292 x 204 voxels")
    assert page.run("document.getElementById('channel').selectedOptions[0].textContent") == "brightfield"
    page.click("#structures label")
    page.click("#force")
    page.click("#predict")
    page.until(RESULT)
    assert "finer on y, x" in text(page, "notes")
    page.keep_downloads(tmp_path)
    page.click("#download")
    with tifffile.TiffFile(tmp_path / page.downloaded()) as file:
        assert file.series[0].shape == (2, 65, 292, 204)
    assert fits(page)
    assert page.problems == []


@pytest.mark.slow
@needs_data
def test_two_visitors_at_once(address: str, cells: Path) -> None:
    """The second one sends an image, looks at it and waits for the device; then it has its turn."""
    path = chromium()
    assert path is not None
    with Browser(path) as first, Browser(path) as second:
        for page, image in ((first, FIELD), (second, cells)):
            opened(page, address)
            page.choose_file("#file", image)
            page.until(SHOWN)
            page.click("#structures label")
        first.click("#force")
        first.click("#predict")
        first.until("document.getElementById('job-text').textContent.startsWith('Predicting')")
        second.click("#predict")
        second.until(
            "document.getElementById('job-text').textContent.startsWith('Waiting: 1 prediction is before')"
        )
        first.click("#job-cancel")
        first.until("document.getElementById('job-error').textContent === 'Cancelled.'")
        second.until(RESULT)
        first.click("#predict")
        first.until(RESULT)
        assert first.problems == second.problems == []
