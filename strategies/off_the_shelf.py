"""Avalanche's own strategies in a benchmark: ``name: avalanche:Naive``, on the same streams, with the same measures.

The strategy's own loop trains, on the patches of the stream and with the mean squared error. Around it stands what all
strategies share: the steps and the learning rate of the configuration, costs, evaluation of whole volumes, and the
results. Its state (buffers, importances, optimiser) is Avalanche's and in no checkpoint.
"""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import avalanche.training.supervised
import numpy as np
import torch
from avalanche.benchmarks import CLExperience
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, GEMPlugin, SupervisedPlugin
from avalanche.training.supervised import DER, JointTraining, LwF, SynapticIntelligence
from avalanche.training.templates import SupervisedTemplate
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from repmode_cl.config import Config, StrategyConfig, TrainingConfig
from repmode_cl.data.patches.dataset import PatchDataset
from repmode_cl.errors import ConfigError, UnknownStructureError, did_you_mean
from repmode_cl.nn import MultiHeadUNet, PlainUNet
from repmode_cl.scenarios import StructureStream
from repmode_cl.strategies.base import SilentLogger, StructureStrategy
from repmode_cl.strategies.hooks import Experiences
from repmode_cl.strategies.joint import Joint
from repmode_cl.strategies.own_files import load_from_file
from repmode_cl.strategies.state import architecture_of
from repmode_cl.training import make_adam, make_schedule
from repmode_cl.training.early_stopping import out_of_time

__all__ = [
    "REFUSED",
    "AvalancheJoint",
    "AvalancheStrategy",
    "MultiTaskUNet",
    "TaskAgnosticNetwork",
    "avalanche_class",
    "avalanche_strategy",
    "solve_gem",
]

#: Strategies of Avalanche that assume classification -> where.
REFUSED: dict[type, str] = {
    LwF: "it distils by a softmax over the channels of the output, which is 1 for the one channel of a volume, so "
    "that its loss is nothing; take lwf, which distils the prediction",
    DER: "its buffer is balanced by class, and asks the data for one integer target an item; take replay",
}

#: Arguments of an Avalanche strategy that the configuration's other keys decide.
_GIVEN = (
    *(
        "model",
        "optimizer",
        "criterion",
        "train_mb_size",
        "train_epochs",
        "eval_mb_size",
        "device",
        "plugins",
    ),
    *("evaluator", "eval_every", "peval_mode"),
)

#: Networks that come with the adapter.
_MODELS = ("plain", "multi_head")


def avalanche_class(name: str) -> type[SupervisedTemplate]:
    """Return the class that ``avalanche:ClassName`` or ``avalanche:path/to/file.py:ClassName`` names.

    Raises
    ------
    ConfigError
        If there is none, it is no supervised strategy, or it assumes classification.
    """
    wanted = name.removeprefix("avalanche:")
    if ".py:" in wanted:
        kind: Any = load_from_file(wanted, SupervisedTemplate, "a supervised strategy of Avalanche")
    else:
        known = _known_classes()
        if wanted not in known:
            raise ConfigError(
                f"strategies: {name}: avalanche.training.supervised has no {wanted}{did_you_mean(wanted, known)}: it "
                f"has {', '.join(sorted(known))}"
            )
        kind = known[wanted]
    for refused, reason in REFUSED.items():
        if issubclass(kind, refused):
            raise ConfigError(f"strategies: {name}: {refused.__name__} is for classification: {reason}")
    chosen: type[SupervisedTemplate] = kind
    return chosen


def _known_classes() -> dict[str, type[SupervisedTemplate]]:
    return {
        name: value
        for name, value in vars(avalanche.training.supervised).items()
        if inspect.isclass(value)
        and issubclass(value, SupervisedTemplate)
        and value is not SupervisedTemplate
    }


def avalanche_strategy(options: StrategyConfig) -> type[AvalancheStrategy]:
    """Return the adapter for the strategy of Avalanche that a section names."""
    return AvalancheJoint if issubclass(avalanche_class(options.name), JointTraining) else AvalancheStrategy


class TaskAgnosticNetwork(nn.Module):
    """A network of Avalanche's kind, which is called with volumes alone, among those that are called with structures.

    Parameters
    ----------
    model
        Maps (N, 1, Z, Y, X) to the same shape; a `MultiTaskModule` is given task labels too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._structures: tuple[str, ...] = ()
        #: Task label of each structure; set when the stream is known.
        self.labels: Mapping[str, int] = {}

    @property
    def structures(self) -> tuple[str, ...]:
        """Structures that it was trained on."""
        return self._structures

    def add(self, names: Sequence[str]) -> None:
        """Count `names` among those that it predicts."""
        self._structures += tuple(names)

    def for_timing(self, name: str) -> TaskAgnosticNetwork:
        """Return this network, so that it can be timed with the structure `name` without a stream."""
        self.add([name])
        self.labels = {name: 0}
        if isinstance(self.model, MultiTaskUNet):
            self.model.add(0, name)
        return self

    def train_only(self, structures: Sequence[str]) -> frozenset[str]:
        """Return the names of all parameters that can be trained; the strategy of Avalanche decides what is."""
        return frozenset(name for name, p in self.named_parameters() if p.requires_grad)

    def fuse(self, structure: str) -> nn.Module:
        """Return the network that predicts `structure`: the one of all, or its task of a multi-task module."""
        if structure not in self._structures:
            raise UnknownStructureError(structure, self._structures)
        if isinstance(self.model, MultiTaskModule):
            return _OneTask(self.model, self.labels[structure])
        return self.model

    def forward(self, x: Tensor, structures: Sequence[str]) -> Tensor:
        """Map (N, 1, Z, Y, X) to the same shape."""
        if isinstance(self.model, MultiTaskModule):
            labels = torch.tensor([self.labels[name] for name in structures], device=x.device)
            return self.model(x, labels)
        output: Tensor = self.model(x)
        return output


class _OneTask(nn.Module):
    def __init__(self, model: MultiTaskModule, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, torch.full((len(x),), self.label, device=x.device))


class MultiTaskUNet(MultiTaskModule):
    """A plain U-Net with a decoder for each structure, as a multi-task module of volumes.

    Avalanche's own `forward` of a multi-task module joins the scores of classes, (N, classes), and refuses volumes.

    Parameters
    ----------
    network
        A network without structures; each experience adds those that are new.
    seed
        Seed of the weights of their heads.
    """

    def __init__(self, network: MultiHeadUNet, seed: int = 0) -> None:
        super().__init__()
        self.network, self.seed = network, seed
        self._names: dict[int, str] = {}

    def adaptation(self, experience: CLExperience) -> None:
        """Add a head for each structure of the experience that has none."""
        stream = StructureStream.of(experience)
        for name in stream.names_of(experience):
            self.add(stream.labels[name], name)
        if self.training:
            self.known_train_tasks_labels |= {stream.labels[name] for name in stream.names_of(experience)}

    def add(self, label: int, name: str) -> None:
        """Let the head of the structure `name`, a fresh one if it has none, predict the task `label`."""
        self._names[label] = name
        if name not in self.network.structures:
            self.network.add(name, seed=self.seed)
            _make_contiguous(self.network)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Map (N, 1, Z, Y, X) to the same shape, each item by the head of its task label (N,)."""
        output: Tensor = self.network(x, [self._names[int(label)] for label in task_labels])
        return output


def _make_contiguous(network: nn.Module) -> None:
    """Store weights in the order of their axes: Avalanche's A-GEM takes views of gradients, which have their layout."""
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()


class AvalancheStrategy(StructureStrategy):
    """Adapter of a strategy of Avalanche.

    Parameters
    ----------
    foreign
        Its class.
    arguments
        Its own arguments, such as ``mem_size``.

    Raises
    ------
    ConfigError
        If an argument is unknown or missing, the strategy or a setting of the configuration cannot be used so, or the
        stream has masks, which the strategy would take for targets.

    Notes
    -----
    Each experience is one pass over its patches, in the order in which Avalanche shuffles them; the optimiser is Adam,
    whose state is cleared for each experience, as it is for all strategies. The state is not selected by validation: an
    experience ends with its last step, and is validated there. Training is in float32.
    """

    checkpointed: ClassVar[bool] = False
    distributes: ClassVar[bool] = False

    def __init__(
        self,
        *,
        foreign: type[SupervisedTemplate],
        arguments: Mapping[str, Any],
        plugins: Sequence[Any] = (),
        evaluator: Any = None,
        **kwargs: Any,
    ) -> None:
        evaluator = evaluator or EvaluationPlugin(loggers=[SilentLogger()])
        super().__init__(evaluator=evaluator, **kwargs)
        _make_contiguous(self.network)
        self.selects_state = False
        self._recorder = _Recorder(self)
        config = self.training_config
        optimizer = make_adam(
            self.network.parameters(), learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self.foreign = foreign(
            model=self.network.model,
            optimizer=optimizer,
            criterion=nn.MSELoss(),
            train_mb_size=config.batch_size,
            train_epochs=1,
            device=self.device,
            evaluator=evaluator,
            plugins=[self._recorder, *plugins],
            **arguments,
        )
        self._make_loader = self.foreign.make_train_dataloader
        self.foreign.make_train_dataloader = self._make_train_dataloader
        self.clock = self.foreign.clock  # what is evaluated is logged at the step of its training
        for plugin in self.foreign.plugins:
            if isinstance(plugin, GEMPlugin):
                plugin.solve_quadprog = solve_gem.__get__(plugin)

    # -- construction -------------------------------------------------------------------------------------------

    @classmethod
    def make_network(
        cls, config: Config, options: StrategyConfig, base: Sequence[str], seed: int
    ) -> TaskAgnosticNetwork:
        """Return the network that the option ``model`` names, or that its function makes."""
        wanted = options.options.get("model", _MODELS[0])
        architecture = architecture_of(config)
        if wanted == "plain":
            return TaskAgnosticNetwork(
                PlainUNet(architecture.width, architecture.depth, options.kernel, seed=seed)
            )
        if wanted == "multi_head":
            network = MultiHeadUNet(architecture, options.kernel, (), seed=seed)
            return TaskAgnosticNetwork(MultiTaskUNet(network, seed))
        if not isinstance(wanted, str) or ".py:" not in wanted:
            raise ConfigError(
                f"strategies: {options.name}: options.model is {wanted!r}: choose {' or '.join(_MODELS)}, or a "
                "function of yours that returns a network, as path/to/file.py:function"
            )
        make = load_from_file(wanted, None, "a function that returns a network")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = make()
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"strategies: {options.name}: {wanted} returned {type(model).__name__}: a torch module is needed"
            )
        return TaskAgnosticNetwork(model)

    @classmethod
    def own_options(cls, options: StrategyConfig) -> dict[str, Any]:
        """Return class and arguments of the strategy.

        Raises
        ------
        ConfigError
            If an argument is unknown or missing.
        """
        foreign = avalanche_class(options.name)
        parameters = inspect.signature(foreign.__init__).parameters
        keywords = [
            p.name
            for p in list(parameters.values())[1:]
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in _GIVEN
        ]
        arguments = {key: options.options[key] for key in options.options if key != "model"}
        for key in arguments:
            if key in _GIVEN:
                raise ConfigError(
                    f"strategies: {options.name}: options.{key}: the configuration's other keys decide it"
                )
            if key not in keywords:
                raise ConfigError(
                    f"strategies: {options.name}: unexpected keyword argument: {key}"
                    f"{did_you_mean(key, ['model', *keywords])}: its options are {', '.join(['model', *keywords])}"
                )
        missing = [
            key
            for key in keywords
            if parameters[key].default is inspect.Parameter.empty and key not in arguments
        ]
        if missing:
            raise ConfigError(
                f"strategies: {options.name}: needs options: {{{': ..., '.join(missing)}: ...}}; Avalanche gives no "
                "default"
            )
        return {"foreign": foreign, "arguments": arguments}

    @classmethod
    def build(
        cls, config: Config, options: StrategyConfig, stream: StructureStream, seed: int, **common: Any
    ) -> Self:
        """Make the adapter with a fresh network and strategy."""
        network = cls.make_network(config, options, stream.experiences[0], seed)
        make: Callable[..., Self] = cls
        return make(model=network, stream=stream, seed=seed, **cls.own_options(options), **common)

    @classmethod
    def check(cls, config: Config, options: StrategyConfig, experiences: Experiences) -> None:
        """Refuse settings that Avalanche's loop does not have, and synaptic intelligence on a CPU."""
        super().check(config, options, experiences)
        training = config.training
        for key, neutral in (("accumulate", 1), ("patience", None), ("activation_checkpointing", False)):
            if getattr(training, key) != neutral:
                raise ConfigError(
                    f"strategies: {options.name}: training.{key} is {getattr(training, key)}, and the loop of "
                    "Avalanche has no such thing: leave it out, or leave this strategy out"
                )
        if training.select_by != "new":
            raise ConfigError(
                f"strategies: {options.name}: training.select_by is {training.select_by}, and a strategy of Avalanche "
                "ends each experience with its last step, which nothing selects: leave it out, or leave this strategy "
                "out"
            )
        arguments = cls.own_options(options)
        cls.make_network(config, options, experiences[0], 0)
        device = torch.device("cuda" if training.device == "auto" and torch.cuda.is_available() else "cpu")
        if training.device != "auto":
            device = torch.device(training.device)
        if issubclass(arguments["foreign"], SynapticIntelligence) and device.type == "cpu":
            raise ConfigError(
                f"strategies: {options.name}: on a CPU Avalanche's synaptic intelligence compares the weights with "
                "themselves (it keeps views of them, not copies), so that every importance is 0 and it is Naive; take "
                "synaptic_intelligence, or a GPU"
            )

    @classmethod
    def cost_of_step(cls, options: StrategyConfig, training: TrainingConfig, earlier: int) -> float:
        """Return one, or two where patches of earlier experiences are in each step."""
        rehearses = {"Replay", "AGEM", "GEM", "Cumulative"} & {
            one.__name__ for one in avalanche_class(options.name).__mro__
        }
        return 2.0 if rehearses and earlier else 1.0

    # -- training -----------------------------------------------------------------------------------------------

    def check_stream(self, stream: StructureStream) -> None:
        """Refuse a stream with masks, or with patches that are padded: their targets have a second channel."""
        super().check_stream(stream)
        if weighted := [
            names for names, one in zip(stream.experiences, stream.patches, strict=True) if one.weighted
        ]:
            raise ConfigError(
                f"the patches of {' + '.join(weighted[0])} say which voxels count (a mask, or an image smaller than "
                "the patch), and strategies of Avalanche would take that for a target: leave masks out, make patches "
                "smaller, or take a strategy of this package"
            )
        self.network.labels = stream.labels

    def grow(self, structures: Sequence[str]) -> None:
        """Count `structures` among those that the network predicts."""
        self.network.add(structures)

    def make_optimizer(self, **kwargs: Any) -> None:
        """Take the optimiser of the strategy of Avalanche, with the experience's rate and no state."""
        self.optimizer = self.foreign.optimizer
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
            group.pop("initial_lr", None)
        self.optimized_param_id = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.scheduler, self.scaler = None, None

    def train(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Train as every strategy does; the evaluator sees training through the strategy of Avalanche only."""
        present, self.plugins = self.plugins, [one for one in self.plugins if one is not self.evaluator]
        try:
            return super().train(*args, **kwargs)
        finally:
            self.plugins = present

    def _train_exp(self, experience: CLExperience, eval_streams: Any = None, **kwargs: Any) -> None:
        """Let the strategy of Avalanche train the experience, then validate the state that it leaves."""
        self.stop_reason = ""
        given = self._experience_of(experience)
        # Avalanche's plugins call what Avalanche has deprecated, and it resets the filters of warnings each time.
        with warnings.catch_warnings(record=True) as recorded:
            # Not a single experience: joint training takes a stream.
            self.foreign.train([given], eval_streams=[])
        for one in recorded:
            if not issubclass(one.category, DeprecationWarning):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
        self.stop_reason = self.stop_reason or f"all {self.progress.step} steps"
        self.model.train()
        self._validate_or_stop()

    def _make_train_dataloader(self, **kwargs: Any) -> None:
        """Load as Avalanche does, each batch with as many patches of each structure, where a batch has room for all."""
        dataset: Any = self.foreign.adapted_dataset
        if len(set(dataset.targets_task_labels)) <= self.train_mb_size:
            self._make_loader(**kwargs)
            return
        # Avalanche's balanced loader stops with a bare AssertionError.
        self.foreign.dataloader = DataLoader(
            dataset, batch_size=self.train_mb_size, shuffle=True, collate_fn=dataset.collate_fn
        )

    def _experience_of(self, experience: CLExperience) -> CLExperience:
        """Return the experience with patches that record which of them is read in training."""
        number = int(experience.current_experience)
        patches = self.stream.patches[number]
        labels = [self.stream.labels[patches.structure_of(item)] for item in range(len(patches))]
        given = copy.copy(experience)
        recorded = _RecordedPatches(patches, self._recorder)
        given._dataset = AvalancheDataset([recorded], data_attributes=[TaskLabels(labels)])
        return given


class AvalancheJoint(AvalancheStrategy, Joint):
    """Adapter of joint training: one experience of all structures, with the sum of all budgets."""


class _RecordedPatches(Dataset[Any]):
    """Patches of an experience; what is read while steps are made is counted, also by a later experience's buffer."""

    def __init__(self, patches: PatchDataset, recorder: _Recorder) -> None:
        self.patches, self.recorder = patches, recorder

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.patches.sample_of(index)
        self.recorder.count((sample.structure, sample.image_id))
        return self.patches[index]


class _Recorder(SupervisedPlugin[Any]):
    """Plugin by which the adapter follows the loop of Avalanche: progress, schedule, clipping, time limit, signals."""

    def __init__(self, strategy: AvalancheStrategy) -> None:
        super().__init__()
        self.strategy = strategy
        self._active = False
        self._began = (0.0, 0.0)

    def count(self, image: tuple[str, str]) -> None:
        """Count a patch that was read, if steps are made."""
        if self._active:
            number = self.strategy._experience_number
            self.strategy.trained_patches.setdefault(number, Counter())[image] += 1

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Lay the schedule out over the steps of the epoch."""
        ours = self.strategy
        ours.scheduler = make_schedule(
            strategy.optimizer, ours.training_config.schedule, len(strategy.dataloader)
        )
        self._active = True
        self._began = (time.perf_counter(), time.process_time())

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Clip gradients where configured."""
        clip = self.strategy.training_config.gradient_clip
        if clip is not None:
            nn.utils.clip_grad_norm_(strategy.model.parameters(), clip)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Record a step, and end training where a signal or the time limit asks for it."""
        ours, progress = self.strategy, self.strategy.progress
        if ours.scheduler is not None:
            ours.scheduler.step()
        began, began_cpu = self._began
        progress.step += 1
        progress.seconds += time.perf_counter() - began
        progress.cpu_seconds += time.process_time() - began_cpu
        ours.last_loss = strategy.loss.detach()
        for listener in ours.listeners:
            listener(ours)
        if ours.progress_bar is not None:
            ours.progress_bar.advance()
        ours._check_stop()
        if (reason := out_of_time(ours.training_config, progress.seconds)) is not None:
            ours.stop_reason = reason
            strategy.stop_training()
        self._began = (time.perf_counter(), time.process_time())

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count no patch that is read from now on, as for importances: it is not trained on."""
        self._active = False


def solve_gem(plugin: GEMPlugin, g: Tensor) -> Tensor:
    """Project a gradient as GEM does, in place of `GEMPlugin.solve_quadprog`, whose solver has another licence.

    The dual problem of Lopez-Paz and Ranzato (2017, eq. 11): minimise ``v' P v / 2 + (G g)' v`` with
    ``v >= memory_strength``, where P is ``G G'``. With ``v = u + memory_strength`` and ``P = L L'`` it is a
    least-squares problem with ``u >= 0``, which scipy solves.

    Parameters
    ----------
    plugin
        Holds ``G``, the gradients of earlier experiences, (experiences, parameters).
    g
        Gradient of the current batch, (parameters,).

    Returns
    -------
    Tensor
        The projected gradient, float32 (parameters,), on the CPU.
    """
    memories = plugin.G.cpu().double().numpy()
    gradient = g.cpu().contiguous().view(-1).double().numpy()
    count = len(memories)
    product = memories @ memories.T
    # Avalanche's and the authors' own: a little of the identity keeps the problem strictly convex.
    product = 0.5 * (product + product.T) + np.eye(count) * 1e-3
    linear = memories @ gradient + product @ np.full(count, plugin.memory_strength)
    lower = np.linalg.cholesky(product)
    solution, _ = nnls(lower.T, -np.linalg.solve(lower, linear))
    return torch.from_numpy((solution + plugin.memory_strength) @ memories + gradient).float()
