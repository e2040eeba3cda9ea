"""YAML as a configuration needs it: the safe loader, minus what silently changes a value.

A key written twice would keep the last value without a word; ``1e-4`` would be text and ``1:30`` the number
90, as YAML 1.1 has it. Here the first is refused and the others are what they look like. Every value's line
is kept, so that a message can point at it.

PyYAML is the parser, and not ruamel.yaml, which was tried (0.19). Its YAML 1.2 reads ``010`` as 10, ``1_000`` as 1000
and ``no`` as a text: files that are read today would be refused or mean something else. It takes 1.7 times as long,
and the checks below would stay: they walk the nodes of either parser for lines, tags, aliases and keys given twice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from repmode_cl.errors import ConfigError

__all__ = ["Document", "Path", "dotted", "read_yaml", "write_yaml"]

Path = tuple[str | int, ...]  # keys and list positions from the top of the document

# Aliases can make a small text stand for a document of any size.
_MOST_VALUES = 100_000


@dataclass(frozen=True)
class Document:
    """A parsed text: its value, and the line (from 1) of each key or list item in it."""

    value: Any
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    pass


_REPLACED = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Integers and floats as YAML 1.2's core schema reads them; no leading zeros, so that 0777 is no octal 511.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.inf|\.nan)$",
        re.IGNORECASE,
    ),
    list("-+.0123456789"),
)
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


def read_yaml(text: str, source: str) -> Document:
    """Parse one YAML document.

    Parameters
    ----------
    text
        The document.
    source
        Where it comes from, for messages.

    Raises
    ------
    ConfigError
        If the text is no YAML, writes a key twice, uses a key that is no text, a number that is not finite,
        a tag, or an alias inside of what it stands for.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[Path, int] = {}
        if node is not None:
            _check(node, (), lines, source, ())
            value = loader.construct_document(node)
        else:
            value = None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        what = error.problem or error.context
        raise ConfigError(f"{source}{where}: this is not valid YAML: {what}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        what = str(error).partition("\n")[0]
        raise ConfigError(f"{source}: this is not valid YAML: {what}") from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(value, lines)


class _Dumper(yaml.SafeDumper):
    pass


def _flow_list(dumper: _Dumper, value: list[Any]) -> yaml.Node:
    # Sizes and names read best in one line; a list of groups does not.
    flow = not any(isinstance(item, dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)


_Dumper.add_representer(list, _flow_list)


def write_yaml(value: Any) -> str:
    """Return `value`, made of JSON's types, as a YAML document in the order of its keys."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100
    )
    return text


def _check(
    node: yaml.Node, path: Path, lines: dict[Path, int], source: str, above: tuple[yaml.Node, ...]
) -> None:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(lines) > _MOST_VALUES:
        raise ConfigError(f"{source}: more than {_MOST_VALUES:,} values: this is no configuration")
    if any(node is one for one in above):
        raise ConfigError(f"{source}, line {line}: an alias stands inside of what it stands for")
    if isinstance(node, yaml.MappingNode):
        _check_mapping(node, path, lines, source, above)
    elif isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            _check(item, (*path, place), lines, source, (*above, node))
    elif node.tag == "tag:yaml.org,2002:float" and not _finite(node.value):
        at = f"{dotted(path)} is {node.value}" if path else f"found {node.value}"
        raise ConfigError(f"{source}, line {line}: {at}: a finite number is needed")
    if node.tag not in _PLAIN:
        raise ConfigError(f"{source}, line {line}: the tag {node.tag} is not supported: write a plain value")


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:  # .inf and .nan, as YAML writes them
        return False


def _check_mapping(
    node: yaml.MappingNode, path: Path, lines: dict[Path, int], source: str, above: tuple[yaml.Node, ...]
) -> None:
    first: dict[str, int] = {}
    for key, item in node.value:
        line = key.start_mark.line + 1
        if key.tag == "tag:yaml.org,2002:merge":
            raise ConfigError(f"{source}, line {line}: merge keys (<<) are not supported: write the keys out")
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            found = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise ConfigError(
                f"{source}, line {line}: the key {found} is no text: a key is a name such as 'steps'"
            )
        if key.value in first:
            raise ConfigError(
                f"{source}, line {line}: {dotted((*path, key.value))} is given twice, first in line "
                f"{first[key.value]}: remove one of them"
            )
        first[key.value] = line
        lines[(*path, key.value)] = line
        _check(item, (*path, key.value), lines, source, (*above, node))


def dotted(path: Path) -> str:
    """Write a path as the command line takes it: ``strategies.0.name``."""
    return ".".join(str(part) for part in path)
