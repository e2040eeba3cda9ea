"""Streams that a configuration describes: the order in which structures arrive, by stream name."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from repmode_cl.config import StreamConfig
from repmode_cl.errors import ConfigError, UnknownStructureError
from repmode_cl.scenarios.difficulty import read_difficulty

__all__ = ["StreamVariant", "base_structures", "experience_names", "stream_variants", "task_labels"]


@dataclass(frozen=True)
class StreamVariant:
    """One stream of a configuration.

    Attributes
    ----------
    experiences
        Structures of each experience, in the order in which they arrive. A structure after the first experience may
        come again.
    images
        Most training images that a structure after the first experience comes with, each time; ``None`` takes all.
    """

    experiences: tuple[tuple[str, ...], ...]
    images: int | None = None


def stream_variants(config: StreamConfig, known: Sequence[str]) -> dict[str, StreamVariant]:
    """Return the streams that `config` describes: one for each combination of its lists of variants.

    Parameters
    ----------
    config
        Base, order and images.
    known
        Structures with images, in the manifest's order.

    Returns
    -------
    dict
        Name of the stream -> its variant. A name states what the lists vary: ``order-3`` (a seed of `order_seeds`),
        ``given``, ``easiest-first``, ``hardest-first`` (`arrange`), ``images-2`` and ``images-all`` (`images`),
        joined by ``-``. Without any list there is one stream, of the name ``""``.

    Raises
    ------
    UnknownStructureError
        If there are no images of a structure.
    ConfigError
        If there is nothing to learn, a structure of the base comes again, `base` is more than the order has, or a
        file cannot be used.
    """
    variants: dict[str, StreamVariant] = {}
    limits: Sequence[int | None] = config.images if isinstance(config.images, tuple) else (config.images,)
    order = _order(config, known)
    for arrangement, arranged in _arrangements(config, order):
        experiences = _experiences(config, arranged, known)
        for limit in limits:
            parts = [arrangement] if arrangement else []
            if isinstance(config.images, tuple):
                parts.append(f"images-{'all' if limit is None else limit}")
            variants["-".join(parts)] = StreamVariant(experiences, limit)
    return variants


def experience_names(config: StreamConfig, known: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the structures of each experience of the one order that `config` describes; see `stream_variants`.

    Raises
    ------
    ConfigError
        If it describes several orders, or none that can be learned.
    UnknownStructureError
        If there are no images of a structure.
    """
    orders = {variant.experiences: name for name, variant in stream_variants(config, known).items()}
    if len(orders) > 1:
        raise ConfigError(
            f"stream describes {len(orders)} orders ({', '.join(orders.values())}), and one is needed here: give "
            "order_seed in place of order_seeds, and one word for arrange"
        )
    return next(iter(orders))


def base_structures(config: StreamConfig, known: Sequence[str]) -> tuple[str, ...]:
    """Return the structures that are learned jointly first; empty where there is no joint base.

    Raises
    ------
    ConfigError
        If `base` is a number and the orders do not begin with the same structures.
    UnknownStructureError
        If there are no images of a structure.
    """
    if isinstance(config.base, tuple):
        _refuse_unknown(config.base, known)
        return config.base
    bases = {variant.experiences[0]: name for name, variant in stream_variants(config, known).items()}
    if len(bases) > 1:
        raise ConfigError(
            f"stream.base is {config.base}, and the first {config.base} structures differ between the orders "
            f"({', '.join(bases.values())}): name the structures of the base"
        )
    return next(iter(bases))


def task_labels(experiences: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return a number for each structure, in the order of first arrivals; one that comes again keeps its own."""
    names = dict.fromkeys(name for group in experiences for name in group)
    return {name: label for label, name in enumerate(names)}


def _order(config: StreamConfig, known: Sequence[str]) -> list[str]:
    """Return the structures to shuffle or sort: those after the base, and the base too where it is a number."""
    if config.order_file is not None:
        path = Path(config.order_file)
        try:
            lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"stream.order_file {path} cannot be read: {error}") from error
        order = [line for line in lines if line]
    elif config.order is not None:
        order = list(config.order)
    else:
        base = config.base if isinstance(config.base, tuple) else ()
        order = [name for name in known if name not in base]
    _refuse_unknown(order, known)
    return order


def _arrangements(config: StreamConfig, order: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a name ("" without a list of variants) and the order for each arrangement of the configuration."""
    negative_r2: Mapping[str, float] = {}
    if config.arrangements != ("given",):
        negative_r2 = {name: -r2 for name, r2 in read_difficulty(config.difficulty, order).items()}
    for arrange in config.arrangements:
        if arrange == "given" and config.order_seeds is not None:
            for seed in config.order_seeds:
                yield f"order-{seed}", _shuffled(order, seed)
            continue
        name = "" if isinstance(config.arrange, str) else arrange.replace("_", "-")
        if arrange == "given":
            yield name, list(order) if config.order_seed is None else _shuffled(order, config.order_seed)
            continue
        # In rounds: what comes again waits until all have come once.
        rounds = [list(order[:place]).count(structure) for place, structure in enumerate(order)]
        sign = 1 if arrange == "easiest_first" else -1
        places = sorted(
            range(len(order)), key=lambda place: (rounds[place], sign * negative_r2[order[place]], place)
        )
        yield name, [order[place] for place in places]


def _shuffled(order: Sequence[str], seed: int) -> list[str]:
    shuffled = list(order)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _experiences(
    config: StreamConfig, order: Sequence[str], known: Sequence[str]
) -> tuple[tuple[str, ...], ...]:
    if isinstance(config.base, int):
        if config.base > len(order):
            raise ConfigError(
                f"stream.base takes the first {config.base} structures of the order, which has {len(order)}: "
                f"{', '.join(order) or 'none'}"
            )
        base, order = list(order[: config.base]), order[config.base :]
        if len(set(base)) < len(base):
            raise ConfigError(
                f"stream.base takes the first {config.base} of the order, {', '.join(base)}, where a structure comes "
                "twice: a joint experience learns each once"
            )
        # Orders that begin with the same structures share one base, whatever their order among themselves.
        base.sort(key=list(known).index)
    else:
        _refuse_unknown(config.base, known)
        base = list(config.base)
    experiences = ([tuple(base)] if base else []) + [(name,) for name in order]
    if not experiences:
        raise ConfigError("stream: no structure to learn; name some in stream.base or stream.order")
    later = [name for group in experiences[1:] for name in group]
    if repeated := [name for name in experiences[0] if name in later]:
        raise ConfigError(
            f"stream: {', '.join(repeated)} named twice, and the first time in the first experience ("
            f"{', '.join(experiences[0])}): a structure of the base cannot come again, because retraining it would "
            "make another base; let it come after the base"
        )
    return tuple(experiences)


def _refuse_unknown(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UnknownStructureError(name, known, "the manifest")
