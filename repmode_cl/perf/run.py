"""All sections in their order, within the time allowed; what is measured is written down section by section."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from repmode_cl.errors import RepmodeError
from repmode_cl.perf.device_check import check_device
from repmode_cl.perf.duration import expected_seconds
from repmode_cl.perf.inference import measure_inference, measure_volume, predict_kernel3
from repmode_cl.perf.loader import measure_loading
from repmode_cl.perf.machine import machine
from repmode_cl.perf.memory import measure_memory
from repmode_cl.perf.profiler import measure_profile
from repmode_cl.perf.scaling import measure_scaling
from repmode_cl.perf.settings import SECTIONS, PerfSettings
from repmode_cl.perf.startup import measure_startup
from repmode_cl.perf.timing_rounds import out_of_memory
from repmode_cl.perf.training import measure_training, time_steps
from repmode_cl.perf.workloads import Networks, kernel3_variants
from repmode_cl.training.precision import Precision, resolve_precision
from repmode_cl.utils.atomic_files import write_json
from repmode_cl.utils.devices import resolve_device
from repmode_cl.utils.environment import with_threads
from repmode_cl.utils.progress import duration_text

__all__ = ["run_perf"]


FORMAT, VERSION = "repmode-cl perf", 1

#: Parts of the time allowed: a section gets its part of what is left, shared with those that follow.
_PARTS = {
    "check": 0.5,
    "training": 5.0,
    "inference": 2.0,
    "kernel3": 2.0,
    "memory": 2.0,
    "loading": 1.0,
    "scaling": 2.0,
    "startup": 1.0,
    "profile": 1.0,
}


def run_perf(
    settings: PerfSettings,
    *,
    out: str | Path | None = None,
    commands: Sequence[Sequence[str]] = (),
    tell: Callable[[str], None] = lambda text: None,
    show: Callable[[str, Any], None] = lambda section, found: None,
) -> dict[str, Any]:
    """Measure the sections of `settings` one after the other.

    Parameters
    ----------
    settings
        What is measured.
    out
        JSON file that is written after each section, whole or not at all; None writes none.
    commands
        The words of each command whose start-up is measured.
    tell
        Called with sentences for a reader, such as how long it will take.
    show
        Called with each section's name and what was found, when it is done.

    Returns
    -------
    dict
        What `out` holds: ``format``, ``version``, ``created``, ``machine``, ``settings``, ``precisions``, ``sections``,
        ``notes``, ``seconds`` and whether it is ``complete``.

    Raises
    ------
    RepmodeError
        If the device does not compute what the CPU computes, or cannot hold even the inputs.
    """
    device = resolve_device(settings.device)
    settings = replace(settings, device=str(device))
    if device.type == "cuda" and "check" not in settings.sections:
        settings = replace(settings, sections=("check", *settings.sections))
    with with_threads(settings.threads or torch.get_num_threads()):
        return _Measurement(settings, device, out, commands, tell, show).all()


class _Measurement:
    """One measurement under way."""

    def __init__(
        self,
        settings: PerfSettings,
        device: torch.device,
        out: str | Path | None,
        commands: Sequence[Sequence[str]],
        tell: Callable[[str], None],
        show: Callable[[str, Any], None],
    ) -> None:
        self.settings, self.device, self.out = settings, device, out
        self.commands, self.tell, self.show = commands, tell, show
        resolved = [resolve_precision(name, device) for name in settings.precisions]
        self.precisions: list[Precision] = list(dict.fromkeys(resolved))
        self.began = time.perf_counter()
        self.source = Networks(settings, torch.device("cpu"))
        self.networks: Networks | None = None
        self.notes: list[str] = []
        self.found: dict[str, Any] = {}

    def all(self) -> dict[str, Any]:
        """Measure the sections in their order."""
        chosen = [name for name in SECTIONS if name in self.settings.sections]
        for place, name in enumerate(chosen):
            # After the check, because a step is computed for it.
            if place == 0 and name != "check":
                self._foretell()
            try:
                found = getattr(self, f"_{name}")(self._share(chosen[place:]))
            except (RuntimeError, MemoryError) as error:
                failure = out_of_memory(error)
                if failure is None:
                    raise
                raise RepmodeError(
                    f"{self.device}: {failure} before anything was measured for {name}; give a smaller --batch, "
                    "--patch or --width"
                ) from error
            self.found[name] = found
            self.show(name, found)
            self._write(complete=False)
            if name == "check" and len(chosen) > 1:
                self._foretell()
        return self._write(complete=True)

    def _foretell(self) -> None:
        try:
            seconds = expected_seconds(self.settings, self._on_device(), self.precisions, len(self.commands))
        except (RuntimeError, MemoryError) as error:
            failure = out_of_memory(error)
            if failure is None:
                raise
            self.tell(f"how long this takes is not known: a step of the plain network ran {failure}")
            return
        self.tell(f"this takes about {duration_text(seconds)}")

    def _share(self, names: Sequence[str]) -> float | None:
        """Return the seconds that the first of `names`, all that are left, may take."""
        if self.settings.minutes is None:
            return None
        left = 60 * self.settings.minutes - (time.perf_counter() - self.began)
        return max(0.0, left) * _PARTS[names[0]] / sum(_PARTS[name] for name in names)

    def _on_device(self) -> Networks:
        if self.networks is None:
            self.networks = Networks(self.settings, self.device, self.source)
        return self.networks

    def _release(self) -> None:
        """Forget the networks on the device: peaks are measured above what is there."""
        self.networks = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _write(self, *, complete: bool) -> dict[str, Any]:
        result = {
            "format": FORMAT,
            "version": VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(self.device),
            "settings": self.settings.to_json(),
            "precisions": [one.format for one in self.precisions],
            "sections": self.found,
            "notes": self.notes,
            "seconds": time.perf_counter() - self.began,
            "complete": complete,
        }
        if self.out is not None:
            write_json(self.out, result)
        return result

    # -- the sections -------------------------------------------------------------------------------------------

    def _check(self, seconds: float | None) -> Any:
        return check_device(self.settings, self.device, self.precisions)

    def _training(self, seconds: float | None) -> Any:
        return self._by_format(
            seconds, lambda one, part: measure_training(self.settings, self._on_device(), one, part)
        )

    def _inference(self, seconds: float | None) -> Any:
        part = None if seconds is None else seconds * 0.7
        found = self._by_format(
            part, lambda one, part: measure_inference(self.settings, self._on_device(), one, part)
        )
        rest = None if seconds is None else seconds * 0.3
        volume, notes = measure_volume(self.settings, self._on_device(), rest)
        self._note(*notes)
        return {"windows": found, "volume": volume}

    def _kernel3(self, seconds: float | None) -> Any:
        part = None if seconds is None else seconds * 0.7
        rest = None if seconds is None else seconds * 0.3
        return {
            "training": self._by_format(part, self._kernel3_steps),
            "prediction": self._by_format(
                rest, lambda one, part: predict_kernel3(self.settings, self._on_device(), one, part)
            ),
        }

    def _kernel3_steps(self, precision: Precision, seconds: float | None) -> Any:
        title = f"Training step, kernel 3, {precision.format}"
        variants = kernel3_variants(self.settings)
        return time_steps(self.settings, self._on_device(), precision, variants, title, seconds)

    def _memory(self, seconds: float | None) -> Any:
        self._release()
        if self.device.type == "cpu" and not self.settings.fresh_processes:
            self._note("peak resident memory was not measured: it takes a fresh process for each variant")
        return self._by_format(None, lambda one, _: measure_memory(self.settings, self.source, one))

    def _loading(self, seconds: float | None) -> Any:
        # The hungriest: the format in which a step is fastest.
        steps = [
            row["median"]
            for rows in (self.found.get("training") or self._one_step()).values()
            for row in rows
            if row["name"] == "ours-1" and row["median"] is not None
        ]
        if not steps:
            self._note("loading was not measured: no training step of ours could be, to compare it with")
            return None
        return measure_loading(self.settings, min(steps))

    def _one_step(self) -> dict[str, Any]:
        """Time only our step, for a loading section that comes without the training section."""
        few = replace(self.settings, repeats=min(self.settings.repeats, 3))
        only = ("ours-1",)
        return self._by_format(
            None, lambda one, part: measure_training(few, self._on_device(), one, part, only=only)
        )

    def _scaling(self, seconds: float | None) -> Any:
        return measure_scaling(self.settings, self.device, seconds)

    def _startup(self, seconds: float | None) -> Any:
        return measure_startup(self.settings, self.commands, seconds)

    def _profile(self, seconds: float | None) -> Any:
        return self._by_format(seconds, lambda one, _: measure_profile(self.settings, self._on_device(), one))

    def _by_format(
        self, seconds: float | None, measure: Callable[[Precision, float | None], Any]
    ) -> dict[str, Any]:
        part = None if seconds is None else seconds / len(self.precisions)
        return {one.format: measure(one, part) for one in self.precisions}

    def _note(self, *notes: str) -> None:
        for note in notes:
            self.notes.append(note)
            self.tell(f"note: {note}")
