"""Measures of image quality against independent computations, and what is refused or undefined."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from repmode_cl.config import Config
from repmode_cl.config.schema import EvaluationConfig
from repmode_cl.errors import ImageError, RepmodeError
from repmode_cl.evaluation import image_quality
from repmode_cl.evaluation.image_quality import (
    MEASURE_HIGHER_IS_BETTER,
    MEASURES,
    ImagePair,
    available_measures,
    check_measures,
    figure_names,
    measure_image,
)

needs_cubic = pytest.mark.skipif(
    importlib.util.find_spec("cubic") is None, reason="cubic, of the extra quality, is not installed"
)


def volumes(*shape: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a truth and a prediction of it with noise, z-scored as the truth."""
    random = np.random.default_rng(seed)
    truth = gaussian_filter(random.normal(size=shape), 1.5).astype(np.float32)
    truth = (truth - truth.mean()) / truth.std()
    return truth, (truth + noise * random.normal(size=shape)).astype(np.float32)


def measured(truth: np.ndarray, prediction: np.ndarray, *names: str, **more: Any) -> dict[str, float]:
    return dict(measure_image(ImagePair(prediction, truth, **more), names).figures)


def tensor(volume: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(volume.astype(np.float64))[None, None]


def inner_ssim(prediction: np.ndarray, truth: np.ndarray, size: float) -> float:
    """Return the mean of torchmetrics' SSIM over windows that lie in the image; its own mean is over all."""
    images = tensor(prediction), tensor(truth)
    _, full = structural_similarity_index_measure(*images, data_range=size, return_full_image=True)
    return float(full[(0, 0, *[slice(5, -5)] * truth.ndim)].mean())


def test_psnr_and_ssim_of_a_stack_are_those_of_torchmetrics() -> None:
    truth, prediction = volumes(14, 20, 18)
    size = float(truth.max()) - float(truth.min())
    found = measured(truth, prediction, "psnr", "ssim")
    psnr = peak_signal_noise_ratio(tensor(prediction), tensor(truth), data_range=size)
    assert found["psnr"] == pytest.approx(float(psnr), abs=1e-4)
    assert found["ssim"] == pytest.approx(inner_ssim(prediction, truth, size), abs=1e-6)


def test_ssim_of_a_thin_stack_is_the_mean_over_planes() -> None:
    truth, prediction = volumes(3, 20, 18)
    size = float(truth.max()) - float(truth.min())
    planes = [inner_ssim(p, t, size) for t, p in zip(truth, prediction, strict=True)]
    assert measured(truth, prediction, "ssim")["ssim"] == pytest.approx(float(np.mean(planes)), abs=1e-6)


def test_only_voxels_of_the_mask_count() -> None:
    truth, prediction = volumes(14, 20, 18)
    mask = np.zeros(truth.shape, bool)
    mask[:, :, 7:] = True
    spoilt = np.where(mask, prediction, 100.0).astype(np.float32)
    cut = measured(truth[:, :, 7:], prediction[:, :, 7:], "psnr", "segmentation")
    assert measured(truth, spoilt, "psnr", "segmentation", mask=mask) == pytest.approx(cut)
    assert measured(truth, prediction, "ssim", mask=mask)["ssim"] < 1


def test_a_perfect_prediction() -> None:
    truth, _ = volumes(14, 20, 18)
    found = measure_image(ImagePair(truth, truth), ("psnr", "ssim", "segmentation"))
    assert "psnr" not in found.figures  # infinite
    assert found.notes == ("psnr: undefined for this image",)
    assert found.figures["ssim"] == pytest.approx(1)
    assert found.figures["dice"] == found.figures["iou"] == 1
    assert found.figures["objects_truth"] == found.figures["objects_prediction"]


def test_what_is_undefined_is_left_out_and_said() -> None:
    truth, prediction = volumes(4, 8, 8)
    assert measure_image(ImagePair(prediction, truth), ("ssim",)).notes == ("ssim: undefined for this image",)
    broken = prediction.copy()
    broken[0, 0, 0] = np.nan
    found = measure_image(ImagePair(broken, truth), ("psnr", "segmentation"))
    assert found.figures == {}
    assert found.notes == ("the prediction is not finite: only the voxel metrics say so",)
    half = np.ones(truth.shape, bool)
    half[0] = False
    notes = measure_image(ImagePair(prediction, truth, half), ("microssim", "fsc")).notes
    assert notes == tuple(
        f"{name} is not computed where a mask leaves voxels out" for name in ("microssim", "fsc")
    )


def test_shapes_must_agree() -> None:
    truth, prediction = volumes(4, 8, 8)
    with pytest.raises(ImageError, match=r"prediction has shape \(4, 8, 7\), truth \(4, 8, 8\)"):
        ImagePair(prediction[:, :, :7], truth)
    with pytest.raises(ImageError, match="mask has shape"):
        ImagePair(prediction, truth, np.ones((4, 8), bool))
    with pytest.raises(ImageError, match=r"a volume \(Z, Y, X\) is needed"):
        ImagePair(prediction[0], truth[0])


def test_a_measure_that_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_measures(["ssim", "psnr", "ssim"]) == ("psnr", "ssim")
    with pytest.raises(RepmodeError, match="unknown measure 'sim': allowed are psnr, ssim, microssim"):
        check_measures(["sim"])
    monkeypatch.setattr(image_quality.importlib.util, "find_spec", lambda name: None)
    assert available_measures() == (("psnr",), ("ssim", "microssim", "spectral_pcc", "fsc", "segmentation"))
    with pytest.raises(
        RepmodeError, match=r"ssim, fsc needs cubic and scikit-image, .*pip install .*quality"
    ):
        check_measures(["psnr", "fsc", "ssim"])


@needs_cubic
def test_spectra_and_microssim_tell_a_good_prediction_from_a_bad_one() -> None:
    names = ("microssim", "spectral_pcc", "fsc")
    truth, good = volumes(24, 32, 32, noise=0.1)
    _, bad = volumes(24, 32, 32, noise=3.0)
    near, far = (measured(truth, one, *names, voxel_size=(0.2, 0.2, 0.2)) for one in (good, bad))
    for name in ("microssim", "spectral_pcc"):
        assert near[name] > far[name] + 0.1
        assert MEASURE_HIGHER_IS_BETTER[name]
    assert near["fsc_xy"] < far["fsc_xy"]
    assert near["fsc_z"] < far["fsc_z"]
    assert near["fsc_xy"] >= 0.4  # two voxels, the finest that can be
    # MicroSSIM sees neither offset nor scale.
    assert measured(truth, 0.5 * good - 2, "microssim")["microssim"] == pytest.approx(
        near["microssim"], abs=0.02
    )
    flat = measured(truth[:1], good[:1], *names)
    assert 0.8 < flat["spectral_pcc"] <= 1
    assert "fsc_z" not in flat
    assert not any(math.isnan(value) for value in flat.values())


@needs_cubic
def test_the_spectral_correlation_of_white_images_is_the_plain_one() -> None:
    """With all frequencies alike and no window it would be Pearson's r; the window keeps it near."""
    random = np.random.default_rng(1)
    truth = random.normal(size=(1, 64, 64))
    prediction = 0.6 * truth + 0.8 * random.normal(size=truth.shape)
    found = measured(truth, prediction, "spectral_pcc")["spectral_pcc"]
    assert found == pytest.approx(np.corrcoef(truth.ravel(), prediction.ravel())[0, 1], abs=0.15)


def test_the_configuration_names_the_same_measures() -> None:
    [allowed] = [
        one for one in get_args(EvaluationConfig.model_fields["measures"].annotation) if one is not Ellipsis
    ]
    assert get_args(allowed) == tuple(MEASURES)
    assert figure_names(MEASURES) == tuple(MEASURE_HIGHER_IS_BETTER)
    assert figure_names(["fsc", "psnr"]) == ("psnr", "fsc_xy", "fsc_z")
    config = Config(name="a", training={"steps": 1}, stream={"base": ["dna"]})
    assert "evaluation" not in config.model_dump()  # runs of before are continued
    asked = config.model_copy(update={"evaluation": EvaluationConfig(measures=("ssim",))})
    assert asked.model_dump()["evaluation"] == {"measures": ("ssim",)}
