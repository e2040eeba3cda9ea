"""The folder beside the output in which an unfinished prediction lives, and the journal that lets it continue.

The journal is a small JSON file, replaced after each block, that says what was asked for and how far it is. Data are
on disk before it says so; whatever instant a process dies at, the same call goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.writers import remove
from repmode_cl.utils.atomic_files import Closing, write_json

__all__ = ["PredictionJournal", "part_of"]

_FORMAT = "unfinished prediction of repmode-cl, version 2"


def part_of(path: Path, folder: Path) -> Path:
    """Return the name that an output has until it is whole: one of its own for each scratch `folder`.

    A prediction of several structures and one of a single structure may be under way to the same file; neither may
    take the other's part for its own.
    """
    if path.parent.resolve() / _folder_name(path) == folder.resolve():
        return path.with_name(f"{path.name}.part")
    owner = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return path.with_name(f"{path.name}.{owner}.part")


def _folder_name(output: Path) -> str:
    return f"{output.name}.unfinished"


class PredictionJournal(Closing):
    """The scratch folder of one call, locked while in use; a context manager.

    Parameters
    ----------
    output
        The (first) file that the call makes: the folder lies beside it, as ``<name>.unfinished``.
    call
        What decides every voxel of the result, and where it goes: JSON values.
    restart
        Discard what an earlier call left, whatever it was.

    Attributes
    ----------
    folder
        The folder.
    journal
        What is known: JSON values, empty if the prediction begins. Change it by `save`.

    Raises
    ------
    RepmodeError
        If an unfinished prediction with another `call` is there, its journal is damaged, or another process
        is at work on it.
    """

    def __init__(self, output: Path, call: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = self.folder_of(output)
        self.call = json.loads(json.dumps(call))
        self.journal: dict[str, Any] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RepmodeError(
                f"{output}: another process is predicting this file; wait for it, or give another name"
            ) from None
        try:
            found = {} if restart else self._read(output)
            if found:
                self._compare(found.get("call"), output)
                self.journal = dict(found["done"])
            else:
                self._clear()
                write_json(self._file, {"format": _FORMAT, "call": self.call, "done": {}})
        except BaseException:
            self._lock.release()
            raise

    @staticmethod
    def folder_of(output: Path) -> Path:
        """Return the scratch folder of an output."""
        return output.with_name(_folder_name(output))

    @property
    def _file(self) -> Path:
        return self.folder / "journal.json"

    def _read(self, output: Path) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RepmodeError(
                f"{self._file}: the journal of an unfinished prediction cannot be read ({error}); "
                "give --restart (restart=True) to begin anew"
            ) from error
        if (
            not isinstance(found, dict)
            or found.get("format") != _FORMAT
            or not isinstance(found.get("done"), dict)
        ):
            raise RepmodeError(
                f"{self._file}: no journal of an unfinished prediction that this version can go on with; "
                "give --restart (restart=True) to begin anew"
            )
        return found

    def _compare(self, earlier: Any, output: Path) -> None:
        earlier = earlier if isinstance(earlier, dict) else {}
        different = [
            f"{key} was {json.dumps(earlier.get(key))}, is {json.dumps(self.call.get(key))}"
            for key in sorted({*earlier, *self.call})
            if earlier.get(key) != self.call.get(key)
        ]
        if different:
            raise RepmodeError(
                f"{output}: an unfinished prediction was begun with other settings ({'; '.join(different)}); give "
                "those to go on with it, or --restart (restart=True) to discard it and begin anew"
            )

    def save(self, **changes: Any) -> None:
        """Write the journal with `changes` (JSON values), whole or not at all."""
        self.journal.update(changes)
        write_json(self._file, {"format": _FORMAT, "call": self.call, "done": self.journal})

    def _clear(self) -> None:
        """Remove what an earlier call left, its unfinished outputs included."""
        outputs: Any = []
        try:
            outputs = json.loads(self._file.read_text(encoding="utf-8"))["call"]["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            outputs = []  # there was none, or it cannot be told any more
        for name in outputs if isinstance(outputs, list) else []:
            remove(part_of(Path(str(name)), self.folder))
        for file in self.folder.iterdir():
            if file.name != "lock":
                remove(file)

    def discard(self) -> None:
        """Remove the folder and all unfinished outputs."""
        self._clear()
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def worth_keeping(self) -> bool:
        """Whether there is more here than a call's beginning: a prepared image, or a block."""
        return bool(self.journal.get("prepared") or self.journal.get("blocks"))

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.release()
