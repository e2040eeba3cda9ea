"""The central promise, through the whole path: what a structure predicts never changes by one bit.

A base is trained and two structures are added, by optimisers that would move whatever they hold, with
validation in between; the model is stored, and opened by a new process. One check compares all of it with what
was seen right after each structure was learned. That the check means something is shown by three sabotages,
each a mistake that this kind of software has made: the check must fail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from new_processes import NewProcesses
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from repmode_cl.config import TrainingConfig
from repmode_cl.config.addition_settings import ADDITION_SETTINGS, expert_of_setting, kind_of_setting
from repmode_cl.data.sample import Sample
from repmode_cl.errors import ModelError
from repmode_cl.model import Model
from repmode_cl.nn import AdditionSpec, Architecture, RepModeUNet
from repmode_cl.scenarios import PatchSampling, StructureStream, stream_of_samples
from repmode_cl.store.proof import kernel_digest, prediction_digest
from repmode_cl.strategies import ExpertsFrozen
from repmode_cl.utils.tensor_digests import tensor_digest

ARCHITECTURE = Architecture(width=4, depth=1, experts=("conv3", "conv1", "avg3"))
BASE, ADDED = ("dna", "cell_membrane"), ("nucleolus", "mitochondria")
STRUCTURES = (*BASE, *ADDED)
SHAPE, PATCH = (6, 12, 12), (4, 8, 8)
INFERENCE = {"window": PATCH, "overlap": 0.5, "batch": 4}
TRAINING = TrainingConfig(
    batch_size=2,
    steps=6,
    base_steps=8,
    learning_rate=0.02,
    validate_every=2,
    precision="float32",
    device="cpu",
)
#: The settings of `add`, as they are fitted to this network.
SETTINGS = [
    AdditionSpec(
        **kind_of_setting(name)
        | {"expert": expert_of_setting(name, width=ARCHITECTURE.width, depth=ARCHITECTURE.depth)}
    )
    for name in ADDITION_SETTINGS
]
OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}

#: Run by a new process: what a stored model predicts, and what it consists of.
LOOK = """
import json, sys
import numpy as np
import torch
from repmode_cl.model import Model
from repmode_cl.utils.tensor_digests import tensor_digest
from repmode_cl.store.proof import kernel_digest, prediction_digest

path, volume, out, threads, wrong_row = sys.argv[1:]
torch.set_num_threads(int(threads))
if wrong_row:
    from repmode_cl.nn import ModeBlock, RepModeUNet
    seen, (victim, other) = ModeBlock._seen, wrong_row.split(",")
    def wrong(self, name):  # the experts are right, the gate row over them is another structure's
        experts, gate = seen(self, name)
        return experts, seen(self, other)[1] if name == victim else gate
    ModeBlock._seen = wrong
    whole, Model.network = Model.network, lambda self, structures=None: whole(self)  # so that both are there
    RepModeUNet.drop_structure = lambda self, name: None  # for `verify`, too
model = Model.open(path)
network = model.network()
found = {name: model.predict(np.load(volume), name) for name in model.structures}
np.savez(out + ".npz", **found)
states = {n: network.structure_state(n) if n in network.additions else network.base_state() for n in found}
report = model.verify()
json.dump({
    "digests": {name: [tensor_digest(states[name]), kernel_digest(network, name),
                       prediction_digest(network, name)[0]] for name in found},
    "verified": {result.structure: result.status for result in report.results},
    "bit_identical": report.bit_identical,
    "avalanche": "avalanche" in sys.modules,
}, open(out + ".json", "w"))
"""


@dataclass
class Setting:
    """Images, and a folder for models."""

    samples: list[Sample]
    volume: Path
    folder: Path
    processes: NewProcesses

    def stream(self) -> StructureStream:
        experiences = (BASE, *((name,) for name in ADDED))
        return stream_of_samples(
            self.samples,
            experiences,
            PatchSampling(PATCH),
            count=lambda names, _: 16 if names == BASE else 12,
            seed=0,
        )


@pytest.fixture(scope="module")
def processes() -> Iterator[NewProcesses]:
    with NewProcesses() as new:
        yield new


@pytest.fixture
def setting(tmp_path: Path, processes: NewProcesses) -> Setting:
    random = np.random.default_rng(0)

    def save(name: str, volume: np.ndarray) -> Path:
        path = tmp_path / f"{name}.npy"
        np.save(path, ((volume - volume.mean()) / volume.std()).astype(np.float32))
        return path

    samples = []
    for number, name in enumerate(STRUCTURES):
        for field, split in enumerate(("train", "train", "val")):
            signal = gaussian_filter(random.normal(size=SHAPE), 0.7)
            target = gaussian_filter(signal, 0.4 + number / 3)
            paths = save(f"{name}{field}s", signal), save(f"{name}{field}t", target)
            samples.append(Sample(name, split, len(samples), f"{name}{field}", *paths, None, SHAPE, "g"))
    return Setting(samples, save("unseen", random.normal(size=SHAPE)), tmp_path, processes)


class Strategy(ExpertsFrozen):
    """Ours, with an optimiser that moves everything it holds, gradient or not."""

    optimiser = "sgd"

    def make_optimizer(self, **kwargs: Any) -> None:
        super().make_optimizer(**kwargs)
        self.optimizer = OPTIMISERS[self.optimiser](self.held())
        self.scheduler = None

    def held(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


@dataclass
class Seen:
    """State of a structure right after it was learned."""

    prediction: Tensor
    digests: list[str]


def look(strategy: ExpertsFrozen, name: str, volume: Path) -> Seen:
    network = strategy.network
    state = network.structure_state(name) if name in network.additions else network.base_state()
    prediction = torch.from_numpy(strategy.predict(torch.from_numpy(np.load(volume)), name))
    assert prediction.std() > 1e-4  # not a dead network, which would predict 0 whatever happened
    digests = [tensor_digest(state), kernel_digest(network, name), prediction_digest(network, name)[0]]
    return Seen(prediction, digests)


def check_that_nothing_changes(
    setting: Setting,
    strategy: ExpertsFrozen,
    *,
    store_each: bool,
    wrong_row: tuple[str, str] | None = None,
) -> None:
    """Learn, store and open in a new process; raise AssertionError if anything is not as it was when learned.

    With `store_each` a model grows as users' models do, and the store refuses a network in which anything old
    has changed (ModelError). Without, all is stored at the end, and only the comparison is left to notice.
    """
    path, seen = setting.folder / "model", {}
    parts: dict[str, Any] = {"voxel_size": None, "preprocessing": {}, "inference": INFERENCE}
    validations: list[int] = []
    strategy.on_validation.append(lambda s: validations.append(s.progress.step))
    for number, names in enumerate(strategy.stream.experiences):
        strategy.train(strategy.stream.train[number], eval_streams=[])
        seen |= {name: look(strategy, name, setting.volume) for name in names}
        if store_each and number == 0:
            Model.create(path, strategy.network, **parts)
        elif store_each:
            Model.open(path).add(names[0], strategy.network)
    assert validations == [2, 4, 6, 8, 2, 4, 6, 2, 4, 6]
    if not store_each:
        Model.create(path, strategy.network, **parts)

    out = setting.folder / "found"
    arguments = [path, setting.volume, out, torch.get_num_threads(), ",".join(wrong_row or ())]
    setting.processes.run(LOOK, *map(str, arguments))
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    predictions = {name: torch.from_numpy(a) for name, a in np.load(out.with_suffix(".npz")).items()}
    assert tuple(predictions) == tuple(seen) == STRUCTURES
    changed = {name for name in seen if not torch.equal(seen[name].prediction, predictions[name])}
    assert changed == set(), "predictions changed"
    for number, what in enumerate(("tensors", "kernels", "probe predictions")):
        changed = {name for name in seen if seen[name].digests[number] != found["digests"][name][number]}
        assert changed == set(), f"{what} changed"
    assert found["verified"] == dict.fromkeys(STRUCTURES, "bit-identical")
    assert found["bit_identical"]
    assert not found["avalanche"]


def build(
    setting: Setting,
    strategy: type[ExpertsFrozen] = Strategy,
    network: type[RepModeUNet] = RepModeUNet,
    spec: AdditionSpec | None = None,
    init_from: str = "none",
) -> ExpertsFrozen:
    return strategy(
        model=network(ARCHITECTURE, BASE),
        spec=spec,
        init_from=init_from,
        stream=setting.stream(),
        training=TRAINING,
        patch=PATCH,
    )


# -- the promise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimiser", "spec", "store_each"),
    [
        ("sgd", AdditionSpec(sees="all"), True),
        ("adamw", AdditionSpec(norm="base"), False),
        ("sgd", AdditionSpec(sees="all", gate="outside", scale=True), True),
        *(("adamw", spec, True) for spec in SETTINGS),
    ],
    ids=["sgd", "adamw-shared_norms-stored_at_the_end", "outside_the_softmax", *ADDITION_SETTINGS],
)
def test_predictions_never_change(
    setting: Setting, optimiser: str, spec: AdditionSpec, store_each: bool
) -> None:
    strategy = type("Chosen", (Strategy,), {"optimiser": optimiser})
    start = "best" if spec in SETTINGS else "none"
    chosen = build(setting, strategy, spec=spec, init_from=start)
    check_that_nothing_changes(setting, chosen, store_each=store_each)
    assert set(chosen.started_from) == (set(ADDED) if start == "best" else set())


# -- and that it would be noticed -------------------------------------------------------------------------------


class DriftingNetwork(RepModeUNet):
    """Its `train` is torch's: all weights that are shared are frozen, but norm statistics move."""

    def train(self, mode: bool = True) -> Self:
        nn.Module.train(self, mode)
        return self


class IdleGradients(torch.optim.SGD):
    """Gradients of 0 in place of none, as ``zero_grad(set_to_none=False)`` leaves them."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)


class CarelessStrategy(Strategy):
    """One frozen parameter of the base is left in the optimiser; it never gets a gradient but 0."""

    def make_optimizer(self, **kwargs: Any) -> None:
        super().make_optimizer(**kwargs)
        forgotten = self.model.get_parameter("encoder.0.1.experts.conv1.weight")
        held = {id(parameter): parameter for parameter in (*self.held(), forgotten)}
        self.optimizer = IdleGradients(held.values(), lr=0.02, momentum=0.9, weight_decay=0.1)


SABOTAGES: dict[str, dict[str, Any]] = {
    "drifting norms": {"network": DriftingNetwork, "spec": AdditionSpec(norm="base")},
    "a frozen parameter in the optimiser": {"strategy": CarelessStrategy},
}


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_the_check_notices(setting: Setting, sabotage: str) -> None:
    with pytest.raises(AssertionError, match="predictions changed"):
        check_that_nothing_changes(setting, build(setting, **SABOTAGES[sabotage]), store_each=False)


def test_the_check_notices_another_structures_row(setting: Setting) -> None:
    with pytest.raises(AssertionError, match="predictions changed") as error:
        check_that_nothing_changes(
            setting, build(setting), store_each=True, wrong_row=("mitochondria", "nucleolus")
        )
    assert "{'mitochondria'}" in str(error.value)  # that one and no other
    found = json.loads((setting.folder / "found.json").read_text(encoding="utf-8"))
    assert found["verified"] == {**dict.fromkeys(STRUCTURES, "bit-identical"), "mitochondria": "failed"}
    assert not found["bit_identical"]


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_the_store_refuses_what_the_check_would_notice(setting: Setting, sabotage: str) -> None:
    with pytest.raises(ModelError, match=r"differs from the model .* in the base"):
        check_that_nothing_changes(setting, build(setting, **SABOTAGES[sabotage]), store_each=True)
