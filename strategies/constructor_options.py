"""Options of a user's own strategy: they reach its constructor, or are refused with the nearest name."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from repmode_cl.config import StrategyConfig
from repmode_cl.config.error_messages import describe_errors
from repmode_cl.config.strategy_schema import keys_of
from repmode_cl.errors import ConfigError, did_you_mean

__all__ = [
    "RecordedOptions",
    "check_option_values",
    "constructor_arguments",
    "constructor_keywords",
    "inherit_options",
    "refuse_unknown_keywords",
]

#: Type and bounds of options that constructors of the package's strategies take by the names of a configuration, where
#: these do not look at them themselves.
_OPTION_TYPES: dict[str, TypeAdapter[Any]] = {
    key: TypeAdapter(StrategyConfig.model_fields[key].annotation)
    for key in (
        "buffer", "buffer_bytes", "buffer_bytes_each", "region", "replay_batch", "alpha", "beta", "strength",
        "distilled", "prune",
    )
}  # fmt: skip


class RecordedOptions(dict[str, JsonValue]):
    """The ``options`` of a user's own strategy, which record the keys that the class reads.

    Parameters
    ----------
    options
        As they stand in the configuration.
    inheritable
        Options of the package's strategies that the class derives from.
    """

    def __init__(self, options: Mapping[str, JsonValue], inheritable: Collection[str] = ()) -> None:
        super().__init__(options)
        self.inheritable = frozenset(inheritable)
        self.read: set[str] = set()

    def fresh(self) -> RecordedOptions:
        """Return the same options, of which nothing is read yet."""
        return RecordedOptions(dict(dict.items(self)), self.inheritable)

    def __getitem__(self, key: str) -> JsonValue:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, which counts as read."""
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Any:
        # With its own method, ``dict(options)`` and ``**options`` ask `__getitem__` for each value.
        return super().__iter__()

    def items(self) -> Any:
        """Return all items, which count as read."""
        self.read |= super().keys()
        return super().items()

    def values(self) -> Any:
        """Return all values, which count as read."""
        self.read |= super().keys()
        return super().values()


def inherit_options(options: StrategyConfig, parents: Iterable[str]) -> StrategyConfig:
    """Return the section of a user's own strategy with the options of the package's strategies it derives from.

    What ``options`` gives for a key of a parent, such as `buffer` of ``replay``, becomes that key of the section, so
    that all class methods of the parent see it.

    Parameters
    ----------
    options
        The section as it stands in the configuration.
    parents
        Names of those strategies.

    Raises
    ------
    ConfigError
        If such an option has a value that the parent does not take.
    """
    inherited: dict[str, Any] = {}
    inheritable: set[str] = set()
    for parent in parents:
        inheritable.update(keys_of(parent))
        given = {key: options.options[key] for key in keys_of(parent) if key in options.options}
        try:
            section = StrategyConfig.model_validate({"name": parent, **given})
        except ValidationError as error:
            source = f"strategies: {options.name}: options of {parent}"
            raise ConfigError(describe_errors(error, {"name": parent, **given}, source, {}, {})) from error
        inherited |= {key: getattr(section, key) for key in given}
    if inherited:
        inherited["label"] = options.title  # a title is made of the keys of the section as it was given
    return options.model_copy(update={**inherited, "options": RecordedOptions(options.options, inheritable)})


def check_option_values(kind: type, given: Mapping[str, Any]) -> None:
    """Refuse values of options that a configuration would refuse; in Python they would do something else.

    Parameters
    ----------
    kind
        A strategy of this package; options of a user's own class may mean something else.
    given
        Keywords of its constructor.

    Raises
    ------
    ConfigError
        Naming the option, what was found, and what is allowed.
    """
    for key, allowed in _OPTION_TYPES.items():
        if key not in given:
            continue
        try:
            allowed.validate_python(given[key])
        except ValidationError as error:
            raise ConfigError(
                f"{kind.__name__}: {key}: found {given[key]!r}: {error.errors()[0]['msg'].lower()}"
            ) from error


def constructor_keywords(kind: type, base: type) -> tuple[str, ...]:
    """Return the keywords that the constructor of `kind` takes in addition to those of `base`, its own first."""
    common = _common_keywords(base)
    names: dict[str, None] = {}
    for one in kind.__mro__[: kind.__mro__.index(base)]:
        if "__init__" not in vars(one):
            continue
        parameters = list(inspect.signature(vars(one)["__init__"]).parameters.values())[1:]
        names |= {p.name: None for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break  # it passes on only what it names
    return tuple(name for name in names if name not in common)


def _common_keywords(base: Any) -> list[str]:
    return [name for name in inspect.signature(base.__init__).parameters if name != "self"]


def constructor_arguments(kind: Any, base: type, options: StrategyConfig) -> dict[str, Any]:
    """Return the constructor's additional arguments: what `own_options` says, and the other ``options``.

    Parameters
    ----------
    kind
        A subclass of `base`.
    base
        `StructureStrategy`, whose own keywords are no options.
    options
        The strategy's section; its ``options`` are `RecordedOptions`.

    Raises
    ------
    ConfigError
        If an option is neither a keyword of the constructor, nor read by `own_options` or `make_network`, nor an option
        of the strategy that the class derives from; or if the configuration sets it elsewhere.
    """
    given = options.options
    if not isinstance(given, RecordedOptions):
        raise TypeError("the options of a strategy that is made must be RecordedOptions")
    arguments: dict[str, Any] = dict(kind.own_options(options))
    keywords = constructor_keywords(kind, base)
    values = dict(dict.items(given))
    # What own_options returns goes to the constructor; what it read and does not return, it has used.
    unread = [key for key in values if key not in given.read and key not in arguments]
    arguments |= {key: values[key] for key in unread if key in keywords}
    unknown = [key for key in unread if key not in arguments and key not in given.inheritable]
    unknown += [key for key in values if key in arguments and key not in keywords]
    if unknown:
        where = f"strategies: {options.name} with options {values}"
        if unknown[0] in _common_keywords(base):
            raise ConfigError(f"{where}: {unknown[0]} is no option: the configuration's other keys decide it")
        known = sorted({*keywords, *given.inheritable} - {"network", "spec"})
        raise ConfigError(
            f"{where}: unexpected keyword argument: {unknown[0]}{did_you_mean(unknown[0], known)}: its options are "
            f"{', '.join(known) or 'none'}; an option is a keyword that the class, or one that it derives from, names "
            "in its constructor"
        )
    return arguments


def refuse_unknown_keywords(kind: type, base: type, keywords: Iterable[str]) -> None:
    """Refuse keywords that no constructor of `kind` names.

    Raises
    ------
    TypeError
        Naming the first of them, and the nearest one that there is.
    """
    known = [*constructor_keywords(kind, base), *_common_keywords(base)]
    for keyword in keywords:
        if keyword not in known:
            raise TypeError(
                f"{kind.__name__}() got an unexpected keyword argument: {keyword}{did_you_mean(keyword, known)}; it "
                f"takes {', '.join(known)}"
            )
