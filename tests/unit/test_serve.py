"""The server of `repmode-cl serve`: bounds, tokens, queue, errors, and that what was sent is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from serving import SHAPE, client, image_bytes, make_served_model, served, wait_for
from starlette.testclient import TestClient

from repmode_cl.data.readers import open_image
from repmode_cl.errors import RepmodeError
from repmode_cl.inference.predict_file import FilePrediction, predict_file
from repmode_cl.serve import images as images_module
from repmode_cl.serve.images import ImageStore, StoredImage, without_folder
from repmode_cl.serve.server import server_folder
from repmode_cl.serve.settings import ServeSettings, is_loopback, is_unspecified, new_token

TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_served_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(autouse=True)
def room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_DISK_RESERVE", 0)


@pytest.fixture
def site(model: Path, tmp_path: Path) -> Iterator[TestClient]:
    with client(model, tmp_path / "store") as opened:
        yield opened


def send(site: TestClient, data: bytes | None = None, name: str = "cells.ome.tif") -> dict[str, Any]:
    answer = site.post(f"/api/images?name={name}", content=image_bytes() if data is None else data)
    assert answer.status_code == 201, answer.text
    sent: dict[str, Any] = answer.json()
    return sent


def predict(site: TestClient, image: dict[str, Any], **wanted: Any) -> Any:
    request = {"image": image["id"], "model": "model", "structures": ["dna"], "channel": 0, **wanted}
    return site.post("/api/jobs", json=request)


def error(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    text: str = answer.json()["error"]
    return text


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# -- what it does ---------------------------------------------------------------------------------------------


def test_an_image_is_predicted_as_by_predict(site: TestClient, model: Path, tmp_path: Path) -> None:
    assert [one["name"] for one in site.get("/api/models").json()["models"]] == ["model"]
    image = send(site)
    assert (image["name"], image["shape"], image["voxel_size"]) == ("cells.ome.tif", list(SHAPE), [0.29] * 3)
    job = wait_for(site, predict(site, image, structures=["dna", "cell_membrane"]).json())
    assert (job["state"], job["file"], job["notes"]) == ("finished", "cells-predicted.ome.tif", [])
    assert job["done"] == job["total"] > 0
    assert job["likeness"] == dict.fromkeys(("dna", "cell_membrane"), "like training images or not: unknown")
    answer = site.get(f"/api/jobs/{job['id']}/result")
    assert answer.headers["content-disposition"] == 'attachment; filename="cells-predicted.ome.tif"'
    got, expected = tmp_path / "got.ome.tif", tmp_path / "expected.ome.tif"
    got.write_bytes(answer.content)
    source = tmp_path / "cells.ome.tif"
    source.write_bytes(image_bytes())
    predict_file(model, ["dna", "cell_membrane"], source, expected, stack=True)
    np.testing.assert_array_equal(tifffile.imread(got), tifffile.imread(expected))
    with open_image(got) as reader:
        assert reader.channel_names[1:] == ("dna", "cell_membrane")
        assert reader.voxel_size == pytest.approx((0.29,) * 3)


def test_planes_are_pictures(site: TestClient) -> None:
    image = send(site, image_bytes((2, *SHAPE), axes="CZYX", Channel={"Name": ["GFP", "bright"]}))
    assert image["channels"] == ["GFP", "bright"]
    planes = [
        site.get(f"/api/images/{image['id']}/plane?channel={channel}&z={z}").content
        for channel, z in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(planes)) == 3
    with Image.open(io.BytesIO(planes[0])) as picture:
        assert (picture.size, picture.mode) == ((SHAPE[2], SHAPE[1]), "L")
        assert {picture.getextrema()[0], picture.getextrema()[1]} <= set(range(256))
    job = wait_for(site, predict(site, image, channel=1).json())
    coloured = site.get(f"/api/jobs/{job['id']}/plane?channel=1&z=0")
    with Image.open(io.BytesIO(coloured.content)) as picture:
        red, _, blue = picture.split()
        assert blue.getextrema()[1] > 3 * red.getextrema()[1]  # DNA is blue
    assert "no plane 8" in error(site.get(f"/api/images/{image['id']}/plane?channel=0&z=8"), 400)
    assert "no channel 2" in error(site.get(f"/api/jobs/{job['id']}/plane?channel=2&z=0"), 400)


def test_wide_planes_are_reduced(site: TestClient) -> None:
    image = send(site, image_bytes((2, 4, 2100)))
    answer = site.get(f"/api/images/{image['id']}/plane?channel=0&z=0")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (700, 2)


def test_a_scene_and_a_time_point_are_chosen(site: TestClient) -> None:
    data = image_bytes((2, *SHAPE), axes="TZYX")
    image = send(site, data)
    assert image["times"] == 2
    assert "2 time points" in error(predict(site, image), 400)
    job = wait_for(site, predict(site, image, t=1).json())
    assert job["state"] == "finished"
    shown = [site.get(f"/api/images/{image['id']}/plane?channel=0&z=0&t={t}").content for t in (0, 1)]
    assert shown[0] != shown[1]


def test_a_sample_is_simulated(site: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_SAMPLE_SHAPE", (8, 16, 16))
    image = site.post("/api/sample", json={"model": "model"}).json()
    assert (image["shape"], image["voxel_size"]) == ([8, 16, 16], [0.29] * 3)
    assert wait_for(site, predict(site, image).json())["state"] == "finished"


# -- what it refuses ------------------------------------------------------------------------------------------


def test_bytes_are_bounded_whether_announced_or_not(model: Path, tmp_path: Path) -> None:
    with client(model, tmp_path / "store", max_upload=1000) as site:
        for content in (bytes(1001), iter([bytes(600), bytes(600)])):
            answer = site.post("/api/images?name=big.tif", content=content)
            assert re.search(r"^big\.tif: more than the 1 kB .*--max-upload", error(answer, 413))
        assert files(tmp_path / "store") == []


def test_all_images_together_are_bounded(model: Path, tmp_path: Path) -> None:
    size = len(image_bytes())
    with client(model, tmp_path / "store", max_stored=2 * size) as site:
        first = send(site)
        send(site)
        assert "--max-stored" in error(site.post("/api/images?name=a.tif", content=image_bytes()), 507)
        site.delete(f"/api/images/{first['id']}")
        third = send(site)
        job = wait_for(site, predict(site, third).json())  # no room for its result
        assert job["state"] == "failed"
        assert "--max-stored" in job["error"]


@pytest.mark.parametrize("letter", ["細胞", "😀", "é", "x"])
def test_a_long_name_of_any_letters_is_received_and_predicted(site: TestClient, letter: str) -> None:
    """File systems count bytes."""
    image = send(site, name=f"{letter * 100}.ome.tif")
    assert image["name"].endswith(".ome.tif")
    assert len(image["name"].encode()) <= 160
    job = wait_for(site, predict(site, image).json())
    assert (job["state"], job["error"]) == ("finished", None)
    assert len(job["file"].encode()) < 255


def test_what_is_computed_on_a_finer_grid_counts(model: Path, tmp_path: Path) -> None:
    """A voxel size that is stated too large lets the model compute on a grid many times as large as the file."""
    with client(model, tmp_path / "store", max_stored=1 << 20) as site:
        image = send(site)
        right = wait_for(site, predict(site, image).json())
        assert right["state"] == "finished", right["error"]
        # 20 times 20 times 20 as many voxels: 90 MB of float32.
        coarse = predict(site, image, voxel_size=[5.8] * 3, force=True)
        job = wait_for(site, coarse.json())
        assert job["state"] == "failed"
        assert "--max-stored" in job["error"]
        assert job["done"] == 0


def test_voxels_are_bounded_before_one_is_read(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of few bytes may claim any number of voxels."""
    data = io.BytesIO()
    tifffile.imwrite(data, np.zeros((40, 500, 500), "uint8"), compression="zlib", photometric="minisblack")
    assert len(data.getvalue()) < 200_000
    monkeypatch.setattr("repmode_cl.data.readers.image_reader.ImageReader.read", None)
    with client(model, tmp_path / "store", max_voxels=9_999_999) as site:
        text = error(site.post("/api/images?name=huge.tif", content=data.getvalue()), 413)
        assert text.startswith(
            "huge.tif: 40 x 500 x 500 = 10,000,000 voxels (z, y, x) in a channel; this server takes up to 9,999,999"
        )
        assert files(tmp_path / "store") == []


def test_a_header_that_claims_more_than_the_file_holds_gets_the_readers_error(site: TestClient) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**4, 10**5, 10**5)}
    )
    text = error(site.post("/api/images?name=huge.npy", content=header.getvalue()), 400)
    assert text.startswith("huge.npy: truncated: its header claims 400000000000000 bytes")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.txt", b"just words", "notes.txt: no format known here"),
        ("cells.tif", image_bytes()[:1500], "cells.tif: "),
        ("empty.tif", b"", "empty.tif: the file is empty"),
        ("cells.jpg", b"\xff\xd8\xff\xe0", "JPEG is not supported"),
        ("a.companion.ome", b'<?xml version="1.0"?><OME></OME>', "save the image as one file"),
    ],
)
def test_what_is_no_image_gets_the_readers_error(
    site: TestClient, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    text = error(site.post(f"/api/images?name={name}", content=data), 400)
    assert message in text
    assert str(tmp_path) not in text
    assert files(tmp_path / "store") == []


def test_files_of_the_server_are_not_read(site: TestClient, tmp_path: Path) -> None:
    """OME-XML may name the files that hold an image's planes; tifffile opens whatever it names."""
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.full(SHAPE, 7, "uint16"))
    for name in (str(secret), "../../../secret.tif"):
        xml = (
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="10" SizeY="12" SizeZ="8" SizeC="1" '
            f'SizeT="1"><TiffData IFD="0" PlaneCount="8"><UUID a="&gt;" FileName="{name}">urn:uuid:b</UUID></TiffData>'
            "</Pixels></Image></OME>"
        )
        data = io.BytesIO()
        tifffile.imwrite(data, np.zeros((1, 12, 10), "uint16"), description=xml, metadata=None)
        assert "one file of a set" in error(site.post("/api/images?name=a.tif", content=data.getvalue()), 400)
    # What names no other file is read, whatever its own name was.
    xml = xml.replace('FileName="../../../secret.tif">urn:uuid:b', 'FileName="C:/images/a.tif">urn:uuid:a')
    data = io.BytesIO()
    tifffile.imwrite(data, np.zeros(SHAPE, "uint16"), description=xml, metadata=None)
    assert send(site, data.getvalue(), "renamed.tif")["shape"] == list(SHAPE)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/cells.tif", "cells.tif"),
        ("C:\\data\\cells 1.tif", "cells 1.tif"),
        ("zarr.json", "image-zarr.json"),
        (".tif", "image-tif"),
        ("con.tif", "image-con.tif"),
        ("<b>ä?.tif", "_b_ä_.tif"),
        ("x" * 300 + ".ome.tif", "x" * 130 + "x" * 22 + ".ome.tif"),
    ],
)
def test_names_stay_in_their_folder(tmp_path: Path, name: str, kept: str) -> None:
    assert images_module._safe_name(name) == kept


def test_messages_do_not_tell_where_files_lie(tmp_path: Path) -> None:
    image = StoredImage("a", "my cells.tif", tmp_path / "a")
    text = (
        f"{image.path}: wrong; {image.folder / 'job' / 'my cells-predicted.ome.tif'} (dna), {tmp_path / 'b'}"
    )
    said = without_folder(text, image)
    assert said == f"my cells.tif: wrong; my cells-predicted.ome.tif (dna), {tmp_path / 'b'}"


def test_requests_that_cannot_be_met(site: TestClient) -> None:
    image = send(site)
    assert "choose at least one" in error(predict(site, image, structures=[]), 400)
    assert "no structure 'rna'" in error(predict(site, image, structures=["rna"]), 400)
    assert "no model 'other'" in error(predict(site, image, model="other"), 400)
    assert "there is no channel 3" in error(predict(site, image, channel=3), 400)
    assert "three positive numbers" in error(predict(site, image, voxel_size=[1, 0, 1]), 400)
    assert "no longer on the server" in error(predict(site, {"id": "unknown"}), 404)
    assert "no longer on the server" in error(site.get("/api/jobs/unknown"), 404)
    assert "no JSON" in error(site.post("/api/jobs", content=b"{"), 400)
    assert "no JSON" in error(site.post("/api/jobs", content=b"[" * 60_000), 400)
    assert "more than 65536 bytes" in error(site.post("/api/jobs", content=bytes(70_000)), 413)
    assert site.get("/api/nothing").json() == {"error": "there is nothing at this address"}
    assert site.get("/static/../settings.py").status_code == 404


def test_a_voxel_size_that_does_not_fit_is_refused_in_the_words_of_the_page(site: TestClient) -> None:
    image = send(site, image_bytes(voxel=2.0))
    text = error(predict(site, image), 400)
    assert text.startswith("cells.ome.tif: voxels of 2 x 2 x 2 um")
    assert "enter the right one under “Voxel size”" in text
    assert "--" not in text
    assert wait_for(site, predict(site, image, voxel_size=[0.29] * 3).json())["state"] == "finished"
    job = predict(site, send(site, image_bytes((32, 60, 60), voxel=0.1)), force=True).json()
    assert "used anyway" in job["notes"][0]
    job = wait_for(site, job)
    assert (job["state"], len(job["notes"])) == ("finished", 1)


# -- who may use it -------------------------------------------------------------------------------------------


def test_a_token_is_required(model: Path, tmp_path: Path) -> None:
    with client(model, tmp_path / "store", token=TOKEN, host="0.0.0.0") as site:
        assert "asks for a token" in error(site.get("/api/models"), 401)
        assert "asks for a token" in error(site.post("/api/images?name=a.tif", content=b"x"), 401)
        assert files(tmp_path / "store") == []
        form = site.get("/")
        assert (form.url.path, 'type="password"' in form.text) == ("/sign-in", True)
        assert "not the token" in site.get("/?token=wrong-token-of-this-test").text
        assert "not the token" in site.post("/sign-in", data={"token": "wrong"}).text
        assert error(site.get("/api/models", headers={"authorization": "Bearer wrong"}), 401)
        assert site.get("/api/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        page = site.get(f"/?token={TOKEN}")
        assert (page.url.path, page.url.query, "serve.js" in page.text) == ("/", b"", True)
        cookie = page.history[0].headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
        assert TOKEN not in cookie
        assert site.get("/api/models").status_code == 200
        site.cookies.clear()
        assert site.get("/api/models").status_code == 401
        site.post("/sign-in", data={"token": f" {TOKEN} "})
        assert site.get("/api/models").status_code == 200


def test_addresses_that_others_reach_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(RepmodeError, match=rf"host {host}: other machines.*token is needed"):
            ServeSettings(host=host)
        assert ServeSettings(host=host, token=new_token()).token
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        assert is_loopback(host)
        assert ServeSettings(host=host).token is None
    hosts = ("0.0.0.0", "::", "127.0.0.1", "::1", "example.org")
    assert [is_unspecified(host) for host in hosts] == [True, True, False, False, False]
    with pytest.raises(RepmodeError, match="at least 16"):
        ServeSettings(token="short")


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 0.0, -1.0])
def test_times_are_finite(number: float) -> None:
    for name in ("keep_seconds", "keep_downloaded_seconds", "stall_seconds"):
        with pytest.raises(RepmodeError, match=f"{name} {number}: a positive, finite number is needed"):
            ServeSettings(**{name: number})


def test_other_web_sites_may_not_use_it(site: TestClient) -> None:
    """Without a token, a name that somebody makes point to this machine is refused, and so are others' pages."""
    for host in ("evil.example", "evil.example:8765", "[", ""):
        assert "only answers as localhost" in error(site.get("/api/models", headers={"host": host}), 403)
    for host in ("localhost:8765", "127.0.0.1", "[::1]:8765"):
        assert site.get("/api/models", headers={"host": host}).status_code == 200
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        for request in (site.post, site.delete):
            assert "another web site" in error(request("/api/images?name=a.tif", headers=headers), 403)
    own = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin"}
    assert site.post("/api/images?name=a.tif", content=image_bytes(), headers=own).status_code == 201


def test_nothing_is_loaded_from_elsewhere(site: TestClient) -> None:
    addresses = [
        "/",
        "/sign-in",
        "/static/serve.js",
        "/static/serve.css",
        "/static/report.css",
        "/static/icon.svg",
    ]
    for address in addresses:
        answer = site.get(address)
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == "'none'"
        assert policy.pop("img-src") == "'self' blob:"
        assert (policy.pop("base-uri"), policy.pop("frame-ancestors")) == ("'none'", "'none'")
        assert set(policy) == {"script-src", "style-src", "connect-src", "form-action"}
        assert set(policy.values()) == {"'self'"}
        assert answer.headers["x-content-type-options"] == "nosniff"
        found = re.findall(r"https?://[^\s\"')]+", answer.text)
        assert [one for one in found if one != "http://www.w3.org/2000/svg"] == []
    page = site.get("/").text
    assert re.findall(r"<script(?![^>]* src=\"/static/)|<style|\bstyle=|\bon\w+=", page) == []
    for address in ("/api/models", "/api/nothing"):
        assert "content-security-policy" in site.get(address).headers


def test_every_control_has_a_name(site: TestClient) -> None:
    page = site.get("/").text
    labelled = set(re.findall(r'<label[^>]* for="([\w-]+)"', page))
    inside = re.findall(r"<label>(?:(?!</label>).)*?id=\"([\w-]+)\"", page)
    controls = re.findall(r'<(?:input|select)\b[^>]*\bid="([\w-]+)"', page)
    assert [one for one in controls if one not in labelled | set(inside)] == []
    assert '<html lang="en">' in page


# -- the queue ------------------------------------------------------------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make predictions wait, once begun, until the second event; the first one tells that one has begun."""
    begun, go = threading.Event(), threading.Event()
    original = FilePrediction.run

    def run(self: FilePrediction) -> Any:
        begun.set()
        assert go.wait(60)
        return original(self)

    monkeypatch.setattr(FilePrediction, "run", run)
    return begun, go


def test_two_visitors_share_the_device_and_do_not_wait_for_uploads(
    model: Path, tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = held
    with client(model, tmp_path / "store", max_waiting=1) as site:
        first = predict(site, send(site)).json()
        assert begun.wait(60)
        image = send(site, name="other.tif")  # received while the first one is predicted
        assert site.get(f"/api/images/{image['id']}/plane?channel=0&z=0").status_code == 200
        second = predict(site, image).json()
        assert (second["state"], second["ahead"]) == ("waiting", 1)
        assert "1 prediction wait already" in error(predict(site, image), 503)
        assert site.get(f"/api/jobs/{first['id']}").json()["state"] == "running"
        assert error(site.get(f"/api/jobs/{second['id']}/result"), 409)
        go.set()
        assert [wait_for(site, job)["state"] for job in (first, second)] == ["finished", "finished"]


def test_a_slow_upload_holds_nobody_up(model: Path, tmp_path: Path) -> None:
    """Of a real server: the client of the other tests sends from the server's own loop."""
    data = image_bytes()

    def ask(method: str, path: str, content: Any = None) -> Any:
        with contextlib.closing(http.client.HTTPConnection(place, timeout=60)) as connection:
            connection.request(method, path, content)
            return json.loads(connection.getresponse().read())

    def begin(name: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(place, timeout=60)
        connection.putrequest("POST", f"/api/images?name={name}")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data[:100])
        return connection

    with served(model, tmp_path / "store") as address:
        place = address.removeprefix("http://")
        slow = begin("slow.tif")
        image = ask("POST", "/api/images?name=quick.tif", data)
        wanted = {"image": image["id"], "model": "model", "structures": ["dna"], "channel": 0}
        job = ask("POST", "/api/jobs", json.dumps(wanted))
        deadline = time.monotonic() + 60
        while job["state"] in ("waiting", "running") and time.monotonic() < deadline:
            time.sleep(0.02)
            job = ask("GET", f"/api/jobs/{job['id']}")
        assert job["state"] == "finished"
        slow.send(data[100:])
        assert json.loads(slow.getresponse().read())["name"] == "slow.tif"
        slow.close()
        # One that breaks off leaves nothing.
        gone = begin("gone.tif")
        while not list((tmp_path / "store").rglob("gone.tif")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        gone.close()
        while list((tmp_path / "store").rglob("gone.tif")):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_stalled_upload_is_given_up(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, ServeSettings(stall_seconds=0.05))

    async def stalls() -> Any:
        yield b"x"
        await asyncio.sleep(60)

    with pytest.raises(RepmodeError, match=r"nothing arrived for 0\.05 s"):
        asyncio.run(store.receive("a.tif", None, stalls()))
    assert list(tmp_path.iterdir()) == []

    async def breaks_off() -> Any:
        yield b"x"

    with pytest.raises(RepmodeError, match=r"1 bytes of 7 arrived"):
        asyncio.run(store.receive("a.tif", 7, breaks_off()))
    assert list(tmp_path.iterdir()) == []


def test_predictions_are_cancelled(
    model: Path, tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = held
    with client(model, tmp_path / "store") as site:
        image = send(site)
        running, waiting = predict(site, image).json(), predict(site, image).json()
        assert begun.wait(60)
        assert site.delete(f"/api/jobs/{waiting['id']}").json()["state"] == "cancelled"
        site.delete(f"/api/jobs/{running['id']}")
        last = predict(site, image).json()
        go.set()
        assert wait_for(site, last)["state"] == "finished"
        states = [site.get(f"/api/jobs/{job['id']}").json()["state"] for job in (running, waiting)]
        assert states == ["cancelled", "cancelled"]
        assert len([path for path in files(tmp_path / "store") if "predicted" in path.name]) == 1
        assert list((tmp_path / "store").rglob("*.unfinished")) == []


def test_a_defect_ends_one_prediction_and_not_the_queue(
    site: TestClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = send(site)
    with monkeypatch.context() as patched:
        patched.setattr(FilePrediction, "run", lambda self: 1 / 0)
        job = wait_for(site, predict(site, image).json())
    assert (job["state"], "defect of this program" in job["error"]) == ("failed", True)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert wait_for(site, predict(site, image).json())["state"] == "finished"


def test_of_the_predictions_of_an_image_the_newest_are_kept(
    site: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repmode_cl.serve.jobs._MOST_ENDED", 2)
    image, other = send(site), wait_for(site, predict(site, send(site)).json())
    # The last one ends after the look for those that have ended.
    jobs = [wait_for(site, predict(site, image).json()) for _ in range(5)]
    answers = [site.get(f"/api/jobs/{job['id']}") for job in jobs]
    assert [answer.status_code for answer in answers] == [404, 404, 200, 200, 200]
    assert "predict the image again" in error(answers[0], 404)
    kept = {path.parent.name for path in files(tmp_path / "store") if "predicted" in path.name}
    assert kept == {other["id"], *(job["id"] for job in jobs[2:])}
    # One that failed counts, too.
    with monkeypatch.context() as patched:
        patched.setattr(FilePrediction, "run", lambda self: 1 / 0)
        failed = [wait_for(site, predict(site, image).json()) for _ in range(3)]
    assert site.get(f"/api/jobs/{failed[0]['id']}").status_code == 200
    assert [site.get(f"/api/jobs/{job['id']}").status_code for job in jobs] == [404] * 5


# -- deletion -------------------------------------------------------------------------------------------------


def test_images_are_deleted_by_request_and_with_them_their_predictions(
    model: Path, tmp_path: Path, held: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = held
    with client(model, tmp_path / "store") as site:
        image, other = send(site), send(site)
        job = predict(site, image).json()
        assert begun.wait(60)
        assert site.delete(f"/api/images/{image['id']}").status_code == 204
        assert error(site.get(f"/api/images/{image['id']}"), 404)
        assert error(site.get(f"/api/jobs/{job['id']}"), 404)
        last = predict(site, other).json()
        go.set()
        wait_for(site, last)
        assert {path.parent.parent.name for path in files(tmp_path / "store")} == {other["id"]} | {
            path.parent.parent.name for path in files(tmp_path / "store") if "predicted" in path.name
        }
        assert not (tmp_path / "store" / image["id"]).exists()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_images_expire_after_their_last_use_and_sooner_after_a_download(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(ImageStore.__init__, "__defaults__", (clock,))
    monkeypatch.setattr("repmode_cl.serve.app._SWEEP_SECONDS", 0.01)

    def exists(image: dict[str, Any]) -> bool:
        threading.Event().wait(0.1)  # ten looks of the server
        return (tmp_path / "store" / image["id"]).exists()

    with client(model, tmp_path / "store", keep_seconds=1000, keep_downloaded_seconds=100) as site:
        kept, downloaded = send(site), send(site)
        job = wait_for(site, predict(site, downloaded).json())
        clock.now = 900.0
        assert site.get(f"/api/jobs/{job['id']}/result").status_code == 200
        assert site.get(f"/api/images/{kept['id']}").status_code == 200
        clock.now = 999.0
        assert exists(kept)
        assert exists(downloaded)
        clock.now = 1001.0
        assert exists(kept)  # it was used at 900
        assert not exists(downloaded)  # 100 s after its download
        clock.now = 1901.0
        assert not exists(kept)
        assert "no longer on the server" in error(site.get(f"/api/images/{kept['id']}"), 404)


def test_an_image_in_use_stays_until_it_is_not(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, ServeSettings())
    image = store._new("a.tif")
    with store.using(image), store.using(image):
        store.delete(image)
        assert image.folder.exists()
    assert not image.folder.exists()


def test_the_folder_goes_with_the_server_and_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "repmode-cl-serve-killed"
    (left / "images").mkdir(parents=True)
    (left / "lock").touch()
    with server_folder() as folder:
        assert not left.exists()
        assert folder.parent.stat().st_mode & 0o077 == 0
        (folder / "an image").touch()
        with server_folder():  # of another server of this user
            assert folder.exists()
    assert list(tmp_path.iterdir()) == []
