"""Limits on the JSON of packs, provenance and metrics: strangers write it, and strangers read it."""

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
    "find_metadata_problem",
    "find_unsafe_value",
    "is_too_deep",
    "without_control_characters",
]

#: Most characters that an entry may have as canonical JSON, and how deep lists and objects may be nested in it. An
#: honest one has a few thousand, and four.
MAX_ENTRY = 1 << 18
MAX_DEPTH = 32

# Characters for the rest of an entry: its proof, its environment, and digests of hundreds of needs.
_MAX_PROOF = 1 << 15
_INTEGERS = 1 << 63


def find_metadata_problem(provenance: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return why a structure with this provenance and these metrics cannot be stored or imported; empty if it can.

    Control characters are not checked here: `find_unsafe_value` refuses them in packs, and
    `without_control_characters` makes them visible in what is stored.
    """
    if is_too_deep([provenance, metrics]):
        return f"lists and objects are nested more than {MAX_DEPTH} deep in its provenance or its metrics"
    for name, value in metrics.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_safe_number(value):
            return f"its metrics say {short(value)} of {short(name)}: a finite number is needed"
    images = provenance.get("images", "0")
    if not isinstance(images, str) or not set(images) <= set("0123456789abcdef"):
        return f"its provenance says that the digest of its images is {short(images)}, which is no hexadecimal number"
    size = len(canonical_json([provenance, metrics]))
    if size > MAX_ENTRY - _MAX_PROOF:
        return (
            f"its provenance and its metrics have {size:,} characters, allowed are {MAX_ENTRY - _MAX_PROOF:,}"
        )
    return ""


def is_too_deep(value: Any) -> bool:
    """Return whether lists and objects are nested more than `MAX_DEPTH` deep, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for one in level for inner in _children(one)]
    return bool(level)


def find_unsafe_value(value: Any) -> str:
    """Describe a number or text in JSON values that could harm their reader; empty if there is none."""
    remaining = [value]
    while remaining:
        one = remaining.pop()
        remaining += _children(one)
        texts = list(one) if isinstance(one, dict) else [one] if isinstance(one, str) else []
        if any(unicodedata.category(character) == "Cc" for text in texts for character in text):
            return f"there are control characters in {short(texts[0] if len(texts) == 1 else texts)}"
        if isinstance(one, int | float) and not _is_safe_number(one):
            return f"the number {short(one)} is not finite, or too large"
    return ""


def without_control_characters(value: Any) -> Any:
    """Return JSON values in which control characters of texts, such as file names, are escaped."""
    if isinstance(value, dict):
        return {_escape(key): without_control_characters(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_control_characters(inner) for inner in value]
    return _escape(value) if isinstance(value, str) else value


def _escape(text: str) -> str:
    return "".join(repr(one)[1:-1] if unicodedata.category(one) == "Cc" else one for one in text)


def _children(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else []


def _is_safe_number(number: float) -> bool:
    return -_INTEGERS < number < _INTEGERS if isinstance(number, int) else math.isfinite(number)
