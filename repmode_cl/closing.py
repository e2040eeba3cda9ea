"""What a ``with`` block closes."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Self

__all__ = ["Closing"]


class Closing(abc.ABC):
    """Something that is closed at the end of its ``with`` block, whatever happened in it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what is held; doing so again changes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
