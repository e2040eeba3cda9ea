"""The keys of a configuration, their types, defaults and limits.

Every model is frozen and forbids unknown keys. Sizes are in voxels and ordered z, y, x; voxel sizes are in um.
This module imports neither torch nor avalanche.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from repmode_cl.config.comparison_schema import PlannedComparison, check_planned
from repmode_cl.config.extension_schema import LoggerConfig, PluginConfig
from repmode_cl.config.field_types import FrozenModel, GrownModel, Positive, Seed
from repmode_cl.config.network_schema import NetworkConfig
from repmode_cl.config.search_schema import SearchConfig, check_search
from repmode_cl.config.strategy_schema import StrategyConfig
from repmode_cl.config.stream_schema import StreamConfig
from repmode_cl.structures import TWELVE_STRUCTURES

__all__ = [
    "Config",
    "DataConfig",
    "InferenceConfig",
    "NetworkConfig",
    "PatchConfig",
    "PreprocessingConfig",
    "SimulateConfig",
    "TrainingConfig",
]


Size = tuple[Positive, Positive, Positive]
VoxelSize = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

Percent = Annotated[float, Field(ge=0, le=100)]
IntensityScale = tuple[
    Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(gt=0, allow_inf_nan=False)]
]

#: Clips two voxels of a thousand: hot pixels and dead ones, and little of a sparse structure.
PERCENTILES = (0.1, 99.9)


class SimulateConfig(FrozenModel):
    """Simulated cell colonies, used where no manifest is named."""

    fields: Positive = 16
    """Number of fields of view; each carries every structure of the stream."""
    shape: Size = (32, 128, 128)
    """Voxels (z, y, x) of a field, at 0.29 um."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the fields: the same seed gives the same images."""


class PreprocessingConfig(GrownModel):
    """Preparation of images for training (paper, section 4.1)."""

    later_keys: ClassVar[tuple[str, ...]] = ("storage", "light", "targets")

    voxel_size: VoxelSize | None = (0.29, 0.29, 0.29)
    """Voxel size in um (z, y, x) that images with a known one are resampled to; null keeps their own."""
    axes: Literal["all", "xy"] = "all"
    """Axes that are resampled: all, or only y and x (xy, the paper's), so that planes stay what they are."""
    order: Annotated[int, Field(ge=0, le=3)] = 1
    """Order of the spline used to resample: 1 is linear, 3 cubic (the paper's)."""
    anti_alias: bool = False
    """Blur axes that lose voxels by a Gaussian first, so that detail finer than the new voxels leaves no pattern."""
    normalise: Literal["z_score", "percentiles", "before_resampling", "data_set"] = "z_score"
    """z_score: mean 0 and deviation 1 over all voxels; percentiles: of the voxels clipped to them; before_resampling:
    over the voxels of the file, which are then resampled with the outermost ones kept in place (the paper's code);
    data_set: over the voxels of all training images together, so that a brighter image stays brighter."""
    percentiles: tuple[Percent, Percent] = PERCENTILES
    """Lower and upper percentile that voxels are clipped to where mean and deviation are taken by percentiles."""
    empty: Literal["refuse", "zeros", "keep"] = "refuse"
    """Images that are constant, such as empty ones: refuse them, or make them all 0; with data_set refuse or keep."""
    storage: Literal["auto", "float32"] = "auto"
    """Number format of prepared images: float16 where that is precise enough, or always float32 (the paper's code)."""
    light: IntensityScale | None = None
    """[mean, deviation] of the transmitted light by data_set, in its own units; null measures the training images."""
    targets: dict[str, IntensityScale] | None = None
    """[mean, deviation] of the fluorescence of structures (by name) by data_set; others are measured."""

    @model_validator(mode="after")
    def _ordered(self) -> PreprocessingConfig:
        low, high = self.percentiles
        if low >= high:
            raise ValueError(
                f"percentiles are [lower, upper], such as {list(PERCENTILES)}; got [{low:g}, {high:g}]"
            )
        if self.normalise != "percentiles" and self.percentiles != PERCENTILES:
            raise ValueError(
                f"percentiles are given, but normalise is {self.normalise}, which does without: make it percentiles"
            )
        if self.normalise == "before_resampling" and self.anti_alias:
            raise ValueError(
                "anti_alias goes with the z-score of the resampled image, not with before_resampling"
            )
        if self.normalise != "data_set" and (self.light is not None or self.targets is not None):
            raise ValueError(
                f"light and targets are intensities of a data set, but normalise is {self.normalise}: make it data_set"
            )
        if self.empty == ("zeros" if self.normalise == "data_set" else "keep"):
            raise ValueError(
                "empty: keep leaves constant images what they are among the others of a data set, and zeros makes them "
                f"0 where each image has its own z-score; normalise is {self.normalise}: make empty "
                f"{'keep' if self.normalise == 'data_set' else 'zeros'}, or refuse"
            )
        return self


class DataConfig(FrozenModel):
    """Source of the images."""

    manifest: str | None = None
    """Path of a manifest (CSV); null simulates cells."""
    simulate: SimulateConfig = SimulateConfig()
    cache: str | None = None
    """Folder of prepared volumes; null puts it next to the run."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split of rows that name none."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Part of what is not test that is held out for selection."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    without_test: bool = False
    """Leave out the images that test, and split the others again by the same fractions: for searches."""
    shuffle_signals: bool = False
    """Give every target the signal of another image: a control that nothing can be learned from."""


class PatchConfig(FrozenModel):
    """Training patches: one random crop per image and epoch, flipped at random on each axis.

    An image that is smaller than the patch along an axis is padded there; what was padded does not count in the loss.
    """

    size: Size = (32, 128, 128)
    flips: bool | tuple[Literal["z", "y", "x"], ...] = True
    """Flip at random on each axis (true, the paper's), on none (false), or on those listed, such as [y, x]."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of crops that are centred on a bright voxel of the target; the others lie anywhere (0, the paper's)."""


class TrainingConfig(GrownModel):
    """One experience's training; a strategy may override `steps` and `learning_rate` for itself."""

    later_keys: ClassVar[tuple[str, ...]] = ("gate", "selection", "select_by", "last_batch", "fusing")

    batch_size: Positive = 8
    """Patches of an optimiser step, over all micro-batches and processes."""
    accumulate: Positive = 1
    """Micro-batches that an optimiser step's patches are computed in; batch norm sees one at a time."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third slower."""
    epochs: Positive | None = None
    """Passes over the images of an experience; give this or `steps`."""
    steps: Positive | None = None
    """Optimiser steps for each experience that holds one structure."""
    base_steps: Positive | None = None
    """Optimiser steps for a first experience with several structures; null takes `steps` for each of them."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "one_cycle", "cosine"] = "constant"
    validate_every: Positive | None = None
    """Optimiser steps between validations; null takes ten validations an experience."""
    validate_every_epochs: Positive | None = None
    """The same in epochs, where `epochs` is used."""
    select_by: Literal["new", "known"] = "new"
    """Validation images whose mean error selects the state that an experience ends with: those of its structures, or
    of all structures so far (which takes images of earlier structures, and so is a reference)."""
    patience: Positive | None = None
    """Stop after so many validations without an improvement; null trains all steps."""
    time_limit: Annotated[float, Field(gt=0)] | None = None
    """Stop an experience after so many seconds of training, validation not counted; null sets no limit."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 where the processor multiplies matrices of it, else float32 (on GPUs float16 with scaling)."""
    device: str = "auto"
    """auto: cuda where there is one, else cpu."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient."""
    checkpoint_every: Positive | None = None
    """Optimiser steps between checkpoints, besides one at each validation; null makes no others."""
    structures_per_batch: Positive | None = None
    """Most structures that a micro-batch shows, so that fewer kernels are fused for it; null mixes freely."""
    loader_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that cut patches ahead of the training; 0 cuts them in the training process."""
    gate: Literal["rows", "shared_bias"] = "rows"
    """Parameters of a base's gates: a free row for each structure, or rows and a bias that they share (the paper's
    code); what is stored are rows in both cases."""
    selection: Literal["structures", "images"] = "structures"
    """Validation error by which a state is the best: the mean of the structures' means, or the mean over all images
    (the paper's code)."""
    last_batch: Literal["continuous", "short"] = "continuous"
    """With epochs, batches that run on into the next epoch, or a short last one in each (the paper's code)."""
    fusing: Literal["float32", "autocast"] = "float32"
    """Precision of the gates' logits: the parameters', or that of the convolutions (the paper's code)."""

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> TrainingConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size is {self.batch_size} and accumulate {self.accumulate}: a batch of {self.batch_size} "
                f"patches cannot be cut into {self.accumulate} equal micro-batches; make batch_size a multiple "
                "of accumulate"
            )
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> TrainingConfig:
        if self.epochs is not None and (self.steps is not None or self.base_steps is not None):
            raise ValueError("give either epochs or steps, not both")
        if self.epochs is None and self.steps is None:
            raise ValueError("give steps or epochs")
        if self.validate_every is not None and self.validate_every_epochs is not None:
            raise ValueError("give either validate_every or validate_every_epochs, not both")
        if self.validate_every_epochs is not None and self.epochs is None:
            raise ValueError("validate_every_epochs goes with epochs; with steps give validate_every")
        if self.last_batch == "short" and self.epochs is None:
            raise ValueError("last_batch: short goes with epochs; steps have no last batch")
        if self.last_batch == "short" and self.structures_per_batch is not None:
            raise ValueError(
                "last_batch: short and structures_per_batch exclude each other: the latter arranges whole batches"
            )
        return self


class InferenceConfig(GrownModel):
    """Gaussian sliding window (paper, section 4.1)."""

    later_keys: ClassVar[tuple[str, ...]] = ("weights",)

    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_size: Positive = 4
    """Windows computed at once."""
    window: Size | None = None
    """Voxels (z, y, x) of a window; null takes the patch's. Larger ones compute fewer voxels twice, but a network
    that was trained on small patches knows their zero padded borders, and may go astray where there are none."""
    weights: Literal["floored", "authors"] = "floored"
    """Gaussian weights of a window's voxels: from its middle down to 0.001, or as the paper's code has them, about
    voxel n // 2 of n and without a least one."""


class EvaluationConfig(FrozenModel):
    """What is measured of each test image besides the voxel metrics."""

    measures: tuple[Literal["psnr", "ssim", "microssim", "spectral_pcc", "fsc", "segmentation"], ...] = ()
    """Measures as of `repmode-cl evaluate`, on the test images after each step; ``results.csv`` holds their means."""


class Config(GrownModel):
    """A whole configuration file."""

    later_keys = ("comparisons", "evaluation")

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run: its folder below `output`."""
    seeds: tuple[Seed, ...] = (0,)
    """Each strategy runs once with each seed: initial weights, crops and order of images."""
    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig(base=TWELVE_STRUCTURES)
    network: NetworkConfig = NetworkConfig()
    patch: PatchConfig = PatchConfig()
    training: TrainingConfig
    strategies: tuple[StrategyConfig, ...] = (StrategyConfig(name="experts_frozen"),)
    inference: InferenceConfig = InferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    plugins: tuple[PluginConfig, ...] = ()
    """Plugins of Avalanche in every trial. Their state is in no checkpoint: an interrupted trial starts again."""
    loggers: tuple[LoggerConfig, ...] = ()
    """Loggers of Avalanche in every trial, which writes them below its folder. They too make it start again."""
    output: str = "runs"
    """Folder that runs are written below."""
    search: SearchConfig | None = None
    """Search for values of the strategies' keys, in place of a run with those that they have."""
    comparisons: tuple[PlannedComparison, ...] = ()
    """What the run is to show, written down before its results are seen; run.json holds the list and its digest."""

    @property
    def window(self) -> tuple[int, int, int]:
        """Voxels (z, y, x) of the windows that volumes are predicted in."""
        return self.inference.window or self.patch.size

    @model_validator(mode="after")
    def _whole(self) -> Config:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: at least one is needed, and none twice")
        titles = [strategy.title for strategy in self.strategies]
        if not titles:
            raise ValueError("strategies: at least one is needed")
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"strategies: {', '.join(twice)} is named twice; give each its own label")
        folders = [strategy.folder_key for strategy in self.strategies]
        alike = [title for title, key in zip(titles, folders, strict=True) if folders.count(key) > 1]
        if alike:
            raise ValueError(
                f"strategies: {' and '.join(alike)} would share a folder where file systems ignore case; give each its "
                "own label"
            )
        check_planned(self.comparisons, titles)
        return self

    def of_strategy(self, strategy: StrategyConfig) -> Config:
        """Return the configuration as `strategy` has it: with its own keys of the network."""
        if strategy.network is None:
            return self
        return self.model_copy(update={"network": strategy.network.applied_to(self.network)})

    @model_validator(mode="after")
    def _networks_fit(self) -> Config:
        for strategy in self.strategies:
            try:
                self.of_strategy(strategy)
            except ValueError as error:
                raise ValueError(f"strategies: {strategy.title}: network: {error}") from error
        return self

    @model_validator(mode="after")
    def _settings_fit(self) -> Config:
        for strategy in self.strategies:
            network = self.of_strategy(strategy).network
            strategy.fit_setting(width=network.width, depth=network.depth)
        return self

    @model_validator(mode="after")
    def _training_fits(self) -> Config:
        networks = {one.title: self.of_strategy(one).network for one in self.strategies}
        if self.training.gate == "shared_bias":
            for title, network in networks.items():
                if (network.gate, network.embedding) != ("linear", "onehot"):
                    raise ValueError(
                        "training.gate: shared_bias is the bias of a linear layer of a one-hot, and the network of "
                        f"{title} has other gates: leave out one of the two"
                    )
        own = [one.title for one in self.strategies if one.steps is not None]
        if self.training.last_batch == "short" and own:
            raise ValueError(f"training.last_batch: short counts epochs, and {own[0]} has its own steps")
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Config:
        if self.search is not None:
            check_search(self.search, self.strategies, self.seeds)
        return self
