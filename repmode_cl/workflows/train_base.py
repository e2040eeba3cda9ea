"""Train a model of base structures jointly, with the loop, streams and checkpoints of a benchmark."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from repmode_cl.config import Config, StrategyConfig
from repmode_cl.data.pipeline import HeldOutCheck, check_base, prepared_samples
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ConfigError, ModelError
from repmode_cl.model import Model
from repmode_cl.results.learning_curves import CURVE, write_curve
from repmode_cl.scenarios import base_structures
from repmode_cl.store.staging import REQUEST
from repmode_cl.store.transaction import is_free
from repmode_cl.strategies.plugins.model_export import (
    create_model,
    inference_settings,
    provenance_of,
    training_facts,
)
from repmode_cl.strategies.registry import build_strategy
from repmode_cl.structures import check_new_structure_name
from repmode_cl.training import has_checkpoint, process_group, resolve_precision
from repmode_cl.training.size_check import check_patches, check_window
from repmode_cl.utils.locks import exclusive
from repmode_cl.utils.memory import memory_errors
from repmode_cl.verdict import EVIDENCE
from repmode_cl.workflows.pending_training import CHECKPOINT, IMAGES, record_images
from repmode_cl.workflows.reliability import measure_reliability
from repmode_cl.workflows.train_one_experience import (
    evaluate_held_out,
    make_stream,
    record_request,
    resume_config_text,
    train_experience,
    verdict_evidence,
)

__all__ = ["train_base", "training_folder"]

#: What a finished training no longer needs: checkpoints, and images that can be prepared or simulated again.
_NEEDLESS = (CHECKPOINT, "cache", "simulated")


def train_base(config: Config, out: str | Path, *, workers: int = 1) -> Model:
    """Train the structures of ``stream.base`` jointly and write a model directory.

    Parameters
    ----------
    config
        Data and training. Of its `strategies` only the first `experts_frozen` is used, for the rate of later
        additions; the part of the stream after the base is not used.
    out
        The model's folder. During the training, ``<out>.training`` next to it holds prepared images, curves and
        checkpoints; the same call resumes from there after an interruption. Of a finished and verified model it keeps
        only the curves.
    workers
        Processes that simulate and prepare images.

    Returns
    -------
    Model
        With test figures for each structure.

    Raises
    ------
    ConfigError
        If the base is empty, another process trains this model, an interrupted training had another configuration or
        other images, the batch cannot be divided among the processes, or the network cannot compute patches or windows
        of the sizes that are set.
    ModelError
        If `out` exists and is not an empty folder.
    StructureError
        If a structure has a name that no new one may have.

    Notes
    -----
    Where ``torchrun`` started several processes, each computes its share of every batch, and the result is, to
    rounding, that of one process. The first prepares the images, validates and writes; all must see the same disk.
    """
    out = Path(out)
    if not is_free(out):
        raise ModelError(f"{out} exists already: give a new folder, or grow a model with `repmode-cl add`")
    options = next(
        (s for s in config.strategies if s.name == "experts_frozen"), StrategyConfig(name="experts_frozen")
    )
    network = config.of_strategy(options).network
    if network.gate == "input":
        raise ConfigError(
            "network.gate is input, and such a network has no fused kernel: it cannot be stored as a model; train and "
            "evaluate it in a benchmark (`repmode-cl bench`, strategy joint), or set network.gate linear or two_layer"
        )
    check_patches(config, network.depth)
    check_window(config, network.depth)
    experiences = (base_structures(config.stream, check_base(config)),)
    for name in experiences[0]:
        check_new_structure_name(name)
    seed = config.seeds[0]
    work = training_folder(out)
    with process_group(config.training.device) as (ranks, device), ExitStack() as held:
        ranks.check_shares(config.training.batch_size, config.training.accumulate)

        def prepare() -> tuple[list[Sample], list[str], str]:
            busy = f"{out} is being trained by {{holder}}, in {work}: wait until that ends, or give another --out"
            held.enter_context(
                exclusive(work / ".lock", busy, error=ConfigError, holder=work / ".lock.holder")
            )
            if not is_free(out):  # that process may have finished meanwhile
                raise ModelError(f"{out} was made by another process meanwhile")
            record_request(work / REQUEST, {"config": resume_config_text(config)}, "training")
            samples, notes = prepared_samples(
                config.data,
                work,
                structures=experiences[0],
                held_out=HeldOutCheck(config.patch.size),
                workers=workers,
            )
            started = has_checkpoint(work / CHECKPOINT)
            record_images(work / IMAGES, samples, "training", f"remove {work}", started=started)
            return samples, notes, resolve_precision(config.training.precision, device).format

        samples, notes, precision = ranks.from_first(prepare)
        with memory_errors(f"a network of network.width {network.width} and network.depth {network.depth}"):
            strategy = build_strategy(
                config,
                options,
                make_stream(config, samples, experiences, depth=network.depth, processes=ranks.world),
                seed,
                device=device,
                precision=resolve_precision(precision, device),
                ranks=ranks,
            )
        train_experience(strategy, work, f"base: {' + '.join(experiences[0])}")

        facts = training_facts(strategy) | {
            "selected_step": strategy.selection.step,
            "stopped": strategy.stop_reason,
            "seconds": round(strategy.progress.seconds, 3),
        }

        def write() -> None:
            metrics, split = evaluate_held_out(strategy, strategy.stream)
            evidence = verdict_evidence(strategy, samples, split)
            provenance = provenance_of(config, options, seed, samples, strategy.precision)
            provenance |= facts | {"held_out": split, EVIDENCE: evidence, "notes": notes}
            reliability = {
                name: measure_reliability(
                    strategy.network, name, samples, split, inference_settings(config), config.patch.flips
                )
                for name in experiences[0]
            }
            model = create_model(out, strategy.network, config, provenance, metrics, reliability)
            write_curve(work / CURVE, strategy.progress.curve)
            if model.verify().ok:
                _clear(work)

        ranks.from_first(write)
    return Model.open(out)


def training_folder(out: str | Path) -> Path:
    """Return the folder of a model's training, next to the model."""
    out = Path(out)
    if out.name in ("", ".."):  # such as the current folder, whose name is another
        out = out.resolve()
    return out.with_name(f"{out.name}.training")


def _clear(work: Path) -> None:
    for name in _NEEDLESS:
        shutil.rmtree(work / name, ignore_errors=True)  # on Windows another program may have a file open
    for name in (REQUEST, IMAGES):
        (work / name).unlink(missing_ok=True)
