"""The page of `data check`: pictures to one scale, overlays, each problem once, and images that cannot be read."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from browser import Browser, chromium
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from repmode_cl.data.validation.manifest_check import CheckOptions, inspect_manifest
from repmode_cl.data.validation.thumbnails import thumbnail_frames
from repmode_cl.inference.display_colours import colour_of
from repmode_cl.report.data_check.page import scale_bar
from repmode_cl.workflows.check_page import write_check_page

PICTURE = re.compile(
    r'<img src="data:image/jpeg;base64,([^"]+)" alt="(\w+) of line (\d+)" '
    r'style="width:([\d.]+)%;aspect-ratio:([\d.]+)">\s*<div class="scale"><i style="width:([\d.]+)%"></i>'
    r"<span>(.*?)</span>"
)


def save(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    tifffile.imwrite(path, noise.astype(np.float32), photometric="minisblack", metadata={"axes": "ZYX"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several sizes, and files that are no images."""
    folder = tmp_path_factory.mktemp("images")
    for name, shape in {
        "wide": (8, 32, 64), "square": (8, 64, 64), "small": (8, 16, 16), "large": (8, 400, 400), "thin": (8, 64, 16)
    }.items():  # fmt: skip
        save(folder / f"{name}.tif", shape, 0)
        save(folder / f"{name}_dna.tif", shape, 1)
    (folder / "broken.tif").write_bytes((folder / "square.tif").read_bytes()[:9000])
    tifffile.imwrite(folder / "flat.tif", np.full((8, 64, 64), 7, np.uint16), photometric="minisblack")
    return folder


def page_of(folder: Path, *lines: str, thumbnails: int = 400) -> str:
    """Return the page of a manifest with the columns structure, signal, target and voxel size."""
    manifest, page = folder / "manifest.csv", folder / "look.html"
    manifest.write_text("\n".join(["structure,signal,target,voxel_size_zyx", *lines, ""]))
    options = CheckOptions(depth=1, patch=(4, 4, 4), thumbnails=thumbnails)
    write_check_page(page, inspect_manifest(manifest, options))
    return page.read_text(encoding="utf-8")


def pictures(text: str) -> dict[tuple[int, str], tuple[NDArray[np.uint8], float, float, float, str]]:
    """Return, by line and title: pixels, width and aspect, length of the bar and its text."""
    return {
        (int(line), title): (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))),
            float(width),
            float(aspect),
            float(bar),
            re.sub("<[^>]+>", "", label),
        )
        for data, title, line, width, aspect, bar, label in PICTURE.findall(text)
    }


def test_all_images_have_one_scale_whatever_their_voxels(folder: Path) -> None:
    shown = pictures(
        page_of(
            folder,
            "dna,square.tif,square_dna.tif,0.5 0.25 0.25",  # 16 um
            "dna,square.tif,square_dna.tif,0.5 0.5 0.5",  # 32 um
            "dna,wide.tif,wide_dna.tif,0.5 0.5 0.25",  # 16 um high and wide, of voxels that are not square
            "dna,thin.tif,thin_dna.tif,0.5 0.25 0.5",  # 16 um high, 8 wide
        )
    )
    widths = {line: shown[line, "target"][1] for line in (2, 3, 4, 5)}
    assert widths == {2: 50.0, 3: 100.0, 4: 50.0, 5: 25.0}
    assert [shown[line, "signal"][2] for line in (2, 3, 4, 5)] == [1.0, 1.0, 1.0, 0.5]
    # One bar: 5 um of the 32 that fill the place.
    assert {(bar, label) for _, _, _, bar, label in shown.values()} == {(15.62, "5 µm")}
    assert {title for _, title in shown} == {"signal", "target", "overlay"}
    # Fewer pixels where an image is shown smaller, none where it has no voxels for them.
    assert shown[3, "signal"][0].shape == (64, 64)
    assert shown[4, "signal"][0].shape == (32, 64)


def test_a_scale_that_differs_is_said_with_its_bar(folder: Path) -> None:
    text = page_of(
        folder,
        "dna,square.tif,square_dna.tif,0.5 0.5 0.5",
        "dna,square.tif,square_dna.tif,0.5 0.5 0.5",
        "dna,small.tif,small_dna.tif,0.1 0.1 0.1",  # 1.6 of 32 um
        "dna,large.tif,large_dna.tif,0.5 0.5 0.5",  # 200 um
        "dna,wide.tif,wide_dna.tif,",
    )
    shown = pictures(text)
    assert [shown[line, "signal"][4] for line in (2, 3)] == ["5 µm", "5 µm"]
    assert shown[4, "signal"][4] == "0.5 µm, shown 10 times larger"
    assert shown[4, "signal"][1] == 50.0
    assert shown[5, "signal"][4] == "50 µm, shown 7 times smaller"
    assert shown[5, "signal"][1] == pytest.approx(100 * 200 / 7 / 32, abs=0.01)
    assert shown[6, "signal"][4] == "10 voxels"
    assert "but for those whose bar says otherwise" in text
    assert "where no voxel size is known the bar is in voxels" in text
    for line, um in ((4, 1.6), (5, 200.0)):
        _, width, _, bar, label = shown[line, "signal"]
        assert bar / width == pytest.approx(float(label.split()[0]) / um, abs=0.001)


def test_scale_bars_are_round_and_fit() -> None:
    assert [scale_bar(*of) for of in ((37.0, 37.0), (37.0, 3.0), (1000.0, 200.0), (0.7, 0.7))] == [
        10,
        2,
        200,
        0.2,
    ]


def test_overlay_has_the_signal_in_grey_and_the_target_in_colour(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (8, 64, 1))
    spot = np.zeros((8, 64, 64), np.float32)
    spot[:, 16:48, 16:48] = 1.0
    for name, volume in (("ramp", ramp), ("spot", spot)):
        tifffile.imwrite(tmp_path / f"{name}.tif", volume, photometric="minisblack", metadata={"axes": "ZYX"})
    shown = pictures(page_of(tmp_path, "nucleolus,ramp.tif,spot.tif,0.3 0.3 0.3"))
    overlay = shown[2, "overlay"][0].astype(int)
    assert overlay.shape == (64, 64, 3)
    outside, inside = overlay[4, ::8], overlay[32, 20:44:8]
    assert (outside.max(axis=1) - outside.min(axis=1)).max() <= 6  # grey
    assert (np.diff(outside.mean(axis=1)) > 5).all()  # and the ramp of the signal
    red, green, blue = colour_of("nucleolus")
    assert (red, green, blue) == (255, 0, 255)
    assert (inside[:, 0] > 240).all()
    assert (inside[:, 2] > 240).all()
    assert (inside[:, 1] < 150).all()


def test_each_problem_stands_once_errors_first_with_links_to_its_images(folder: Path) -> None:
    text = page_of(
        folder,
        "dna,square.tif,square_dna.tif,",
        "nucleolus,square.tif,gone.tif,0.3 0.3 0.3",
        "actin_filament,square.tif,away.tif,0.3 0.3 0.3",
        "mitochondria,wide.tif,wide_dna.tif,",
    )
    plain = html.unescape(re.sub("<[^>]+>", "", text))
    assert plain.count("gone.tif: there is no such file") == 1
    assert plain.count("away.tif: there is no such file") == 1
    assert plain.count("no voxel size is known, so that") == 2  # of two files, in one line
    reasons = re.findall(r'<li id="problem-(\d)" class="(\w+)"><p class="reason">(.*?)</p>', text, re.DOTALL)
    assert [
        (number, severity, " ".join(re.sub("<[^>]+>", " ", reason).split()))
        for number, severity, reason in reasons
    ] == [
        ("1", "error", "error image (2), lines 3 \N{EN DASH} 4"),
        ("2", "warning", "warning voxel size missing (2), lines 2 , 5"),
    ]
    assert [re.findall(r'href="#line-(\d)"', reason) for _, _, reason in reasons] == [["3", "4"], ["2", "5"]]
    for line, number in ((2, 2), (3, 1), (4, 1), (5, 2)):
        part = text.split(f'id="line-{line}"')[1].split("</h3>")[0]
        assert f'href="#problem-{number}"' in part


def test_images_that_cannot_be_read_leave_their_place_and_the_other_is_shown(folder: Path) -> None:
    text = page_of(
        folder,
        "dna,square.tif,broken.tif,0.3 0.3 0.3",
        "dna,broken.tif,square_dna.tif,0.3 0.3 0.3",
        "nucleolus,square.tif,flat.tif,0.3 0.3 0.3",
        "nucleolus,gone.tif,away.tif,0.3 0.3 0.3",
        "mitochondria,square.tif,thin_dna.tif,0.3 0.3 0.3",
    )
    assert set(pictures(text)) == {(2, "signal"), (3, "target"), (4, "signal"), (6, "signal"), (6, "target")}
    missing = {
        line: re.findall(
            r'class="no-picture">(.*?)<', text.split(f'id="line-{line}"')[1].split("</article>")[0]
        )
        for line in range(2, 7)
    }
    assert missing == {
        2: ["cannot be read"],
        3: ["cannot be read"],
        4: ["all voxels have one value"],
        5: ["cannot be read", "cannot be read"],
        6: ["the images differ in size"],
    }


def test_pictures_of_many_rows_are_smaller_so_that_a_page_stays_below_ten_megabytes(folder: Path) -> None:
    rows = [f"structure_{number},large.tif,large_dna.tif,0.3 0.3 0.3" for number in range(400)]
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(["structure,signal,target,voxel_size_zyx", *rows, ""]))
    found = inspect_manifest(manifest, CheckOptions(depth=1, patch=(4, 4, 4), read_voxels=False))
    sizes = [thumbnail_frames(found.inspected[:count]) for count in (12, 400)]
    assert [len(frames) for frames in sizes] == [24, 800]
    assert [{frame.pixels for frame in frames.values()} for frames in sizes] == [{(256, 256)}, {(106, 106)}]
    # Noise, which compresses worst, takes less than a character for each pixel: 400 rows have 13.5 million.
    text = page_of(folder, *rows[:6])
    assert sum(len(data) for data, *_ in PICTURE.findall(text)) < 0.75 * 18 * 256 * 256


def test_rows_that_are_shown_are_spread_evenly(folder: Path) -> None:
    rows = [f"structure_{number},thin.tif,thin_dna.tif,0.3 0.3 0.3" for number in range(10)]
    text = page_of(folder, *rows, thumbnails=4)
    assert sorted({line for line, _ in pictures(text)}) == [2, 5, 8, 11]
    assert "The images of 4 of 10 rows, spread evenly" in text


def test_the_page_needs_no_network_and_escapes_names(folder: Path) -> None:
    (folder / "<b>.tif").write_bytes((folder / "square.tif").read_bytes())
    text = page_of(
        folder, "dna,<b>.tif,square_dna.tif,0.3 0.3 0.3", "<i>,square.tif,square_dna.tif,0.3 0.3 0.3"
    )
    assert "default-src 'none'; img-src data:" in text
    assert "<b>.tif" not in text
    assert "&lt;b&gt;.tif" in text
    assert "<i>" not in text.replace('<i style="width:', "")


@pytest.fixture(scope="module")
def page_of_twelve(folder: Path) -> Path:
    kinds = ["square", "wide", "thin", "small", "large", "square"]
    rows = [f"structure_{n},{kind}.tif,{kind}_dna.tif,0.3 0.3 0.3" for n, kind in enumerate(kinds * 2)]
    page_of(
        folder, *rows, "a_very_long_name_of_a_structure_that_nobody_would_use,gone.tif,gone.tif,0.3 0.3 0.3"
    )
    return Path(shutil.copy(folder / "look.html", folder / "twelve.html"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    assert path is not None
    with Browser(path) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_twelve_images_fit_their_window(
    browser: Browser, page_of_twelve: Path, width: int, dark: bool
) -> None:
    browser.open(page_of_twelve, width, dark=dark)
    assert browser.problems == []
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    loaded = browser.run("[...document.images].map((e) => e.complete && e.naturalWidth > 0)")
    assert loaded == [True] * 36
    # Micrometres have one length in all pictures of one scale.
    per_um = browser.run(
        "[...document.querySelectorAll('.scaled')].filter((e) => e.querySelector('img') && !e.querySelector('b'))"
        ".map((e) => e.querySelector('.scale i').getBoundingClientRect().width)"
    )
    assert len(per_um) == 30  # without two rows that are shown smaller
    assert max(per_um) - min(per_um) < 0.5
    assert min(per_um) > 10
