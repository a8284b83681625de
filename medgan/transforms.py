"""medgan in a MONAI `Compose`: dictionary transforms over the verbs."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple

from medgan.datasets.cases import Case, Dataset
from medgan.errors import Refused
from medgan.imaging.convert import is_bare, to_volume
from medgan.imaging.geometry import reorient, same_grid
from medgan.imaging.labels import refine_labels
from medgan.imaging.restoration import acquisitions
from medgan.imaging.slices import Acquisition, Profile
from medgan.imaging.volume import Volume
from medgan.verbs.augment import Method as LesionMethod
from medgan.verbs.upsample import check_options, upsample
from medgan.verbs.upsample_report import Method, UpsampleReport

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: What was done stands under this key in the image's meta data, as JSON text; empty where nothing was.
RECORD = "medgan"


class Upsampled(MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Makes the voxels of scans smaller, as `medgan.upsample` does, and brings their label maps along.

    Example:
        >>> from monai.transforms import Compose, LoadImaged
        >>> from medgan.transforms import Upsampled
        >>> pipeline = Compose([
        ...     LoadImaged(keys=("image", "label"), ensure_channel_first=True),
        ...     Upsampled(keys=("image",), label_keys=("label",), spacing=(1, 1, 1)),
        ... ])
        >>> case = pipeline({"image": "scan.nii.gz", "label": "mask.nii.gz"})

    It belongs right behind the reader, before anything that crops, turns or scales: it expects the grid and the
    values that the scanner made. With a `CacheDataset` or `PersistentDataset` each scan is done once.

    Args:
        keys: Scans, (C, X, Y, Z): a `MetaTensor` with its affine, or a tensor or array with `input_spacing`.
        label_keys: Label maps on the grid of the first of `keys`, of whole numbers in any dtype. No mixed value
            comes out.
        spacing: The spacing wanted, in mm; with neither `spacing` nor `factor`, as for `medgan.upsample`.
        factor: How many times finer, instead of `spacing`.
        profile: As for `medgan.upsample`, and so are the following.
        thickness: In mm.
        method: `network` or `linear`.
        adapt: Train on each scan's own detail first.
        sharpness: 0, truest, to 1, sharpest.
        model: A run folder.
        device: Where the network runs; the result lies where the input did.
        seed: Of the adaptation.
        input_spacing: Voxel spacing of bare tensors and arrays, in mm.
        allow_missing_keys: Pass over keys that a case does not have.

    Raises:
        Refused: As `medgan.upsample`; `GEOM_NO_SPACING` for a bare tensor without `input_spacing`, `LABEL_*` for
            labels that do not belong to the scan. Within a `Compose`, MONAI wraps it in a `RuntimeError`.
    """

    def __init__(
        self, keys: KeysCollection = ("image",), label_keys: KeysCollection = (), *,
        spacing: Sequence[float] | float | None = None, factor: Sequence[float] | float | None = None,
        profile: Profile | Literal["auto"] = "auto", thickness: float | None = None, method: Method = "network",
        adapt: bool = False, sharpness: float = 0.0, model: str | Path | None = None, device: str = "auto",
        seed: int = 0, input_spacing: Sequence[float] | None = None, allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_options(profile=profile, method=method, model=model, adapt=adapt, sharpness=sharpness,
                      thickness=thickness, device=device)
        self.label_keys: tuple[Hashable, ...] = ensure_tuple(label_keys)
        self.input_spacing = input_spacing
        self.options: dict[str, Any] = {
            "spacing": spacing, "factor": factor, "profile": profile, "thickness": thickness, "method": method,
            "adapt": adapt, "sharpness": sharpness, "model": model, "device": device, "seed": seed,
        }  # fmt: skip

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Upsamples one case.

        Args:
            data: Key -> (C, X, Y, Z).

        Returns:
            A new dictionary with the same kinds of images on finer grids.
        """
        result = dict(data)
        grid: tuple[Volume, tuple[Acquisition, ...]] | None = None
        for key in self.key_iterator(result):
            image = self._volume(result[key], str(key))
            result[key], report = self._upsampled(result[key])
            grid = grid or (image, acquisitions(image, report.factors, report.profile, None))
        for key in self.label_keys:
            if key not in result and self.allow_missing_keys:
                continue
            if key not in result or grid is None:
                raise KeyError(f"{key!r} cannot be up-sampled: {'it' if grid else 'its image'} is not in the data")
            result[key] = self._labels(result[key], str(key), *grid)
        return result

    def _upsampled(self, image: Any) -> tuple[Any, UpsampleReport]:
        made, report = upsample(image, report=True, maps=False, input_spacing=self.input_spacing, **self.options)
        for text in report.warnings:
            warnings.warn(text, stacklevel=3)
        return made, report

    def _volume(self, image: Any, key: str) -> Volume:
        if is_bare(image) and self.input_spacing is None:
            raise Refused("GEOM_NO_SPACING", key, "a plain tensor or array does not know its voxel spacing",
                          "Give input_spacing=(x, y, z) in mm, or load it as a MetaTensor")
        return to_volume(image, spacing_mm=self.input_spacing)[0]

    def _labels(self, labels: Any, key: str, image: Volume, scans: Sequence[Acquisition]) -> Any:
        spacing = self.input_spacing if self.input_spacing is not None else image.spacing_mm
        mask, back = to_volume(labels, spacing_mm=spacing)
        if not same_grid(mask, image):
            raise Refused("LABEL_GRID", key, f"the labels ({mask.shape}, {mask.orientation}) do not lie on the grid of "
                          f"the image ({image.shape}, {image.orientation})",
                          "Bring both onto one grid first, with nearest-neighbour interpolation for the labels")
        return back(refine_labels(replace(mask, source=Path(key)), scans))


class RandSyntheticLesiond(RandomizableTransform, MapTransform):  # type: ignore[misc]  # MONAI is untyped
    """Puts new lesions into training cases at random, and into their labels.

    Example:
        >>> from monai.transforms import Compose, LoadImaged, RandCropByPosNegLabeld
        >>> from medgan.transforms import RandSyntheticLesiond
        >>> keys = ("image", "label")
        >>> pipeline = Compose([
        ...     LoadImaged(keys=keys, ensure_channel_first=True),
        ...     RandCropByPosNegLabeld(keys=keys, label_key="label", spatial_size=(96, 96, 96), num_samples=1),
        ...     RandSyntheticLesiond(keys=keys, dataset="glioma", run="runs/lesion", prob=0.5),
        ... ])

    It belongs behind the reader or a random crop and before anything that scales or resamples: lesions know how raw
    values look. A crop or flip of a training case on its own grid is recognised by its affine, and its tissue and scale
    of values are taken from the whole case; another image is judged from what is given. In a crop lesions lie inside
    the crop, and large ones that find no room in it are not tried.

    A case is known by the file name in its meta data, or by its id under `id_key`. Each training case is read once,
    when it first comes up; `prepare` does so for all before workers are forked.

    Args:
        keys: Image (C, X, Y[, Z]) and label (1, X, Y[, Z]), both `MetaTensor`s on one grid.
        dataset: The data set that lesions come from, of its training cases alone.
        run: A run folder, for `gan`; None: as for `medgan.OnlineLesions`.
        method: `gan`, `paste` or `procedural`.
        prob: How often lesions are put in.
        cases: Ids of the training cases that lesions come from, for folds; others of the data set are refused.
        id_key: Where a case's id stands, if anywhere.
        modality: As for `medgan.OnlineLesions`, and so are the following.
        config: A TOML file of settings.
        settings: Single settings.
        device: Where a generator runs.
        allow_missing_keys: Pass over cases that lack one of the keys.

    Raises:
        Refused: `SPLIT_LEAK` for a validation or test case; `RUN_CHANNELS`, `LABEL_*`, `GEOM_NO_SPACING` for what does
            not fit; what `medgan.OnlineLesions` refuses. Within a `Compose`, MONAI wraps it in a `RuntimeError`.
    """

    def __init__(
        self, keys: KeysCollection = ("image", "label"), *, dataset: str | Path | Dataset,
        run: str | Path | Run | None = None, method: LesionMethod = "gan", prob: float = 0.5,
        cases: Sequence[str] | None = None, id_key: str = "id", modality: str | None = None,
        config: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (), device: str = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        from medgan.verbs.online import open_studio

        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if len(self.keys) != 2:
            raise Refused("CFG_VALUE", "keys", f"{self.keys} are not an image and its label",
                          'Give keys=("image", "label")')
        self.id_key = id_key
        self.studio, opened = open_studio(run, dataset, method=method, cases=cases, modality=modality, config=config,
                                          settings=settings, device=device)
        self._chosen = frozenset(cases) if cases is not None else None
        self._names = _case_names(opened)
        self._cases = {case.id: case for case in opened.cases}
        self._seed = 0

    def prepare(self) -> RandSyntheticLesiond:
        """Reads every training case now, so that forked workers need not; a few hundred kilobytes are kept of each."""
        for case in self.studio.parents:
            self.studio.outline(case)
        return self

    def randomize(self, data: Any = None) -> None:
        """Draws whether lesions are put in, and their seed."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Puts lesions into one case, or leaves it as it is.

        Args:
            data: Key -> image and label.

        Returns:
            A new dictionary; image and label keep their types, and bits where nothing was put.
        """
        result = dict(data)
        image_key, label_key = self.keys
        if self.allow_missing_keys and not (image_key in result and label_key in result):
            return result
        case = self._known(result)
        self.randomize()
        for key in self.keys:
            if is_bare(result[key]):
                raise Refused("GEOM_NO_SPACING", str(key), "a plain tensor or array does not know its voxel spacing",
                              "Load it as a MetaTensor")
        image, image_back = to_volume(result[image_key])
        label, label_back = to_volume(result[label_key])
        channels = self.studio.library.lesions[0].image.shape[0]
        if image.channels != channels:
            raise Refused("RUN_CHANNELS", str(image_key), f"it has {image.channels} channels where lesions have "
                          f"{channels}", "Load the channels that the data set has")
        if label.channels != 1 or not same_grid(label, image):
            raise Refused("LABEL_GRID", str(label_key), f"the label {label.array.shape} is not one channel on the grid "
                          f"of the image {image.shape}", "Put in lesions before labels are changed")
        record = ""
        if self._do_transform:
            modality = self.studio.config.modality
            upright = [volume if volume.dims == 2 else reorient(volume) for volume in (image, label)]
            made = self.studio.crop(case, replace(upright[0], modality=modality), upright[1], self._seed)
            if made is not None:
                for key, whole, part, back in ((image_key, image, made.image, image_back),
                                               (label_key, label, made.mask, label_back)):
                    tensor = back(part if whole.dims == 2 else reorient(part, whole.orientation))
                    tensor.applied_operations = result[key].applied_operations
                    result[key] = tensor
                record = self.studio.record(f"{case.id if case else 'image'}.{self._seed}", case, self._seed, made)
        made_image = result[image_key]
        result[image_key] = MetaTensor(made_image.as_tensor(), meta={**made_image.meta, RECORD: record},
                                       applied_operations=made_image.applied_operations)
        return result

    def _known(self, data: Mapping[Any, Any]) -> Case | None:
        """The training case that an item is from; None for an image that is not of the data set."""
        from medgan.verbs.online import refuse_held_out

        found = {name for key in self.keys for path in _files(data[key]) for name in
                 (self._names.get(str(Path(path).resolve())), self._names.get(Path(path).name)) if name is not None}
        if isinstance(data.get(self.id_key), str) and data[self.id_key] in self._cases:
            found.add(data[self.id_key])
        for name in sorted(found):
            refuse_held_out(self._cases[name])
            if self._chosen is not None and name not in self._chosen:
                raise Refused("SPLIT_LEAK", name, "it is not among the `cases` that lesions come from: it is held out",
                              "Name it there, or leave synthesis out of validation and test")
        known = [case for case in self.studio.parents if case.id in found]
        return known[0] if len(known) == 1 else None


def _files(image: Any) -> Iterator[str]:
    """The files that an image says it was read from."""
    given = getattr(image, "meta", {}).get("filename_or_obj", ())
    yield from (str(path) for path in ((given,) if isinstance(given, str | Path) else given))


def _case_names(dataset: Dataset) -> dict[str, str]:
    """Path -> case id, and file name -> case id where no other case has a file of that name."""
    paths = [(path, case.id) for case in dataset.cases for path in (*case.images, case.mask)
             if path is not None and case.row is None]
    owners = Counter(name for name, _ in {(path.name, owner) for path, owner in paths})
    return ({path.name: owner for path, owner in paths if owners[path.name] == 1}
            | {str(path.resolve()): owner for path, owner in paths})
