"""What is said of a structure beside its tensors: packs carry it to strangers, and bring what strangers wrote."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from repmode_cl.utils.atomic_files import canonical_json

__all__ = [
    "MAX_DEPTH",
    "MAX_ENTRY",
    "problem_of_notes",
    "problem_of_values",
    "too_deep",
    "without_control_characters",
]

#: Most characters that an entry may have as canonical JSON, and how deep lists and objects may be nested in it. An
#: honest one has a few thousand, and four.
MAX_ENTRY = 1 << 18
MAX_DEPTH = 32

# What an entry needs beside origin and figures: its proof, its environment, and digests of hundreds of needs.
_REST = 1 << 15
_INTEGERS = 1 << 63


def problem_of_notes(provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Say why a structure cannot be stored, or taken from a pack, with this origin and these figures; empty if it can.

    Control characters are not looked for: `problem_of_values` refuses them in packs, and
    `without_control_characters` makes them visible in what is stored.
    """
    if too_deep([provenance, metrics]):
        return f"lists and objects are nested more than {MAX_DEPTH} deep in its provenance or its metrics"
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not _sane(value):
            return f"its metrics say {short(value)} of {short(name)}: a finite number is needed"
    images = provenance.get("images", "0")
    if not isinstance(images, str) or not set(images) <= set("0123456789abcdef"):
        return f"its provenance says that the digest of its images is {short(images)}, which is no hexadecimal number"
    size = len(canonical_json([provenance, metrics]))
    if size > MAX_ENTRY - _REST:
        return f"its provenance and its metrics have {size:,} characters, allowed are {MAX_ENTRY - _REST:,}"
    return ""


def too_deep(value: Any) -> bool:
    """Say whether lists and objects are nested more than `MAX_DEPTH` deep; never itself too deep for that."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for one in level for inner in _parts(one)]
    return bool(level)


def problem_of_values(value: Any) -> str:
    """Name a number or text in JSON values that could harm whoever reads or shows it; empty if there is none."""
    left = [value]
    while left:
        one = left.pop()
        left += _parts(one)
        texts = list(one) if isinstance(one, dict) else [one] if isinstance(one, str) else []
        if any(unicodedata.category(character) == "Cc" for text in texts for character in text):
            return f"there are control characters in {short(texts[0] if len(texts) == 1 else texts)}"
        if isinstance(one, int | float) and not _sane(one):
            return f"the number {short(one)} is not finite, or too large"
    return ""


def without_control_characters(value: Any) -> Any:
    """Return JSON values with control characters in texts, such as in the names of files, as their escapes."""
    if isinstance(value, dict):
        return {_visible(key): without_control_characters(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_control_characters(inner) for inner in value]
    return _visible(value) if isinstance(value, str) else value


def _visible(text: str) -> str:
    return "".join(repr(one)[1:-1] if unicodedata.category(one) == "Cc" else one for one in text)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []


def _sane(number: float) -> bool:
    return -_INTEGERS < number < _INTEGERS if isinstance(number, int) else math.isfinite(number)
