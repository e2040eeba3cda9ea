"""Facts that every process of a benchmark needs, in one file of the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repmode_cl.config import Config, parse_config
from repmode_cl.config.load import dump_config
from repmode_cl.data.sample import Sample
from repmode_cl.scenarios import StreamVariant
from repmode_cl.training import Precision, recall_precision
from repmode_cl.utils.atomic_files import write_text
from repmode_cl.utils.devices import resolve_device

__all__ = ["WorkerContext"]

#: Name of the file in the run's folder.
FILE = "work.json"

#: Fields of a sample that are paths.
_PATHS = ("signal", "target", "mask")


@dataclass(frozen=True)
class WorkerContext:
    """A benchmark, as its processes see it.

    Attributes
    ----------
    folder
        The run's folder.
    config
        The whole configuration.
    streams
        Streams by name.
    samples
        Prepared images of all structures.
    precision
        The precision that the setting, which may be "auto", was resolved to.
    threads
        Threads of torch; another number would sum in another order.
    """

    folder: Path
    config: Config
    streams: Mapping[str, StreamVariant]
    samples: list[Sample]
    precision: Precision
    threads: int

    def save(self) -> None:
        """Write it to the run's folder, for other processes."""
        value = {
            "config": dump_config(self.config),
            "streams": {
                name: {"experiences": variant.experiences, "images": variant.images}
                for name, variant in self.streams.items()
            },
            "precision": self.precision.format,
            "threads": self.threads,
            "samples": [_sample_values(sample) for sample in self.samples],
        }
        write_text(self.folder / FILE, json.dumps(value) + "\n")

    @classmethod
    def load(cls, folder: Path) -> WorkerContext:
        """Read what `save` wrote."""
        value = json.loads((folder / FILE).read_text(encoding="utf-8"))
        config = parse_config(value["config"], str(folder / FILE))
        device = resolve_device(config.training.device)
        return cls(
            folder=folder,
            config=config,
            streams={
                name: StreamVariant(tuple(tuple(names) for names in one["experiences"]), one["images"])
                for name, one in value["streams"].items()
            },
            samples=[_sample(values) for values in value["samples"]],
            precision=recall_precision(value["precision"], device, f"the run {folder}"),
            threads=value["threads"],
        )


def _sample_values(sample: Sample) -> dict[str, Any]:
    paths = {key: getattr(sample, key) for key in _PATHS}
    return {
        **asdict(sample),
        **{key: None if path is None else str(path.absolute()) for key, path in paths.items()},
    }


def _sample(values: Mapping[str, Any]) -> Sample:
    # JSON has no tuples, and a sample no lists: those could not be hashed.
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    fields |= {key: None if fields[key] is None else Path(fields[key]) for key in _PATHS}
    return Sample(**fields)
