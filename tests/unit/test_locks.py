from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from repmode_cl.errors import ConfigError
from repmode_cl.utils import locks
from repmode_cl.utils.locks import exclusive, is_locked


def test_a_lock_is_held_within_the_block_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".lock"
    assert is_locked(file) is False
    with exclusive(file, "busy", error=ConfigError):
        assert is_locked(file) is True
        again = exclusive(file, lambda: "another is at work", error=ConfigError)
        with pytest.raises(ConfigError, match="another is at work"), again:
            pass
    assert is_locked(file) is False
    assert file.exists()  # a lock file that is removed can be locked twice
    with pytest.raises(ZeroDivisionError), exclusive(file, "busy", error=ConfigError):
        _ = 1 / 0
    assert is_locked(file) is False


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FileLock):
        def acquire(self, *arguments: object, **options: object) -> None:
            raise NotImplementedError("flock")

    monkeypatch.setattr(locks, "FileLock", Refusing)
    with (
        pytest.raises(
            ConfigError, match=rf"{tmp_path.name} is on a file system without locks \(flock\): use"
        ),
        exclusive(tmp_path / ".lock", "busy", error=ConfigError),
    ):
        pass
