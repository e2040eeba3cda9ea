"""TIFFs as microscopes and their software write them: sets of files, Micro-Manager, giants, tiles, colour."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from reader_files import write_micro_manager, write_set

from repmode_cl.data.readers import Region, open_image
from repmode_cl.data.readers.tiff.metadata import check_ome
from repmode_cl.errors import ImageError

RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 60_000, shape, "uint16")


def test_ome_tiff_in_several_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = noise(2, 4, 9, 8)
    paths = write_set(tmp_path, image)
    for path in paths:
        with open_image(path) as reader:
            assert (reader.shape, reader.channel_names) == ((4, 9, 8), ("dye 0", "dye 1"))
            assert reader.voxel_size == pytest.approx((0.3, 0.2, 0.1))
            for channel in (0, 1):
                np.testing.assert_array_equal(reader.read(channel), image[channel])
            np.testing.assert_array_equal(reader.read(1, Region.parse("1:3,2:,:4")), image[1, 1:3, 2:, :4])
    flat = write_set(tmp_path / "flat", image[:, :1])
    flat[1].write_bytes(flat[1].read_bytes()[:-20])
    with (
        open_image(flat[0]) as reader,
        pytest.raises(ImageError, match=r"truncated: page 1 of image_c1.ome.tif"),
    ):
        reader.read(1)
    paths[1].unlink()
    with caplog.at_level(logging.CRITICAL, "tifffile"), open_image(paths[0]) as reader:
        np.testing.assert_array_equal(reader.read(0), image[0])
        with pytest.raises(ImageError, match=r"page 4 is missing: .* a set of files that is not whole"):
            reader.read(1)


def test_companion_file(tmp_path: Path) -> None:
    image = noise(2, 4, 9, 8)
    paths = write_set(tmp_path, image, companion=True)
    companion = tmp_path / "set.companion.ome"
    with open_image(companion) as reader:
        assert reader.channel_names == ("dye 0", "dye 1")
        np.testing.assert_array_equal(reader.read(1), image[1])
    with pytest.raises(ImageError, match=r"OME-XML lies in another; give that one"):
        open_image(paths[0])
    for path in paths:
        path.unlink()
    with pytest.raises(ImageError, match=r"none of the files that it names.*image_c0.ome.tif, image_c1"):
        open_image(companion)
    companion.write_text('<OME xmlns="x"></OME>', encoding="utf-8")
    with pytest.raises(ImageError, match="names no file with planes"):
        open_image(companion)


SUMMARY = {
    "Channels": 2, "Slices": 3, "Frames": 1, "Positions": 1, "SlicesFirst": False, "TimeFirst": False,
    "ChNames": ["BF", "DAPI"], "PixelSize_um": 0.11, "z-step_um": -0.5,
}  # fmt: skip


def test_micro_manager_stack(tmp_path: Path) -> None:
    image = noise(2, 3, 7, 6)
    path = tmp_path / "cells_MMStack.ome.tif"
    planes = {(c, z, 0, 0): image[c, z] for z in range(3) for c in range(2)}
    write_micro_manager(path, planes, SUMMARY)
    with open_image(path) as reader:
        assert (reader.shape, reader.channel_names, reader.scenes) == ((3, 7, 6), ("BF", "DAPI"), ("S0",))
        assert reader.voxel_size == pytest.approx((0.5, 0.11, 0.11))
        for channel in (0, 1):
            np.testing.assert_array_equal(reader.read(channel), image[channel])
        np.testing.assert_array_equal(reader.read(1, Region.parse("2:,1:3,:5")), image[1, 2:, 1:3, :5])
    # Version 2 keeps the pixel size beside each plane.
    summary = {key: value for key, value in SUMMARY.items() if key != "PixelSize_um"}
    write_micro_manager(path, planes, summary, {"PixelSizeUm": 0.2})
    with open_image(path) as reader:
        assert reader.voxel_size == pytest.approx((0.5, 0.2, 0.2))


def test_micro_manager_positions_are_scenes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = noise(2, 2, 3, 7, 6)  # position, channel, slice
    summary = {**SUMMARY, "Positions": 2, "StagePositions": [{"Label": "left"}, {"Label": "right"}]}

    def planes(position: int) -> dict[tuple[int, int, int, int], np.ndarray]:
        return {(c, z, 0, position): image[position, c, z] for z in range(3) for c in range(2)}

    together = tmp_path / "all_MMStack.ome.tif"
    write_micro_manager(together, planes(0) | planes(1), summary)
    with open_image(together) as reader:
        assert reader.scenes == ("left", "right")
        with pytest.raises(ImageError, match=r"2 scenes: 0 'left' CZYX 2x3x7x6, 1 'right'.*--scene"):
            reader.read(0)
        for scene in (1, "right", "1"):
            np.testing.assert_array_equal(reader.read(1, scene=scene), image[1, 1])
    # One file for each position: the file named is the choice.
    for position in range(2):
        write_micro_manager(tmp_path / f"run_MMStack_{position}.ome.tif", planes(position), summary)
    with open_image(tmp_path / "run_MMStack_1.ome.tif") as reader:
        assert reader.scenes == ("right",)
        np.testing.assert_array_equal(reader.read(0), image[1, 0])
    cut = tmp_path / "cut_MMStack.ome.tif"
    cut.write_bytes(together.read_bytes())
    with cut.open("r+b") as handle:
        # The map of the planes is at the end: move the last plane's place beyond it.
        handle.seek(-4, 2)
        handle.write((2**31).to_bytes(4, "little"))
    with caplog.at_level(logging.CRITICAL, "tifffile"), open_image(cut, scene="right") as reader:
        np.testing.assert_array_equal(reader.read(0), image[1, 0])
        with pytest.raises(ImageError, match=r"page .* is missing"):
            reader.read(1)
    write_micro_manager(together, planes(0), {**summary, "Frames": 10**9})
    with pytest.raises(ImageError, match="Micro-Manager header claims 12000000000 planes"):
        open_image(together)


def test_big_tiff(tmp_path: Path) -> None:
    image = noise(3, 20, 30)
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, image, bigtiff=True, byteorder=">", metadata={"axes": "ZYX"}, compression="zlib")
    assert path.read_bytes()[:4] == b"MM\0+"
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0), image)


def test_imagej_stack_beyond_4_gigabytes(tmp_path: Path) -> None:
    """ImageJ writes one directory and all planes after it, however many: offsets of 32 bits do not reach them."""
    planes, height, width = 1200, 1400, 1400
    path = tmp_path / "big.tif"
    padding = {"axes": "ZYX", "unit": "micron", "padding": "x" * 40}
    tifffile.imwrite(path, np.zeros((1, height, width), "uint16"), imagej=True, metadata=padding)
    with tifffile.TiffFile(path) as file:
        begin, text = file.pages[0].dataoffsets[0], file.pages[0].description
        place = file.pages[0].tags["ImageDescription"].valueoffset
    assert len(text) > 80
    longer = f"ImageJ=1.54f\nimages={planes}\nslices={planes}\nunit=micron\nspacing=0.5\nloop=false\n"
    last = noise(height, width)
    with path.open("r+b") as handle:
        handle.seek(place)
        handle.write(longer.encode().ljust(len(text) + 1, b"\0"))
        # The rest of the file is a hole: it takes no room.
        handle.truncate(begin + planes * last.nbytes)
        handle.seek(begin + (planes - 1) * last.nbytes)
        handle.write(last.tobytes())
    assert path.stat().st_size > 2**32
    with open_image(path) as reader:
        assert reader.shape == (planes, height, width)
        np.testing.assert_array_equal(reader.read(0, Region((planes - 1, planes)))[0], last)
        assert reader.random_access
    with path.open("r+b") as handle:
        handle.truncate(begin + 100 * last.nbytes)
    with pytest.raises(ImageError, match="ImageJ header claims more planes than the file holds"):
        open_image(path)


@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("samples", [1, 3])
def test_only_the_tiles_or_strips_asked_for_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, compression: str | None, samples: int
) -> None:
    shape = (3, 200, 170) if samples == 1 else (3, 200, 170, samples)
    image = noise(*shape)
    path = tmp_path / "a.tif"
    form = {"tile": (32, 48)} if layout == "tiles" else {"rowsperstrip": 24}
    tifffile.imwrite(
        path, image, compression=compression, metadata={"axes": "ZYX" if samples == 1 else "ZYXS"},
        photometric="minisblack" if samples == 1 else "rgb", **form,
    )  # fmt: skip
    read = []
    original = tifffile.FileHandle.read

    def counted(handle: tifffile.FileHandle, size: int = -1) -> bytes:
        found = original(handle, size)
        read.append(len(found))
        return found

    monkeypatch.setattr(tifffile.FileHandle, "read", counted)
    with open_image(path) as reader:
        read.clear()
        found = reader.read(samples - 1, Region((1, 2), (40, 70), (50, 100)))
        plane = image[1] if samples == 1 else image[1, ..., samples - 1]
        np.testing.assert_array_equal(found[0], plane[40:70, 50:100])
        assert sum(read) < image.nbytes / 9, "a third of one of three planes at most"
        for box in (":,:,:", "0:1,199:200,169:170", "2:,0:33,47:49"):
            region = Region.parse(box)
            whole = image if samples == 1 else image[..., samples - 1]
            np.testing.assert_array_equal(
                reader.read(samples - 1, region), whole[region.resolve(reader.shape)]
            )


def test_colour_samples_are_channels_to_choose_from(tmp_path: Path) -> None:
    image = noise(4, 9, 8, 3)
    path = tmp_path / "a.tif"
    for axes, order in (("ZYXS", (0, 1, 2, 3)), ("ZSYX", (0, 3, 1, 2))):
        planar = "contig" if axes == "ZYXS" else "separate"
        tifffile.imwrite(
            path, image.transpose(order), photometric="rgb", planarconfig=planar, metadata={"axes": axes}
        )
        with open_image(path) as reader:
            assert (reader.shape, reader.channel_names) == ((4, 9, 8), ("red", "green", "blue"))
            with pytest.raises(ImageError, match="there are 3: 0 'red', 1 'green', 2 'blue'; name one"):
                reader.channel_index(None)
            np.testing.assert_array_equal(reader.read(reader.channel_index("green")), image[..., 1])
            part = Region.parse("1:2,3:5,:6")
            np.testing.assert_array_equal(reader.read(2, part), image[1:2, 3:5, :6, 2])


def test_pages_written_one_by_one_with_holes(tmp_path: Path) -> None:
    """Tiles of zeros that a writer left out read as zeros."""
    image = np.zeros((2, 64, 64), "uint16")
    image[1, 40:, 40:] = 7
    path = tmp_path / "a.tif"
    pages = (
        (tile.tobytes() if tile.any() else b"")
        for plane in image
        for row in np.split(plane, 4)
        for tile in np.split(row, 4, 1)
    )
    tifffile.imwrite(
        path,
        pages,
        shape=image.shape,
        dtype="uint16",
        tile=(16, 16),
        photometric="minisblack",
        metadata={"axes": "ZYX"},
    )
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0), image)


@pytest.mark.parametrize("options", [{"ome": True}, {"ome": True, "bigtiff": True}, {}], ids=str)
def test_a_cut_off_file_is_no_smaller_stack(options: dict[str, bool], tmp_path: Path) -> None:
    """Compressed pages lie one behind the other, and OME-XML behind them all: what is left looks whole."""
    image = noise(2, 4, 8, 8)
    path = tmp_path / "whole.tif"
    with tifffile.TiffWriter(path, **options) as writer:
        if options:
            writer.write(image, photometric="minisblack", compression="zlib", metadata={"axes": "CZYX"})
        else:
            for page in image.reshape(-1, 8, 8):
                writer.write(page, photometric="minisblack", compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as file:
        ends = [page.dataoffsets[-1] + page.databytecounts[-1] for page in file.pages]
    data = path.read_bytes()
    with open_image(path) as reader:
        assert reader.shape == ((4, 8, 8) if options else (8, 8, 8))
    # Behind the voxels of each page, and without the last bytes of the XML.
    for end in [*ends[:-1], *([ends[-1], len(data) - 1] if options else [])]:
        cut = tmp_path / "cut.tif"
        cut.write_bytes(data[:end])
        with pytest.raises(ImageError, match="truncated"), open_image(cut):
            pass


def test_a_damaged_last_page_gives_an_image_error_or_an_image(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 4, 5), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as file:
        first, *_, last = (page.offset for page in file.pages)
    data = path.read_bytes()
    refused = set()
    for place in range(last, len(data) if last > first else first):
        for byte in (0, 2, 255):
            path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            try:
                with open_image(path) as reader:
                    assert reader.read(0, Region((0, 1))).shape == (1, 4, 5)
            except ImageError as error:
                refused.add(str(error))
    assert f"{path}: truncated or damaged: its list of pages breaks off after 3; copy it again" in refused


def test_a_header_of_many_beginnings_is_read_in_time() -> None:
    """The text is looked through once, not once for each beginning."""
    began = time.perf_counter()
    check_ome("<Pixels " * 60_000)
    assert time.perf_counter() - began < 2
    with pytest.raises(ImageError, match="claims 6000000 planes: it is damaged"):
        check_ome("<Pixels <ome:Pixels ID='>' SizeC='2' SizeZ='3000' SizeT='1000'>")


def test_other_libraries_lines_are_not_among_the_messages(tmp_path: Path) -> None:
    path = tmp_path / "cut.ome.tif"
    tifffile.imwrite(path, noise(2, 4, 8, 8), photometric="minisblack", ome=True, metadata={"axes": "CZYX"})
    path.write_bytes(path.read_bytes()[:3000])
    call = (sys.executable, "-m", "repmode_cl", "data", "import", "channels", str(path), "--signal", "0")
    found = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: {path}: truncated or damaged")
    assert len(found.stderr.splitlines()) == 1
