"""Journal of an unfinished prediction, in a folder beside the output, from which the same call continues.

The journal is a small JSON file, replaced after each block: what was requested and what is done. Data are on disk
before the journal says so. Whatever instant a process dies at, the same call continues from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from repmode_cl.errors import RepmodeError
from repmode_cl.inference.writers import remove_path
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.locks import exclusive

__all__ = ["PredictionJournal", "PredictionStopped", "part_path"]

_FORMAT = "unfinished prediction of repmode-cl, version 2"


class PredictionStopped(Exception):  # noqa: N818 - nothing went wrong
    """A prediction ended because it was asked to; the same call continues it."""


def part_path(path: Path, folder: Path) -> Path:
    """Return the name that an output has until it is whole: another one for each journal's `folder`.

    A prediction of several structures and one of a single structure may be unfinished at the same file; neither may
    use the other's part.
    """
    if path.parent.resolve() / _folder_name(path) == folder.resolve():
        return path.with_name(f"{path.name}.part")
    owner = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return path.with_name(f"{path.name}.{owner}.part")


def _folder_name(output: Path) -> str:
    return f"{output.name}.unfinished"


class PredictionJournal(AbstractContextManager["PredictionJournal"]):
    """The journal of one call and its folder, locked while in use; a context manager.

    Parameters
    ----------
    output
        The (first) file that the call makes: the folder lies beside it, as ``<name>.unfinished``.
    request
        Everything that decides a voxel of the result, and where it goes: JSON values.
    restart
        Discard an earlier call's unfinished prediction, whatever it was.

    Attributes
    ----------
    folder
        The folder.
    state
        What is done: JSON values, empty if the prediction begins. Change it by `save`.

    Raises
    ------
    RepmodeError
        If an unfinished prediction with another `request` is there, its journal is damaged, or another process
        is working on it.
    """

    def __init__(self, output: Path, request: Mapping[str, Any], *, restart: bool = False) -> None:
        self.folder = self.folder_of(output)
        self.request = json.loads(json.dumps(request))
        self.state: dict[str, Any] = {}
        busy = f"{output}: another process is predicting this file; wait for it, or give another name"
        with ExitStack() as held:
            held.enter_context(exclusive(self.folder / "lock", busy, error=RepmodeError))
            earlier = {} if restart else self._read()
            if earlier:
                self.state = dict(earlier["done"])
                self._compare(earlier.get("call"), output)
            else:
                self._clear()
                self.save()
            self._held = held.pop_all()

    @staticmethod
    def folder_of(output: Path) -> Path:
        """Return the folder of an output's journal."""
        return output.with_name(_folder_name(output))

    @property
    def _file(self) -> Path:
        return self.folder / "journal.json"

    def _read(self) -> dict[str, Any]:
        """Return an earlier call's journal, or nothing."""
        try:
            value = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RepmodeError(
                f"{self._file}: the journal of an unfinished prediction cannot be read ({error}); "
                "give --restart (restart=True) to start over"
            ) from error
        if (
            not isinstance(value, dict)
            or value.get("format") != _FORMAT
            or not isinstance(value.get("done"), dict)
        ):
            raise RepmodeError(
                f"{self._file}: is no journal of an unfinished prediction that this version can continue; "
                "give --restart (restart=True) to start over"
            )
        return value

    def _compare(self, earlier: Any, output: Path) -> None:
        """Refuse to continue a prediction with another request; another truth changes no voxel, only figures."""
        earlier = earlier if isinstance(earlier, dict) else {}
        if earlier.get("targets") != self.request.get("targets"):
            self.state.pop("metrics", None)
        differences = [
            f"{key} was {json.dumps(earlier.get(key))}, is {json.dumps(self.request.get(key))}"
            for key in sorted({*earlier, *self.request} - {"targets"})
            if earlier.get(key) != self.request.get(key)
        ]
        if differences:
            raise RepmodeError(
                f"{output}: an unfinished prediction was begun with other settings ({'; '.join(differences)}); give "
                "those to continue it, or --restart (restart=True) to discard it and start over"
            )

    def save(self, **changes: Any) -> None:
        """Change the state by `changes` (JSON values) and write the journal, whole or not at all."""
        self.state.update(changes)
        write_json(self._file, {"format": _FORMAT, "call": self.request, "done": self.state})

    def _clear(self) -> None:
        """Remove an earlier call's files, its unfinished outputs included."""
        outputs: Any
        try:
            outputs = json.loads(self._file.read_text(encoding="utf-8"))["call"]["outputs"]
        except (OSError, ValueError, KeyError, TypeError):
            outputs = []  # there was no call, or its journal cannot be read any more
        for name in outputs if isinstance(outputs, list) else []:
            remove_path(part_path(Path(str(name)), self.folder))
        for file in self.folder.iterdir():
            if file.name != "lock":
                remove_path(file)

    def discard(self) -> None:
        """Remove the folder and all unfinished outputs."""
        self._clear()
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def has_progress(self) -> bool:
        """True if anything would be lost: a prepared image, or a block."""
        return bool(self.state.get("prepared") or self.state.get("blocks"))

    def close(self) -> None:
        """Let other processes use the folder."""
        self._held.close()

    def __exit__(self, *error: object) -> None:
        self.close()
