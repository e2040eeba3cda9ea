"""``repmode-cl perf``: it measures everything, in alternation, and ours stays near the plain network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from repmode_cl.cli.app import app
from repmode_cl.errors import ConfigError, RepmodeError
from repmode_cl.perf import PerfSettings, run_perf, scaling
from repmode_cl.perf import device_check as checking
from repmode_cl.perf import timing_rounds as rounds
from repmode_cl.perf.device_check import check_device
from repmode_cl.perf.memory import footprint_of, measure_memory
from repmode_cl.perf.settings import QUICK
from repmode_cl.perf.tables import tables_of
from repmode_cl.perf.timing_rounds import Lazily, alternate, rows_of
from repmode_cl.perf.training import time_steps
from repmode_cl.perf.workloads import Networks, Variant, kernel3_variants, training_variants
from repmode_cl.training.precision import Precision
from repmode_cl.utils.memory import peak_tensor_bytes

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", "cpu")
#: Everything is there, nothing takes time.
TINY = PerfSettings(
    width=2,
    depth=1,
    patch=(4, 8, 8),
    batch=8,
    precisions=("float32",),
    device="cpu",
    repeats=2,
    loader_workers=(0,),
    fresh_processes=False,
)
NAMES = [variant.name for variant in training_variants(TINY)]


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["perf", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quick_command_measures_and_writes_everything(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "perf.json"
    small = ["--width", 2, "--depth", 1, "--patch", "4,16,16", "--repeats", 2, "--threads", 1]
    code, printed, told = run("--quick", "--device", "cpu", *small, "--out", out)
    assert code == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["format"] == "repmode-cl perf"
    assert found["complete"] is True
    assert found["machine"]["cpu"]
    assert found["machine"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == 1
    assert found["settings"]["patch"] == [4, 16, 16]
    assert found["precisions"] == ["float32"]
    sections = found["sections"]
    assert set(sections) == {"training", "inference", "kernel3", "memory", "loading"}
    training = sections["training"]["float32"]
    assert [row["name"] for row in training] == NAMES
    windows = {row["name"]: row for row in sections["inference"]["windows"]["float32"]}
    assert {
        "plain-k5",
        "plain-k3",
        "ours-fused",
        "ours-folded",
        "ours-1",
        "unfused-8",
        "per-sample-8",
    } <= set(windows)
    for row in [*training, *windows.values(), *sections["inference"]["volume"]["rows"]]:
        assert len(row["seconds"]) == 2
        assert row["median"] > 0
        assert row["ratio"] > 0
        assert row["quartiles"][0] <= row["ratio"] <= row["quartiles"][1]
        assert row["failure"] is None
    assert {row["name"] for row in sections["inference"]["volume"]["rows"]} == {"sliding-window", "monai"}
    narrow = {key: rows["float32"] for key, rows in sections["kernel3"].items()}
    added = [
        f"addition-{kind}"
        for kind in ("conv3-softmax", "conv3-outside", "lowrank4-softmax", "lowrank4-outside")
    ]
    fixed = [f"{name}-fixed" for name in added]
    assert [row["name"] for row in narrow["training"]] == ["plain-k3", "ours-1", "ours-2", *added, *fixed]
    assert [row["name"] for row in narrow["prediction"]] == [
        "plain-k3", "ours-fused", "addition-fused", "plain-k3-folded", "ours-folded", "addition-folded", "ours-1",
        "addition-conv3-softmax",
    ]  # fmt: skip
    for rows in narrow.values():
        assert rows[0]["ratio"] == 1
        assert all(row["ratio"] > 0 and row["failure"] is None for row in rows)
    memory = sections["memory"]["float32"]
    assert [row["name"] for row in memory["rows"]] == NAMES
    assert all(row["tensors"] > row["saved"] > 0 for row in memory["rows"])
    assert [one["kept"] for one in memory["promises"]] == [True]
    assert [row["workers"] for row in sections["loading"]["rows"]] == [0, 1]
    assert all(row["median"] > 0 for row in sections["loading"]["rows"])
    # The output says how long, lists each variant, and names the file.
    assert "this takes" in told
    assert "ours, adding a structure (conv3)" in printed
    assert "unfused mixture, 8 structures" in printed
    assert "ours, adding (conv3, outside, fixed gates)" in printed
    assert f"figures: {out}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--patch", "16,64"], "--patch '16,64': give three positive"),
        (["--patch", "8,60,64"], "2^depth = 16"),
        (["--width", 0], "width is 0"),
        (["--batch", 1, "--depth", 2, "--patch", "4,4,4"], "one voxel in the bottleneck"),
        (["--minutes", "-1"], "minutes is -1.0"),
        (["--threads", 0], "threads is 0"),
        (["--quick", "--paper"], "choose one"),
        (["--out", "perf.csv"], "ends in .json"),
        (["--device", "tpu"], "tpu"),
        (["--quick", "--only", "training", "--variant", "our-1"], "did you mean 'ours-1'"),
    ],
)
def test_wrong_input_is_refused(arguments: list[str], message: str) -> None:
    code, _, told = run(*arguments)
    assert code == 2
    assert message in told


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'trainin' is none.*did you mean 'training'"):
        PerfSettings(sections=("trainin",))


def test_a_folder_is_no_file_for_the_figures(tmp_path: Path) -> None:
    folder = tmp_path / "perf.json"
    folder.mkdir()
    code, _, told = run("--quick", "--out", folder)
    assert code == 2
    assert "is a folder" in told


# -- alternating rounds --------------------------------------------------------------------------------------


def test_each_round_measures_every_variant_once_in_a_changing_order() -> None:
    calls: list[str] = []
    work = {name: (lambda name=name: calls.append(name)) for name in "abcd"}
    timings = alternate(work, rounds=5, seed=1)
    rounds = ["".join(calls[i : i + 4]) for i in range(0, len(calls), 4)]
    assert len(rounds) == 6  # the warm-up is not counted
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 2
    assert all(len(timing.seconds) == 5 for timing in timings.values())
    again: list[str] = []
    alternate({name: (lambda name=name: again.append(name)) for name in "abcd"}, rounds=5, seed=1)
    assert again == calls


def test_time_that_is_up_cuts_rounds_and_no_variant() -> None:
    timings = alternate({name: lambda: None for name in "abc"}, rounds=50, seconds=0.0)
    assert all(len(timing.seconds) == 1 for timing in timings.values())


def test_running_out_of_memory_is_one_row_and_the_rest_goes_on() -> None:
    count = 0

    def later() -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def at_once() -> Callable[[], object]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    work = {"fine": lambda: None, "later": later, "at once": Lazily(at_once)}
    rows = {
        row.name: row for row in rows_of(alternate(work, rounds=4), {name: name for name in work}, "fine")
    }
    assert len(rows["fine"].seconds) == 4
    assert rows["later"].failure == "out of memory"
    assert rows["at once"].failure == "out of memory"
    assert rows["at once"].median is None
    # Any other error is a defect and is seen.
    with pytest.raises(RuntimeError, match="no memory of this"):
        alternate(
            {"broken": Lazily(lambda: (_ for _ in ()).throw(RuntimeError("no memory of this")))}, rounds=1
        )


def test_ratios_are_those_of_the_same_round() -> None:
    work = {"reference": lambda: None, "other": lambda: None}
    timings = alternate(work, rounds=3)
    timings["reference"].seconds[:] = [1.0, 10.0, 2.0]
    timings["other"].seconds[:] = [2.0, 20.0, 8.0]
    _, other = rows_of(timings, {name: name for name in work}, "reference")
    assert other.ratio == 2.0
    assert other.quartiles == (2.0, 3.0)
    assert other.ratio_of_medians == 4.0


# -- the sections --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_interrupted_measurement_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "perf.json"

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repmode_cl.perf.run.measure_memory", interrupted)
    settings = PerfSettings(**{**_values(TINY), "repeats": 1, "sections": ("training", "memory")})
    with pytest.raises(KeyboardInterrupt):
        run_perf(settings, out=out)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["complete"] is False
    assert set(found["sections"]) == {"training"}


@pytest.mark.slow
def test_a_device_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = check_device(TINY, CPU, [FLOAT32, Precision("bfloat16", "cpu")])
    assert {row["precision"] for row in rows} == {"float32 without TF32", "float32", "bfloat16"}
    assert all(row["output"] <= row["output_tolerance"] for row in rows)
    exact = checking._results

    def wrong(network: Any, variant: Any, settings: Any, device: Any, precision: Precision | None) -> Any:
        output, gradients = exact(network, variant, settings, device, precision)
        return output, gradients * (1.0 if precision is None else float("nan"))

    monkeypatch.setattr(checking, "_results", wrong)
    monkeypatch.setattr(checking, "_CHECKED", checking._CHECKED[:1])  # one network that is wrong is enough
    with pytest.raises(RepmodeError, match=r"does not compute what the CPU computes.*gradients"):
        check_device(TINY, CPU, [FLOAT32])


def test_volumes_grow_from_1_to_64_times() -> None:
    voxels = [torch.Size(scaling.volume_shape(TINY, times)).numel() for times in scaling.SIZES]
    assert [one / voxels[0] for one in voxels] == [1, 4, 16, 64] == list(scaling.SIZES)


@pytest.mark.slow
def test_volumes_start_up_and_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "SIZES", {1: (1, 1, 1), 4: (1, 2, 2)})
    settings = PerfSettings(**{**_values(TINY), "repeats": 1, "sections": ("scaling", "startup", "profile")})
    shown: list[str] = []
    found = run_perf(
        settings,
        commands=[["config"]],
        show=lambda section, values: shown.extend(str(part) for part in tables_of(section, values)),
    )["sections"]
    assert [(row["way"], row["times"]) for row in found["scaling"]["rows"]] == [
        (way, times) for way in ("memory", "disk") for times in (1, 4)
    ]
    assert all(row["per_window"] > 0 for row in found["scaling"]["rows"])
    startup = {row["name"]: row["median"] for row in found["startup"]}
    assert startup["import repmode_cl"] < startup["repmode-cl show MODEL"]
    assert startup["repmode-cl config --help"] > 0
    profile = found["profile"]["float32"]
    assert set(profile["variants"]) == {"plain-k5", "ours-1", "ours-8"}
    operators = {row["operator"]: row for row in profile["rows"]}
    assert operators["aten::convolution_backward"]["ours-1"] > 0
    assert len(shown) == 3


def test_loading_without_training_times_the_step_itself() -> None:
    settings = PerfSettings(**{**_values(TINY), "repeats": 1, "sections": ("loading",)})
    found = run_perf(settings)["sections"]["loading"]
    assert found["appetite"] > 0
    assert found["rows"][0]["ratio"] == pytest.approx(found["rows"][0]["median"] / found["appetite"])


# -- memory --------------------------------------------------------------------------------------------------


def test_peak_of_tensors_is_what_was_held_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first, second
        torch.zeros(500)

    peak = peak_tensor_bytes(work)
    assert peak is not None
    assert 8000 <= peak < 8100  # the numbers 0 and 1 are tensors too


@pytest.mark.slow
def test_memory_of_tensors_is_the_same_each_time_and_ours_keeps_its_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("plain-k5", "ours-1", "ours-2", "addition-lowrank4", "unfused-1")
    some = [variant for variant in training_variants(TINY) if variant.name in names]
    monkeypatch.setattr("repmode_cl.perf.memory.training_variants", lambda settings: some)
    settings = PerfSettings(**{**_values(TINY), "width": 4})
    source = Networks(settings, CPU)
    found = measure_memory(settings, source, FLOAT32)
    rows = {row["name"]: row for row in found["rows"]}
    chosen = {variant.name: variant for variant in some}
    assert footprint_of(settings, chosen["ours-2"], FLOAT32, source) == rows["ours-2"]
    [promise] = found["promises"]
    assert promise["peak"] == "tensors"
    assert promise["kept"]
    # Of what autograd keeps, ours has one kernel in each block that the plain network has as a parameter, and gates.
    plain = rows["plain-k5"]
    assert rows["ours-1"]["saved"] - plain["saved"] <= plain["parameters"]
    assert rows["unfused-1"]["saved"] > 2 * rows["ours-1"]["saved"]
    assert rows["addition-lowrank4"]["gradients"] < 0.25 * rows["ours-1"]["gradients"]
    assert rows["plain-k5"]["optimizer"] >= 2 * rows["plain-k5"]["parameters"]


@pytest.mark.slow
def test_resident_memory_is_measured_in_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    two = [v for v in training_variants(TINY) if v.name in ("plain-k5", "ours-1")]
    monkeypatch.setattr("repmode_cl.perf.memory.training_variants", lambda settings: two)
    settings = PerfSettings(**{**_values(TINY), "fresh_processes": True})
    source = Networks(settings, CPU)
    found = measure_memory(settings, source, FLOAT32)
    assert [row["name"] for row in found["rows"]] == ["plain-k5", "ours-1"]
    assert all(row["failure"] is None for row in found["rows"])
    # The same tensors as in this process.
    assert found["rows"][1]["tensors"] == footprint_of(settings, two[1], FLOAT32, source)["tensors"]
    assert {one["peak"] for one in found["promises"]} >= {"tensors"}


# -- the ratios, with margins that only a defect exceeds --------------------------------------------------------

#: Variant, reference, and the largest ratio that is allowed.
LIMITS = [
    ("ours-1", "plain-k5", 1.6),
    ("ours-2", "plain-k5", 2.0),
    ("addition-conv3", "plain-k5", 1.6),
    ("addition-lowrank4", "plain-k5", 1.6),
    ("ours-1", "per-sample-1", 1.0),
    ("ours-1", "unfused-1", 1.0),
]


#: The same of networks of kernel 3, where fusing is a larger part of a step.
LIMITS_K3 = [
    ("ours-1", "plain-k3", 1.8),
    ("addition-conv3-softmax", "plain-k3", 1.8),
    ("addition-conv3-outside", "plain-k3", 1.8),
    ("addition-lowrank4-outside", "plain-k3", 1.8),
    ("addition-conv3-outside-fixed", "plain-k3", 1.3),
    ("addition-conv3-softmax-fixed", "plain-k3", 1.3),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "variants"),
    [
        pytest.param(LIMITS, training_variants, id="k5", marks=pytest.mark.slow),
        pytest.param(LIMITS_K3, kernel3_variants, id="k3"),
    ],
)
def test_ours_stays_near_the_plain_network(
    limits: list[tuple[str, str, float]],
    variants: Callable[[PerfSettings], list[Variant]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Other tests run at the same time: the time of one thread's own work says what the clock on the wall does not.
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=time.thread_time))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exceeded = _exceeded(limits, variants)
    finally:
        torch.set_num_threads(threads)
    assert not exceeded


def _exceeded(
    limits: list[tuple[str, str, float]], variants: Callable[[PerfSettings], list[Variant]]
) -> dict[tuple[str, str], float]:
    """Return the pairs of `limits` whose ratio is larger than allowed."""
    settings = PerfSettings(**{**_values(TINY), **QUICK, "patch": (8, 24, 24), "repeats": 3})
    networks = Networks(settings, CPU)
    named = {name for pair in limits for name in pair[:2]}
    chosen = [variant for variant in variants(settings) if variant.name in named]
    seconds: dict[str, list[float]] = {variant.name: [] for variant in chosen}
    exceeded: dict[tuple[str, str], float] = {}
    for _ in range(4):  # more rounds where caches are shared with something else
        for row in time_steps(settings, networks, FLOAT32, chosen, "Training step"):
            seconds[row["name"]] += row["seconds"]
        ratios = {
            (name, reference): median(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))
            for name, reference, _ in limits
        }
        exceeded = {
            (name, reference): ratios[name, reference]
            for name, reference, limit in limits
            if ratios[name, reference] > limit
        }
        if not exceeded:
            break
    return exceeded


def _values(settings: PerfSettings) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in settings.to_json().items()}


def test_only_the_chosen_rows_are_timed_with_the_reference(tmp_path: Path) -> None:
    out = tmp_path / "perf.json"
    only = ["--quick", "--device", "cpu", "--repeats", 1, "--only", "training", "--out", out]
    code, _, _ = run(*only, "--variant", "addition-conv3")
    assert code == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["sections"]["training"]["float32"]
    assert [row["name"] for row in rows] == ["plain-k5", "addition-conv3"]
