"""Recipe of a model's preprocessing, besides the voxel size: training applies it, and prediction must repeat it.

A model keeps its recipe in ``model.json``, from where every prediction reads it. This module imports neither torch nor
the configuration, because worker processes use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from repmode_cl.data.geometry import VoxelSize
from repmode_cl.data.preprocessing.intensity_scales import IntensityScale, as_scale
from repmode_cl.data.preprocessing.normalisation import ZScore
from repmode_cl.data.preprocessing.resampling import VOXEL_SIZE_REMEDY, resampled_shape
from repmode_cl.errors import ModelError

__all__ = ["PreprocessingRecipe"]
#: The name that a plain z-score has in ``model.json``.
_PLAIN = "z-score per image"
_CLIPPED = "z-score between percentiles"
_BEFORE = "z-score per image before resampling"
_DATA_SET = "z-score over the training images"


@dataclass(frozen=True)
class PreprocessingRecipe:
    """Resampling and normalisation of images; the defaults are those of models that state nothing.

    Attributes
    ----------
    axes
        ``all``, or ``xy``: only y and x are resampled.
    order
        Of the spline, 0 to 3.
    anti_alias
        Whether axes that lose voxels are blurred first.
    percentiles
        Lower and upper one that voxels are clipped to where mean and deviation are taken; None does not clip.
    empty
        ``refuse`` or ``zeros``, or with `data_set` ``keep``: treatment of a constant image.
    before_resampling
        Whether mean and deviation are those of the image as it is in the file, and resampling keeps the centres of
        the outermost voxels, as the paper's authors do; else those of the resampled image, whose borders are kept.
    data_set
        Whether mean and deviation are those of the voxels of all training images together, and no image's own.
    light
        With `data_set`: mean and deviation of the transmitted light; None where they are not measured yet.
    """

    axes: str = "all"
    order: int = 1
    anti_alias: bool = False
    percentiles: tuple[float, float] | None = None
    empty: str = "refuse"
    before_resampling: bool = False
    data_set: bool = False
    light: IntensityScale | None = None

    @classmethod
    def of(cls, settings: Any) -> PreprocessingRecipe:
        """Return the recipe of a configuration's ``data.preprocessing``."""
        clipped = settings.normalise == "percentiles"
        return cls(
            settings.axes,
            settings.order,
            settings.anti_alias,
            tuple(settings.percentiles) if clipped else None,
            settings.empty,
            settings.normalise == "before_resampling",
            settings.normalise == "data_set",
            settings.light,
        )

    def to_settings(self) -> dict[str, Any]:
        """Return the keys of a configuration's ``data.preprocessing`` that give this recipe, without `voxel_size`."""
        kind: dict[str, Any] = {}
        if self.percentiles is not None:
            kind = {"normalise": "percentiles", "percentiles": self.percentiles}
        elif self.before_resampling:
            kind = {"normalise": "before_resampling"}
        elif self.data_set:
            kind = {"normalise": "data_set", "light": self.light}
        return {
            "axes": self.axes,
            "order": self.order,
            "anti_alias": self.anti_alias,
            "empty": self.empty,
            **kind,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the record for ``model.json``: normalisation, order, and other settings that differ from the defaults.

        A model with the settings of all earlier models so has their digest too.
        """
        document: dict[str, Any] = {"normalisation": self._normalisation, "order": self.order}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "order" and value != field.default:
                document[field.name] = list(value) if isinstance(value, tuple) else value
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PreprocessingRecipe:
        """Read a record of `to_json`, or of an earlier model.

        Raises
        ------
        ModelError
            If it holds settings that this version does not know: without them images would be prepared differently
            than in training.
        """
        known = {"normalisation", *(field.name for field in fields(cls))}
        found = {key: document[key] for key in known if key in document}
        kind = found.pop("normalisation", None)
        percentiles = found.get("percentiles")
        if percentiles is not None:
            found["percentiles"] = tuple(percentiles) if isinstance(percentiles, Sequence) else percentiles
        if "light" in found:
            found["light"] = as_scale(found["light"]) or found["light"]
        recipe = cls(**found)
        expected = recipe._normalisation
        unknown = sorted(set(document) - known)
        wrong = [f"{key} {document[key]!r}" for key in unknown] + recipe._invalid_settings()
        if kind != expected and (kind is not None or expected != _PLAIN):
            wrong.append(f"normalisation {kind!r}")
        if recipe.data_set and recipe.light is None:
            wrong.append("data_set without light")
        if wrong:
            raise ModelError(
                f"the model's preprocessing ({', '.join(wrong)}) is not known to this repmode-cl, which would prepare "
                "images otherwise than it was trained with: use a newer repmode-cl"
            )
        return recipe

    @property
    def _normalisation(self) -> str:
        """Name that the normalisation has in ``model.json``."""
        if self.percentiles is not None:
            return _CLIPPED
        if self.data_set:
            return _DATA_SET
        return _BEFORE if self.before_resampling else _PLAIN

    @property
    def light_score(self) -> ZScore | None:
        """The z-score of every image's transmitted light; None where each image has its own.

        Raises
        ------
        ValueError
            If it is one for all images and was not measured yet.
        """
        if not self.data_set:
            return None
        if self.light is None:
            raise ValueError("the light of the data set is not measured yet")
        return ZScore(*self.light)

    @property
    def summary(self) -> str:
        """Settings that differ from the defaults, in words; empty where none does."""
        settings = self.to_json()
        texts = {key: f"{key} {value}" for key, value in settings.items()}
        if self.percentiles is not None:
            texts["percentiles"] = f"percentiles {'-'.join(f'{one:g}' for one in self.percentiles)}"
        if self.data_set:
            texts["data_set"] = _DATA_SET
            if self.light is not None:
                texts["light"] = "light of mean {:.6g} and deviation {:.6g}".format(*self.light)
        return ", ".join(
            text
            for key, text in texts.items()
            if key != "normalisation" and (key, settings[key]) != ("order", 1)
        )

    def _invalid_settings(self) -> list[str]:
        checks = {
            "axes": self.axes in ("all", "xy"),
            "order": type(self.order) is int and 0 <= self.order <= 3,
            "anti_alias": isinstance(self.anti_alias, bool),
            "percentiles": self.percentiles is None or _are_percentiles(self.percentiles),
            "empty": self.empty in ("refuse", "keep" if self.data_set else "zeros"),
            "data_set": isinstance(self.data_set, bool)
            and not (self.data_set and (self.before_resampling or self.percentiles is not None)),
            "light": self.light is None or (self.data_set and as_scale(self.light) == self.light),
            "before_resampling": isinstance(self.before_resampling, bool)
            and not (self.before_resampling and (self.anti_alias or self.percentiles is not None)),
        }
        return [f"{key} {getattr(self, key)!r}" for key, right in checks.items() if not right]

    def target_voxel(self, own: VoxelSize, to: Sequence[float]) -> VoxelSize:
        """Return the voxel size (z, y, x) in um that an image of voxels `own` is resampled to, for the grid `to`."""
        z, y, x = (float(step) for step in to)
        return (own[0] if self.axes == "xy" else z), y, x

    def grid(
        self,
        shape: Sequence[int],
        own: VoxelSize | None,
        to: Sequence[float] | None,
        *,
        remedy: str = VOXEL_SIZE_REMEDY,
    ) -> tuple[int, int, int]:
        """Return the number of voxels (Z, Y, X) of an image of `shape` after preparation.

        Parameters
        ----------
        shape
            Its voxels (Z, Y, X) in the file.
        own, to
            Its voxel size, and that of the model or configuration, in um; it keeps its grid where either is None.
        remedy
            What a person can do, for the error; what a manifest offers by default.

        Raises
        ------
        ImageError
            If the two differ so much that a unit must be wrong.
        """
        if own is None or to is None:
            z, y, x = (int(size) for size in shape)
            return z, y, x
        return resampled_shape(shape, own, self.target_voxel(own, to), remedy=remedy)


def _are_percentiles(value: Any) -> bool:
    if not isinstance(value, tuple):
        return False
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in value)
    return len(value) == 2 and numbers and 0 <= value[0] < value[1] <= 100
