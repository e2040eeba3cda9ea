"""The cache of prepared volumes, and the memory of files' digests: what is believed, and what is read again."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from reader_files import write_set

from repmode_cl.data.preprocessing import volume_cache as cache
from repmode_cl.data.preprocessing.content_digest import content_digest, file_stamp, image_files
from repmode_cl.data.preprocessing.volume_cache import ContentDigests, VolumeCache
from repmode_cl.inference.identity import input_fingerprint
from repmode_cl.utils.atomic_files import sha256_file


def test_a_file_s_digest_is_remembered_until_it_changes(tmp_path):
    path, record = tmp_path / "image", tmp_path / "contents.json"
    path.write_bytes(b"first")
    os.utime(path, ns=(10**18, 10**18))
    digests = ContentDigests(record)
    first = digests.of(path)
    digests.save()
    known = json.loads(record.read_text())
    known[str(path)]["sha256"] = "remembered"
    record.write_text(json.dumps(known))
    assert ContentDigests(record).of(path) == "remembered"
    path.write_bytes(b"other")
    assert ContentDigests(record).of(path) not in (first, "remembered")
    record.write_text("[")
    os.utime(path, ns=(10**18, 10**18))
    assert ContentDigests(record).of(path) != first


def test_files_are_read_through_ahead_and_several_at_once(tmp_path, monkeypatch):
    paths = [tmp_path / f"image{k}" for k in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode())
        os.utime(path, ns=(10**18, 10**18))
    digests = ContentDigests(tmp_path / "contents.json")
    digests.read([*paths, paths[0], tmp_path / "absent"], workers=3)
    want = [sha256_file(path) for path in paths]
    monkeypatch.setattr(cache, "sha256_file", None)  # none is read again
    digests.read(paths, workers=3)
    assert [digests.of(path) for path in paths] == want
    with pytest.raises(FileNotFoundError):
        digests.of(tmp_path / "absent")


def test_just_written_files_are_not_remembered(tmp_path):
    (tmp_path / "image").write_bytes(b"first")
    digests = ContentDigests(tmp_path / "contents.json")
    digests.of(tmp_path / "image")
    digests.save()
    assert not (tmp_path / "contents.json").exists()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    store = VolumeCache(tmp_path)
    key = store.key({"a": 1})
    left = store.path(key).with_name(f"{key}.writing-0123abcd.npy")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    store.store(key, np.zeros((1, 2, 3)), {})
    assert not left.exists()
    assert store.find(key) == (1, 2, 3)
    assert store.find(store.key({"a": 2})) is None


@pytest.mark.parametrize("companion", [False, True])
def test_an_image_in_several_files_is_all_of_them(tmp_path, companion):
    """Else a channel that was exported again would be taken out of the cache as it was."""
    image = np.random.default_rng(0).integers(0, 999, (2, 4, 9, 8), "uint16")
    first, second = write_set(tmp_path / "set", image, companion=companion)
    files = sorted((tmp_path / "set").iterdir())
    assert len(files) == 2 + companion
    for file in files:
        assert image_files(file) == files
    assert len({content_digest(file) for file in files}) == 1
    before = content_digest(first), file_stamp(first), input_fingerprint(first)
    write_set(tmp_path / "set", np.stack([image[0], image[1] + 1]), companion=companion)
    os.utime(second, ns=(10**18, 10**18))
    assert all(
        a != b
        for a, b in zip(
            before, (content_digest(first), file_stamp(first), input_fingerprint(first)), strict=True
        )
    )


def test_a_file_by_itself_is_no_set(tmp_path):
    """Also under another name than the one that stands in it, beside a file of that name."""
    path, *_ = write_set(tmp_path, np.ones((1, 4, 9, 8), "uint16"))
    assert image_files(path) == [path]
    assert content_digest(path) == sha256_file(path)
    renamed = tmp_path / "renamed.ome.tif"
    renamed.write_bytes(path.read_bytes())
    assert image_files(renamed) == [renamed]
