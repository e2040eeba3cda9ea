"""Train a model of base structures jointly, with the loop, streams and checkpoints of a benchmark."""

from __future__ import annotations

from pathlib import Path

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.pipeline import available_structures, prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ModelError
from repmode_cl.model import Model
from repmode_cl.results.learning_curves import CURVE, write_curve
from repmode_cl.scenarios import base_structures
from repmode_cl.store.staging import REQUEST
from repmode_cl.strategies.plugins.model_export import create_model, provenance_of
from repmode_cl.strategies.registry import build_strategy
from repmode_cl.training import process_group, resolve_precision
from repmode_cl.workflows.train_one_experience import (
    evaluate_held_out,
    make_stream,
    record_request,
    resume_config_text,
    train_experience,
)

__all__ = ["train_base"]


def train_base(config: Config, out: str | Path, *, workers: int = 1) -> Model:
    """Train the structures of ``stream.base`` jointly and write a model directory.

    Parameters
    ----------
    config
        Data and training. Of its `strategies` only the first `experts_frozen` is used, for the rate of later
        additions; the part of the stream after the base is not used.
    out
        The model's folder. During the training, ``<out>.training`` next to it holds prepared images, curves and
        checkpoints; the same call resumes from there after an interruption.
    workers
        Processes that simulate and prepare images.

    Returns
    -------
    Model
        With test figures for each structure.

    Raises
    ------
    ConfigError
        If the base is empty, an interrupted training had another configuration, or the batch cannot be divided
        among the processes.
    ModelError
        If `out` exists and is not an empty folder.

    Notes
    -----
    Where ``torchrun`` started several processes, each computes its share of every batch, and the result is, to
    rounding, that of one process. The first prepares the images, validates and writes; all must see the same disk.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists already: give a new folder, or grow a model with `repmode-cl add`")
    if not config.stream.base:
        raise ConfigError(
            "stream.base is empty: name the structures that the base learns jointly, such as [dna]"
        )
    experiences = (base_structures(config.stream, available_structures(config)),)
    options = next(
        (s for s in config.strategies if s.name == "experts_frozen"), StrategyConfig(name="experts_frozen")
    )
    seed = config.seeds[0]
    work = out.with_name(f"{out.name}.training")
    with process_group(config.training.device) as (ranks, device):
        ranks.check_shares(config.training.batch_size, config.training.accumulate)

        def prepare() -> tuple[list[Sample], list[str], str]:
            record_request(work / REQUEST, {"config": resume_config_text(config)}, "training")
            samples, notes = prepared_samples(config.data, work, structures=experiences[0], workers=workers)
            return samples, notes, resolve_precision(config.training.precision, device).format

        samples, notes, precision = ranks.from_first(prepare)
        strategy = build_strategy(
            config,
            options,
            make_stream(config, samples, experiences),
            seed,
            device=device,
            precision=resolve_precision(precision, device),
            ranks=ranks,
        )
        train_experience(strategy, work, f"base: {' + '.join(experiences[0])}")

        def write() -> None:
            metrics, split = evaluate_held_out(strategy, strategy.stream)
            provenance = provenance_of(config, options, seed, samples, strategy.precision)
            provenance |= {"held_out": split, "notes": notes}
            create_model(out, strategy.network, config, provenance, metrics)
            write_curve(work / CURVE, strategy.progress.curve)

        ranks.from_first(write)
    return Model.open(out)
