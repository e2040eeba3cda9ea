"""The microscope: transmitted light from refractive index, fluorescence from density, and the camera.

The objective, the filter and the kind of camera are those reported for the public label-free collection (a
spinning-disk microscope, 100x water immersion); the others are typical of such instruments. None was chosen
to make a structure easier or harder to predict. The one constant that was compared with real stacks is the
opening of the condenser's diaphragm, which nobody records: see `CONDENSER_NA`.

Transmitted light follows the theory of partially coherent imaging of weak phase objects (Streibl, J. Opt.
Soc. Am. A 2, 121, 1985): contrast is the refractive index convolved with a kernel that is odd in z, so that
an image is close to an axial derivative smeared over a long cone. The light depends on the structures in no other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from repmode_cl.data.phantom.randomness import Floats

__all__ = [
    "LIGHT_WAVELENGTH",
    "MEDIUM_INDEX",
    "Emission",
    "fluorescence_image",
    "fluorescence_transfer",
    "light_image",
    "light_transfer",
    "padded_depth",
]

#: Numerical aperture of the objective: 100x/1.25 water immersion.
OBJECTIVE_NA = 1.25
#: Numerical aperture of the illumination: a long-distance condenser of 0.55, its diaphragm closed to seven
#: tenths of that, the usual compromise between contrast and resolution. Fully open, a plane's contrast
#: (standard deviation over mean) is 5.5 %, at 0.2 it is 13 %, here it is 8 %; real stacks have 6 to 10 %.
CONDENSER_NA = 0.39
#: Refractive index of culture medium and of the immersion water, near enough to each other.
MEDIUM_INDEX = 1.337
#: Wavelength in um of the transmitted light: a red LED through a 706/95 nm filter, away from the dyes.
LIGHT_WAVELENGTH = 0.706
#: Photoelectrons for each voxel of the empty transmitted-light image: a camera exposed to a third of its
#: 30,000.
LIGHT_ELECTRONS = 10_000.0
#: Camera (scientific CMOS): electrons of read noise, grey levels at no light, grey levels for an electron.
READ_NOISE = 1.6
OFFSET = 100.0
GAIN = 2.0
#: Widening of the ideal point-spread function, laterally and axially, by aberration inside living tissue.
ABERRATION = (1.15, 1.35)
#: Part of the light that reaches the detector through neighbouring pinholes of the disk, and its widths in um
#: (z, xy).
CROSSTALK = 0.25
CROSSTALK_SIGMA = (2.0, 1.2)
#: Loss of fluorescence for each um of depth: scattering and spherical aberration.
LOSS = 0.02


@dataclass(frozen=True)
class Emission:
    """Fluorescence of a structure.

    Attributes
    ----------
    wavelength
        Peak of the emission in um.
    photons
        Mean photoelectrons a voxel at density 1.
    soluble
        Density of untethered label in the cytoplasm, as part of density 1.
    variation
        Standard deviation of the logarithm of a cell's expression.
    """

    wavelength: float
    photons: float
    soluble: float
    variation: float


def padded_depth(planes: int, step: float) -> int:
    """Planes to compute with, so that light does not wrap round from the top to the bottom: 6 um more."""
    return int(fft.next_fast_len(planes + int(np.ceil(6.0 / step)), real=False))


def _radial_frequencies(shape: tuple[int, int], voxel: tuple[float, float]) -> NDArray[np.float64]:
    """Lateral spatial frequency in 1/um of each term of a 2D real transform, (Y, X // 2 + 1)."""
    y, x = np.fft.fftfreq(shape[0], voxel[0]), np.fft.rfftfreq(shape[1], voxel[1])
    return np.asarray(np.hypot(y[:, None], x[None]))


def light_transfer(shape: tuple[int, int, int], voxel: tuple[float, float, float]) -> NDArray[np.complex64]:
    """Return the transfer function from refractive index to contrast, (Z, Y, X // 2 + 1).

    For a plane wave of the condenser's cone with lateral frequency s, a slice of thickness dz and index
    excess n at distance z from the focus adds, for each lateral frequency k,

        2 (2 pi / wavelength) dz n(k) P(s + k) sin(2 pi (g(s + k) - g(s)) z)

    to the contrast, where P is the objective's pupil, g(q) = sqrt((m / wavelength)^2 - q^2) and m the
    medium's index. The cone is summed numerically; it is round, so the sum depends only on abs(k) and is
    tabulated.

    The lamp stands above and the objective below (an inverted microscope), so a dense body gathers light
    below itself: bright when the focus is nearer the glass than the body, dark when it is further.
    """
    rim, pupil = CONDENSER_NA / LIGHT_WAVELENGTH, OBJECTIVE_NA / LIGHT_WAVELENGTH
    lateral = _radial_frequencies((shape[1], shape[2]), (voxel[1], voxel[2]))
    table = np.linspace(0.0, min(float(lateral.max()), rim + pupil), 128)
    depths = np.fft.fftfreq(shape[0], 1.0 / shape[0]) * voxel[0]
    # Rings of equal area: every source point carries the same weight.
    radii = rim * np.sqrt((np.arange(16) + 0.5) / 16)
    angles = 2 * np.pi * (np.arange(48) + 0.5) / 48
    source = np.stack([np.outer(radii, np.cos(angles)).ravel(), np.outer(radii, np.sin(angles)).ravel()])

    def axial(squared: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.sqrt(np.maximum((MEDIUM_INDEX / LIGHT_WAVELENGTH) ** 2 - squared, 0.0)))

    scattered = (source[0] + table[:, None]) ** 2 + source[1] ** 2
    difference = axial(scattered) - axial(source[0] ** 2 + source[1] ** 2)
    passed = (scattered <= pupil**2) / source.shape[1]
    kernel = np.stack([(passed * np.sin(2 * np.pi * difference * z)).sum(axis=1) for z in depths])
    # The far half of a transform is the near half's mirror image: a plane exactly between them is neither.
    if shape[0] % 2 == 0:
        kernel[shape[0] // 2] = 0.0
    kernel *= 2 * (2 * np.pi / LIGHT_WAVELENGTH) * voxel[0]
    along_z = fft.fft(kernel, axis=0)
    place = np.minimum(lateral / table[1], len(table) - 1.001)
    low = place.astype(np.intp)
    part = place - low
    result = along_z[:, low] * (1 - part) + along_z[:, low + 1] * part
    result[:, lateral > table[-1]] = 0
    return np.asarray(result, dtype=np.complex64)


def light_image(rng: np.random.Generator, index: Floats, voxel: tuple[float, float, float]) -> Floats:
    """Return camera counts of the transmitted-light stack, float32 (Z, Y, X).

    Parameters
    ----------
    rng
        Stream of illumination and noise.
    index
        Refractive index minus that of the medium, (Z, Y, X).
    voxel
        Voxel size in um.
    """
    planes, height, width = index.shape
    deep = padded_depth(planes, voxel[0])
    spectrum = fft.rfftn(index, s=(deep, height, width))
    spectrum *= light_transfer((deep, height, width), voxel)
    contrast = fft.irfftn(spectrum, s=(deep, height, width))[:planes]
    # First-order Rytov: the exponential keeps strong scatterers positive, and equals 1 + contrast for weak
    # ones.
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    tilt = rng.normal(0, 0.04, 2).astype(np.float32)
    lamp = 1 + tilt[0] * y + tilt[1] * x + np.float32(rng.normal(0, 0.03)) * (x * x + y * y)
    flicker = (1 + 0.003 * rng.standard_normal((planes, 1, 1))).astype(np.float32)
    electrons = np.float32(LIGHT_ELECTRONS) * np.exp(np.clip(contrast, -2.0, 1.2)) * lamp * flicker
    # Poisson noise of thousands of electrons is Gaussian to all purposes, and quicker to draw.
    noise = rng.standard_normal(electrons.shape, dtype=np.float32)
    electrons += noise * np.sqrt(electrons + np.float32(READ_NOISE**2))
    return np.asarray(OFFSET + GAIN * electrons, dtype=np.float32)


def fluorescence_transfer(
    shape: tuple[int, int, int], voxel: tuple[float, float, float], wavelength: float
) -> Floats:
    """Transfer function of the spinning disk at one emission wavelength (um), (Z, Y, X // 2 + 1).

    A Gaussian with the ideal confocal-free widths (lateral sigma 0.21 wavelength / NA; axial 0.37 wavelength
    / (m - sqrt(m^2 - NA^2))), widened by `ABERRATION`, plus the broad cross-talk of the disk; then averaged
    over the voxel, as the camera and the resampling do.
    """
    sine = np.sqrt(MEDIUM_INDEX**2 - OBJECTIVE_NA**2)
    lateral = ABERRATION[0] * 0.21 * wavelength / OBJECTIVE_NA
    axial = ABERRATION[1] * 0.37 * wavelength / (MEDIUM_INDEX - sine)
    z = np.fft.fftfreq(shape[0], voxel[0]).astype(np.float32)[:, None, None]
    y = np.fft.fftfreq(shape[1], voxel[1]).astype(np.float32)[:, None]
    x = np.fft.rfftfreq(shape[2], voxel[2]).astype(np.float32)
    radial = y * y + x * x
    turn = np.float32(-2 * np.pi**2)
    near = np.exp(turn * np.float32(axial**2) * z * z) * np.exp(turn * np.float32(lateral**2) * radial)
    wide = np.exp(turn * np.float32(CROSSTALK_SIGMA[0] ** 2) * z * z)
    haze = wide * np.exp(turn * np.float32(CROSSTALK_SIGMA[1] ** 2) * radial)
    box = np.sinc(y * voxel[1]) * np.sinc(x * voxel[2])
    return np.asarray(((1 - CROSSTALK) * near + CROSSTALK * haze) * box, dtype=np.float32)


def fluorescence_image(
    rng: np.random.Generator, density: Floats, voxel: tuple[float, float, float], emission: Emission
) -> Floats:
    """Return camera counts of one fluorescence channel, float32 (Z, Y, X).

    Parameters
    ----------
    rng
        Stream of the structure's noise.
    density
        Label density, 1 where the structure is dense, (Z, Y, X).
    voxel
        Voxel size in um.
    emission
        Its colour and brightness.
    """
    planes, height, width = density.shape
    deep = padded_depth(planes, voxel[0])
    spectrum = fft.rfftn(density, s=(deep, height, width))
    spectrum *= fluorescence_transfer((deep, height, width), voxel, emission.wavelength)
    blurred = fft.irfftn(spectrum, s=(deep, height, width))[:planes]
    depth = (np.arange(planes, dtype=np.float32) * np.float32(voxel[0])).reshape(-1, 1, 1)
    # Medium, glass and autofluorescence: a few electrons everywhere.
    dark = float(rng.uniform(3.0, 6.0))
    expected = np.maximum(emission.photons * blurred * np.exp(-np.float32(LOSS) * depth), 0) + dark
    electrons = rng.poisson(expected).astype(np.float32)
    electrons += np.float32(READ_NOISE) * rng.standard_normal(electrons.shape, dtype=np.float32)
    return np.asarray(OFFSET + GAIN * electrons, dtype=np.float32)
