"""Messages of pydantic's errors about a configuration, in the words of a person who edits the file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from repmode_cl.config.schema import Config
from repmode_cl.config.strict_yaml import Path, dotted

__all__ = ["all_keys", "describe_errors"]


def all_keys(model: type[BaseModel] = Config, prefix: Path = ()) -> Iterator[Path]:
    """Yield the path of every key of the schema, groups included; ``*`` stands for any item of a list."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        for inner, in_list in _models(field.annotation):
            yield from all_keys(inner, (*prefix, name, "*") if in_list else (*prefix, name))


def _models(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        yield from _models(argument, in_list or getattr(annotation, "__origin__", None) is tuple)


def describe_errors(
    error: ValidationError,
    data: Any,
    source: str,
    lines: Mapping[Path, int],
    overridden: Mapping[Path, str],
) -> str:
    """Return one line for each problem: its place, what was found, and what is allowed.

    Parameters
    ----------
    error
        Error of pydantic for `data`.
    data
        The document with its overrides.
    source
        Name of the file.
    lines
        Line of each key in the file.
    overridden
        Key -> the override that set it.
    """
    messages: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        path = _in_document(problem, data)
        # A value that no member of a union accepts is reported by each of them: the first is enough.
        messages.setdefault(_location(path, source, lines, overridden), _message(problem, path))
    sentences = [f"{place}: {sentence}" for place, sentence in messages.items()]
    if len(sentences) == 1:
        return sentences[0]
    return "\n  ".join([f"{source}: {len(sentences)} problems", *sentences])


def _in_document(problem: ErrorDetails, data: Any) -> Path:
    """Drop the parts of a location that name a member of a union and do not occur in the document."""
    path: list[str | int] = []
    for part in problem["loc"]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            if problem["type"] != "missing" or part != problem["loc"][-1]:
                continue
        path.append(part)
    return tuple(path)


def _location(path: Path, source: str, lines: Mapping[Path, int], overridden: Mapping[Path, str]) -> str:
    key = dotted(path)
    # The latest override of this key or of a group it lies in is what put the value there.
    for set_path in (path[:depth] for depth in range(len(path), 0, -1)):
        if set_path in overridden:
            return f"override {overridden[set_path]!r}: {key}"
    line = next((lines[path[:depth]] for depth in range(len(path), 0, -1) if path[:depth] in lines), None)
    at = f"{source}, line {line}" if line is not None else source
    # Where keys contradict one another, the override of one of them may be wrong.
    below = [repr(text) for set_path, text in overridden.items() if set_path[: len(path)] == path]
    with_overrides = f" (with override {', '.join(below)})" if below else ""
    return f"{at}: {key}{with_overrides}" if key else f"{at}{with_overrides}"


def _message(problem: ErrorDetails, path: Path) -> str:
    value_text = _shorten(problem["input"])
    context: Mapping[str, Any] = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key{_suggest(path)}"
        case "missing":
            if isinstance(path[-1], int):
                return f"found {value_text}: more values are needed"
            return "is missing: it has no default"
        case "literal_error":
            return f"found {value_text}: choose {context['expected']}"
        case "value_error":
            # The schema's own validators: their text states what was found.
            return str(context["error"])
        case "string_pattern_mismatch":
            return (
                f"found {value_text}: letters, digits, '.', '_' and '-' are allowed, a letter or digit first"
            )
        case "greater_than_equal":
            return f"found {value_text}: at least {context['ge']} is needed"
        case "greater_than":
            return f"found {value_text}: more than {context['gt']} is needed"
        case "less_than_equal":
            return f"found {value_text}: at most {context['le']} is allowed"
        case "less_than":
            return f"found {value_text}: less than {context['lt']} is needed"
        case "too_long" | "too_short":
            length = context.get("max_length", context.get("min_length"))
            return f"found {value_text}: {length} values are needed"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"found {value_text}: a group of keys is needed"
        case kind if kind in _NEEDED:
            return f"found {value_text}: {_NEEDED[kind]} is needed"
        case _:
            return f"found {value_text}: {problem['msg']}"


_NEEDED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [a, b],",
    "list_type": "a list, such as [a, b],",
}


def _shorten(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(path: Path) -> str:
    """Name the nearest key of the same group, else the nearest one anywhere, else list the group's keys."""
    wanted = str(path[-1])
    group = tuple("*" if isinstance(part, int) else part for part in path[:-1])
    everywhere = list(all_keys())
    siblings = [str(key[-1]) for key in everywhere if key[:-1] == group]
    nearest = difflib.get_close_matches(wanted, siblings, n=1, cutoff=0.6)
    if nearest:
        return f" (did you mean {dotted((*path[:-1], nearest[0]))!r}?)"
    last = difflib.get_close_matches(wanted, {str(key[-1]) for key in everywhere}, n=1, cutoff=0.75)
    if last:
        places = " or ".join(repr(dotted(key)) for key in everywhere if key[-1] == last[0])
        return f" (did you mean {places}?)"
    return f": {dotted(path[:-1]) or 'the top level'} has {', '.join(siblings)}"
