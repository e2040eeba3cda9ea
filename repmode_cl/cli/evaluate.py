"""``repmode-cl evaluate``: figures of a model's structures on new images with ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repmode_cl.cli.options import (
    DeviceOption,
    ForceOption,
    ModelArgument,
    WorkersOption,
    continue_with,
    report_start,
)

if TYPE_CHECKING:
    from repmode_cl.results.evaluation import ModelEvaluation

__all__ = ["evaluate"]


def evaluate(
    ctx: typer.Context,
    model: ModelArgument,
    data: Annotated[Path, typer.Option(metavar="MANIFEST", help="A CSV of image pairs, with the truth.")],
    structure: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Evaluate it; may be given often. All that both have, by default."),
    ] = None,
    measures: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...",
            help="psnr, ssim, microssim, spectral_pcc, fsc, segmentation; all that are installed, by default. MSE, "
            "MAE, R2 and Pearson always come with them.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Images of cell labels, each named as its transmitted light; or the manifest's column labels.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="z-score above which a voxel is foreground, in truth and prediction; Otsu's of each, by default.",
            show_default=False,
        ),
    ] = None,
    min_size: Annotated[int, typer.Option(min=1, help="Voxels of the smallest object that is counted.")] = 27,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also the coverage and the width of predict's intervals; takes as many times as long as with predict.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where to write; runs/evaluate-MODEL by default.", show_default=False
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again in a folder that holds an evaluation.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print means, verdicts and correlations as JSON.")
    ] = False,
    device: DeviceOption = "auto",
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep prepared images here; else they are removed at the end."),
    ] = None,
    workers: WorkersOption = None,
    force: ForceOption = False,
) -> None:
    """Measure how well a model predicts new images whose truth is known.

    Writes a page and tables. Images that a structure has learned from are left out, with a note. The model is not
    changed. Interrupted, the same command continues.

    For example:

      repmode-cl evaluate model --data new.csv

      repmode-cl evaluate model --data new.csv --structure dna --measures psnr,ssim,segmentation --labels cells
    """
    continue_with(ctx, without=("--restart",))
    report_start(ctx, model)
    from repmode_cl.utils.process_pool import workers_here
    from repmode_cl.workflows.evaluate_model import evaluate_model
    from repmode_cl.workflows.options import EvaluationOptions

    evaluation = evaluate_model(
        model,
        data,
        EvaluationOptions(
            structures=tuple(dict.fromkeys(structure or ())),
            measures=None
            if measures is None
            else [name.strip() for name in measures.split(",") if name.strip()],
            labels=labels,
            threshold=threshold,
            min_size=min_size,
            out=out,
            restart=restart,
            device=device,
            cache=cache,
            workers=workers or workers_here(),
            force=force,
            confidence=confidence,
        ),
    )
    for note in evaluation.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(evaluation.summary(), indent=2, sort_keys=True))
        return
    _print_evaluation(evaluation)


def _print_evaluation(evaluation: ModelEvaluation) -> None:
    """Print the verdict and the means of each structure, and the paths of what was written."""
    for one in evaluation.structures:
        typer.echo(f"{one.structure}: {one.verdict.text}")
        typer.echo(f"  {', '.join(f'{name} {value:.3f}' for name, value in one.means.items())}")
        if one.cells:
            found = ", ".join(f"{name} {value:.3f}" for name, value in one.correlations.items())
            typer.echo(f"  correlation over {one.cells} cells: {found or 'not defined'}")
    typer.echo(f"report: {evaluation.report}")
    typer.echo(f"tables: {evaluation.table}, and everything in {evaluation.folder / 'evaluation.json'}")
