"""Selection of a table's streams, and of the seeds that are finished in them."""

from __future__ import annotations

from collections.abc import Collection

from repmode_cl.errors import RepmodeError
from repmode_cl.results.results_table import ResultsTable
from repmode_cl.results.run_info import RunInfo
from repmode_cl.results.trial_record import Trial

__all__ = ["are_orders", "chosen_streams", "seeds_with_results"]


def chosen_streams(info: RunInfo, streams: Collection[str] | None) -> tuple[str, ...]:
    """Return the streams that a table is about, in the order of the run.

    None takes those of the first group that may be averaged (`RunInfo.stream_groups`): all orders of a run,
    but not runs with other numbers of images.

    Raises
    ------
    RepmodeError
        If a name is none of the run's.
    """
    if streams is None:
        return next(iter(info.stream_groups().values()), ())
    unknown = [name for name in streams if name not in info.streams]
    if unknown:
        raise RepmodeError(
            f"the run has no stream {unknown[0]!r}: it has {', '.join(map(repr, info.streams))}"
        )
    return tuple(name for name in info.streams if name in streams)


def seeds_with_results(
    results: ResultsTable, info: RunInfo, title: str, streams: Collection[str] | None = None
) -> tuple[int, ...]:
    """Return the seeds with which the strategy ran all the streams to their end, in the order of the run."""
    chosen = chosen_streams(info, streams)
    seeds_of = [set(results.seeds(title, stream)) for stream in chosen]
    return tuple(
        seed
        for seed in info.seeds
        if chosen
        and all(
            seed in seeds and Trial(title, stream, seed) in info.finished
            for stream, seeds in zip(chosen, seeds_of, strict=True)
        )
    )


def are_orders(info: RunInfo, streams: Collection[str]) -> bool:
    """Return whether the streams are several orders of one experiment (`RunInfo.stream_groups`), over which it varies.

    Others, such as of several numbers of images, are averaged within each seed only: they are no draws of one thing.
    """
    return len(streams) > 1 and any(set(streams) <= set(group) for group in info.stream_groups().values())
