from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.metrics import HIGHER_IS_BETTER, image_metrics, mean_metrics
from repmode_cl.results import Result, ResultsTable

HEADER = "strategy,stream,seed,step,structure,metric,value"
OLD_HEADER = "strategy,seed,step,structure,metric,value"


def volumes(seed: int, shape=(4, 9, 7)):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=shape).astype(np.float32)
    prediction = (0.6 * target + 0.3 * rng.normal(size=shape) + 0.1).astype(np.float32)
    return prediction, target


@given(st.integers(0, 2**32 - 1))
def test_metrics_agree_with_scipy_and_numpy(seed):
    prediction, target = volumes(seed)
    metrics = image_metrics(prediction, target)
    p, y = prediction.astype(np.float64).ravel(), target.astype(np.float64).ravel()
    assert metrics["pearson"] == pytest.approx(stats.pearsonr(p, y).statistic, rel=1e-10)
    assert metrics["mse"] == pytest.approx(np.mean((p - y) ** 2), rel=1e-12)
    assert metrics["mae"] == pytest.approx(np.mean(np.abs(p - y)), rel=1e-12)
    assert metrics["r2"] == pytest.approx(1 - np.sum((p - y) ** 2) / np.sum((y - y.mean()) ** 2), rel=1e-10)
    assert set(metrics) == set(HIGHER_IS_BETTER)


def test_metrics_agree_with_torchmetrics():
    torch = pytest.importorskip("torch")
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, pearson_corrcoef, r2_score

    prediction, target = volumes(3)
    p, y = (torch.from_numpy(v.astype(np.float64).ravel()) for v in (prediction, target))
    expected = {
        "mse": mean_squared_error(p, y),
        "mae": mean_absolute_error(p, y),
        "r2": r2_score(p, y),
        "pearson": pearson_corrcoef(p, y),
    }
    expected = {metric: pytest.approx(float(value), rel=1e-9) for metric, value in expected.items()}
    assert image_metrics(prediction, target) == expected


def test_r2_is_one_minus_mse_for_a_z_scored_target():
    prediction, target = volumes(0)
    target = (target - target.mean(dtype=np.float64)) / target.std(dtype=np.float64)
    metrics = image_metrics(prediction, target)
    assert metrics["r2"] == pytest.approx(1 - metrics["mse"], abs=1e-12)


def test_only_voxels_of_the_mask_count():
    prediction, target = volumes(1)
    mask = np.zeros(target.shape, bool)
    mask[1:3] = True
    spoiled = prediction.copy()
    spoiled[0] = 1e6
    inside = image_metrics(prediction[1:3], target[1:3])
    assert image_metrics(spoiled, target, mask) == inside
    assert image_metrics(spoiled, target, mask.astype(np.float32)) == inside


def test_perfect_and_useless_predictions():
    _, target = volumes(2)
    assert image_metrics(target, target) == {"mse": 0.0, "mae": 0.0, "r2": 1.0, "pearson": pytest.approx(1.0)}
    mean = np.full(target.shape, target.mean(dtype=np.float64))
    useless = image_metrics(mean, target)
    assert useless["r2"] == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(useless["pearson"])
    assert image_metrics(-3 * target, target)["r2"] == pytest.approx(-15.0, rel=0.01)


def test_a_diverged_prediction_is_nan_everywhere():
    prediction, target = volumes(4)
    prediction[0, 0, 0] = np.inf
    assert all(math.isnan(value) for value in image_metrics(prediction, target).values())


def test_tiny_numbers_keep_their_correlation():
    target = np.arange(10.0) * 1e-120
    assert image_metrics(np.arange(10.0) * 1e-200, target)["pearson"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "target", "mask", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), None, "shape"),
        (np.zeros(3), np.arange(3), np.ones(2), "mask has shape"),
        (np.zeros(3), np.arange(3), np.zeros(3), "no voxel"),
        (np.zeros(3), np.array([0, np.nan, 1]), None, "NaN"),
        (np.zeros(3), np.full(3, 0.1), None, "constant|every voxel"),
        (np.zeros(3), np.array([1, 1, 5]), np.array([1, 1, 0]), "every voxel"),
    ],
)
def test_volumes_without_defined_metrics_are_refused(prediction, target, mask, message):
    with pytest.raises(ImageError, match=message):
        image_metrics(prediction, target, mask)


def test_the_mean_counts_each_image_the_same():
    assert mean_metrics([{"r2": 0.5, "mse": 1.0}, {"r2": -0.1, "mse": 3.0}]) == {"r2": 0.2, "mse": 2.0}
    assert math.isnan(mean_metrics([{"r2": 0.5}, {"r2": math.nan}])["r2"])
    with pytest.raises(ValueError, match="no image"):
        mean_metrics([])


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=5))
def test_results_read_back_as_the_very_same_floats(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("results") / "results.csv"
    table = ResultsTable()
    for step, value in enumerate(values):
        table.append("fine, tuned", 3, step, "dna", "r2", np.float64(value))
    table.write(path)
    again = ResultsTable.read(path)
    assert [row.key for row in again] == [row.key for row in table]
    assert [row.value.hex() for row in again] == [row.value.hex() for row in table]


def test_results_select_and_drop():
    table = ResultsTable()
    for strategy in ("b", "a"):
        for seed in (1, 0):
            for step in range(3):
                table.append(strategy, seed, step, "dna", "r2", step / 10)
    assert table.strategies == ("b", "a")
    assert table.seeds("a") == (1, 0)
    assert [row.value for row in table.select(strategy="a", seed=0)] == [0.0, 0.1, 0.2]
    with pytest.raises(ValueError, match="already"):
        table.append("a", 0, 2, "dna", "r2", 0.3)
    table.drop("a", 0, from_step=1)
    table.drop("a", 0, "another stream")
    table.append("a", 0, 2, "dna", "r2", 0.3)
    assert [row.value for row in table.select(strategy="a", seed=0)] == [0.0, 0.3]
    assert len(table) == 11


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no results"),
        ("a,b\n", "first line"),
        (f"{HEADER}\nx,,0,0,dna,r2\n", "line 2: 6 fields, expected 7"),
        (f"{OLD_HEADER}\nx,,0,0,dna,r2,1\n", "line 2: 7 fields, expected 6"),
        (f"{HEADER}\nx,,0,zero,dna,r2,1\n", "line 2"),
        (f"{HEADER}\nx,,0,0,dna,r2,1\nx,,0,0,dna,r2,2\n", "line 3: stands twice"),
    ],
)
def test_a_wrong_results_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "results.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RepmodeError, match=message):
        ResultsTable.read(path)


def test_the_same_number_of_several_streams():
    table = ResultsTable()
    for stream in ("order-1", "order-2"):
        for step in range(2):
            table.append("a", 0, step, "dna", "r2", step, stream)
    assert table.streams == ("order-1", "order-2")
    assert (table.seeds("a", "order-1"), table.seeds("a")) == ((0,), ())
    assert len(table.select(strategy="a")) == 4
    assert [row.stream for row in table.select(stream="order-2", step=1)] == ["order-2"]
    table.drop("a", 0, "order-2")
    assert [row.stream for row in table] == ["order-1"] * 2


def test_a_table_from_before_streams_reads_as_the_one_stream(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(f"{OLD_HEADER}\nx,3,1,dna,r2,0.25\n", encoding="utf-8")
    table = ResultsTable.read(path)
    assert table.rows == (Result("x", 3, 1, "dna", "r2", 0.25),)
    assert table.rows[0].stream == ""
    table.write(path)
    assert path.read_text(encoding="utf-8") == f"{HEADER}\nx,,3,1,dna,r2,0.25\n"


def test_tables_merge_unless_they_contradict_each_other():
    one = ResultsTable([Result("a", 0, 0, "dna", "r2", 0.5), Result("a", 0, 0, "dna", "pearson", math.nan)])
    other = ResultsTable(
        [*one, Result("a", 1, 0, "dna", "r2", 0.6), Result("a", 0, 0, "dna", "r2", 0.7, "b")]
    )
    one.merge(other)
    assert [repr(row) for row in one] == [repr(row) for row in other]
    wrong = ResultsTable([Result("c", 0, 0, "dna", "r2", 0.1), Result("a", 1, 0, "dna", "r2", 0.6000001)])
    with pytest.raises(
        RepmodeError, match=r"strategy 'a', seed 1, step 0, structure 'dna', metric 'r2': 0.6 and"
    ):
        one.merge(wrong)
    assert len(one) == 4
