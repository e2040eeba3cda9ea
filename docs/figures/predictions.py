"""Draw predictions.png of this folder: one model, to which structures are added one after another.

``python docs/figures/predictions.py`` (after ``pip install -e '.[docs]'``) simulates fields of cells, trains a base,
adds structures to it, predicts a test field and draws it. It takes about 25 minutes on one processor core.
Whatever is in the folder ``--work`` already is not made again, so that an interrupted call continues.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from PIL import Image

from repmode_cl import Model, add_structure
from repmode_cl.config import Config, load_config
from repmode_cl.data.phantom import simulate
from repmode_cl.data.pipeline import prepared_samples
from repmode_cl.inference.display_colours import colour_of
from repmode_cl.workflows.train_base import train_base

HERE = Path(__file__).parent
BASE = ("dna", "cell_membrane")
#: Which of the test fields is drawn.
FIELD = 0
#: In the order in which they are added.
ADDED = ("nucleolus", "nuclear_envelope", "endoplasmic_reticulum", "actin_filament")
#: What differs from the configuration `quickstart`: half the resolution, so that one core sees enough of a cell, a
#: kernel of 3, a wider network and a longer training.
SETTINGS = (
    f"stream.base=[{', '.join(BASE)}]",
    f"stream.order=[{', '.join(ADDED)}]",
    "data.preprocessing.voxel_size=[0.58, 0.58, 0.58]",
    "network.width=12",
    "network.experts=[conv3, conv1, avg3]",
    "patch.size=[16, 32, 32]",
    "training.base_steps=1000",
    "training.steps=300",
    "training.validate_every=100",
    "training.learning_rate=5.0e-3",
    "training.precision=float32",
    "training.device=cpu",
    "strategies=[{name: experts_frozen, learning_rate: 2.0e-2}]",
)


def main() -> None:
    """Make what is missing in the working folder, then draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/figure"), help="folder for images and model")
    work = parser.parse_args().work
    manifest = simulate(
        work / "cells", fields=24, shape=(32, 192, 192), structures=(*BASE, *ADDED), workers=1
    )
    folder = work / "model"
    config = load_config(
        "quickstart", [f"data.manifest={manifest}", f"data.cache={work / 'cache'}", *SETTINGS]
    )
    if not folder.exists():
        train_base(config, folder)
    for name in ADDED:
        if name not in Model.open(folder).structures:
            print(name, add_structure(folder, name, manifest, cache=work / "cache").metrics, flush=True)
    if not Model.open(folder).verify().ok:
        raise SystemExit(f"{folder} does not verify")
    draw(folder, config, work)


def draw(folder: Path, config: Config, work: Path) -> None:
    """Predict one test field of the model in `folder` and write the figure next to this script."""
    model = Model.open(folder)
    samples, _ = prepared_samples(config.data, work, structures=model.structures)
    group = sorted({sample.group for sample in samples if sample.split == "test"})[FIELD]
    tests = {sample.structure: sample for sample in samples if sample.group == group}
    names = model.structures
    plt.rcParams.update({"font.size": 9, "figure.facecolor": "white"})
    figure, axes = plt.subplots(3, len(names), figsize=(1.66 * len(names) + 0.3, 5.9))
    for column, name in enumerate(names):
        light, truth = (np.load(path).astype(np.float32) for path in (tests[name].signal, tests[name].target))
        predicted = model.predict(light, name)
        plane = int(np.argmax(truth.std(axis=(1, 2))))
        low, high = np.percentile(truth[plane], [2, 99.8])
        shades = tinted(colour_of(name))
        for axis, image, limits, colours in (
            (axes[0, column], light[plane], np.percentile(light[plane], [0.5, 99.5]), "gray"),
            (axes[1, column], truth[plane], (low, high), shades),
            (axes[2, column], predicted[plane], (low, high), shades),
        ):
            axis.imshow(image, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="bicubic")
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
        first = (
            "base" if name in model.base_structures else f"added {column - len(model.base_structures) + 1}"
        )
        axes[0, column].set_title(f"{first}\n{name.replace('_', ' ').replace('dna', 'DNA')}", fontsize=9.5)
        r2 = model.entries[name].metrics["r2"]
        axes[2, column].set_xlabel(f"R2 = {r2:.2f}", fontsize=10, fontweight="bold")
    for row, text in enumerate(("transmitted light", "truth", "prediction")):
        axes[row, 0].set_ylabel(text, fontsize=10)
    scale_bar(axes[0, 0], config.data.preprocessing.voxel_size)
    figure.subplots_adjust(left=0.035, right=0.995, top=0.915, bottom=0.05, wspace=0.03, hspace=0.03)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=110)
    # 256 colours are enough for six tints and grey, and take a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(256, kmeans=2).save(HERE / "predictions.png", optimize=True)


def tinted(colour: tuple[int, int, int]) -> LinearSegmentedColormap:
    """Return a colour map from black by `colour` to nearly white, so that faint and bright both show."""
    full = np.array(colour) / 255
    return LinearSegmentedColormap.from_list("tinted", [(0, "black"), (0.72, full), (1, 0.35 * full + 0.65)])


def scale_bar(axis: Axes, voxel_size: tuple[float, float, float] | None, length: float = 10.0) -> None:
    """Draw a bar of `length` um into the lower left of an image."""
    width = length / voxel_size[2] if voxel_size else 0
    bottom = axis.get_ylim()[0]
    axis.add_patch(Rectangle((4, bottom - 7), width, 2.4, color="white"))
    axis.text(4, bottom - 9, f"{length:g} µm", color="white", fontsize=8, va="bottom")


if __name__ == "__main__":
    main()
