"""Whatever a caller holds, into a `Volume` and back into the same kind.

Paths, volumes, numpy arrays, torch tensors, MONAI `MetaTensor`s, nibabel and SimpleITK images are taken. A
library is looked at only if the caller has already imported it: nobody holds its objects otherwise.
LPS exists only here, at the SimpleITK edge, and for a `MetaTensor` that says it is in LPS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.imaging.checks import refuse_nonfinite
from medgan.imaging.nifti_header import rigid
from medgan.imaging.planar import spacing_affine, with_channels
from medgan.imaging.volume import Volume

#: Turns a result into the kind of image that came in.
Back = Callable[[Volume], Any]

#: Flips the first two world axes: LPS to RAS and back.
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_volume(image: Any, *, spacing_mm: Sequence[float] | None = None) -> tuple[Volume, Back]:
    """Makes a volume of an image of any supported kind, and a function that turns a volume into that kind again.

    Args:
        image: A path (str or Path); a `Volume`; a numpy array or plain torch tensor, (X, Y[, Z]) or (C, X, Y[, Z]) as
            `spacing_mm` tells; a MONAI `MetaTensor` (C, X, Y[, Z]); a nibabel or a SimpleITK image.
        spacing_mm: Two or three numbers; needed for bare arrays and tensors, unused where the image knows its place.

    Returns:
        The volume, and the way back: a path gives a `Volume`; every other kind gives its own, on the same
        device, with the result's geometry where the kind has one. Integer kinds are rounded and clipped to their
        type; floating-point kinds keep theirs.

    Raises:
        Refused: `INPUT_KIND`, `DIM_*`, `GEOM_NO_SPACING`, `GEOM_SHEAR`, `GEOM_UNITS`, `PIX_*`, or whatever is wrong
            with the file.
    """
    if isinstance(image, Volume):
        return image, _same
    if isinstance(image, str | os.PathLike):
        from medgan.imaging.files import read

        return read(os.fspath(image)), _same
    for kind, converter in _KINDS:
        if kind(image):
            volume, back = converter(image, spacing_mm)
            refuse_nonfinite(volume.array, type(image).__name__)
            if not rigid(volume.affine):
                raise Refused("GEOM_SHEAR", type(image).__name__, "the affine is sheared, not rotation times scale",
                              "Resample the image onto a grid with orthogonal axes")
            return volume, back
    raise Refused(
        "INPUT_KIND", type(image).__name__, "an image of this kind is not known",
        "Give a path, a Volume, a numpy array, a tensor, or a MONAI, nibabel or SimpleITK image",
    )


def cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values in another dtype, rounded and clipped into its range where that is an integer (or bool) type."""
    if dtype == array.dtype:
        return array
    if dtype.kind == "b":
        return np.asarray(array > 0.5)
    if dtype.kind not in "iu" or array.dtype.kind == "b":
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    low, high = limits.min, limits.max
    if array.dtype.kind in "iu":
        own = np.iinfo(array.dtype)
        return np.asarray(np.clip(array, max(low, own.min), min(high, own.max))).astype(dtype)
    if dtype.itemsize > 2:  # float32 does not hold the limits of these types
        array = array.astype(np.float64, copy=False)
    # Nor does float64 hold the largest 64-bit integers; the number below them is used.
    ceiling = np.nextafter(float(high), 0) if dtype.itemsize == 8 else float(high)
    return np.asarray(np.clip(np.rint(array), float(low), ceiling)).astype(dtype)


def _real(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Native byte order for arrays of real numbers; everything else is refused."""
    if array.dtype.kind not in "biuf":
        code = {"c": "PIX_COMPLEX", "V": "PIX_COLOUR"}.get(array.dtype.kind, "INPUT_KIND")
        raise Refused(code, where, f"dtype {array.dtype} where grey values are expected", "Give integers or floats")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_bare(image: Any) -> bool:
    """Whether an image is an array or tensor that knows nothing of its place."""
    return (_is_numpy(image) or _is_tensor(image)) and not _is_metatensor(image)


def _same(volume: Volume) -> Volume:
    return volume


def _is_numpy(image: Any) -> bool:
    return isinstance(image, np.ndarray)


def _from_numpy(image: Any, spacing_mm: Sequence[float] | None) -> tuple[Volume, Back]:
    volume, bare = _bare(image, spacing_mm)
    return volume, lambda result: cast(_stripped(result, bare), image.dtype)


def _bare(array: NDArray[Any], spacing_mm: Sequence[float] | None) -> tuple[Volume, bool]:
    """A volume of an array without geometry, and whether it had no channel axis."""
    array = _real(array, "array")
    if spacing_mm is None:
        raise Refused("GEOM_NO_SPACING", "array", "a bare array does not know its voxel spacing",
                      "Give spacing=(x, y, z) in mm, two numbers for a 2D image")
    affine = spacing_affine(spacing_mm, "spacing")
    return Volume(with_channels(array, len(spacing_mm), "array"), affine), array.ndim == len(spacing_mm)


def _stripped(volume: Volume, bare: bool) -> NDArray[Any]:
    """The array, without the channel axis where the input had none and one channel came out."""
    return volume.array[0] if bare and volume.channels == 1 else volume.array


def _is_tensor(image: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _from_tensor(image: Any, spacing_mm: Sequence[float] | None) -> tuple[Volume, Back]:
    volume, bare = _bare(_numpy_of(image), spacing_mm)
    return volume, lambda result: _tensor_like(image, _stripped(result, bare))


def _numpy_of(tensor: Any) -> NDArray[Any]:
    """The values of a tensor as numpy; bfloat16, which numpy does not know, as float32."""
    import torch

    plain = tensor.detach().cpu()
    if plain.dtype == torch.bfloat16:
        plain = plain.float()
    array: NDArray[Any] = plain.resolve_conj().numpy()
    return array


def _tensor_like(tensor: Any, array: NDArray[Any]) -> Any:
    """A plain tensor with the dtype and on the device of another."""
    import torch

    if not tensor.dtype.is_floating_point:
        array = cast(array, _numpy_of(tensor[:0]).dtype)
    return torch.from_numpy(np.array(array, order="C")).to(device=tensor.device, dtype=tensor.dtype)


def _is_metatensor(image: Any) -> bool:
    module = sys.modules.get("monai.data.meta_tensor")
    return module is not None and isinstance(image, module.MetaTensor)


def _from_metatensor(image: Any, spacing_mm: Sequence[float] | None) -> tuple[Volume, Back]:
    from monai.data.meta_tensor import MetaTensor

    array = _real(_numpy_of(image.as_tensor()), "MetaTensor")
    if array.ndim not in (3, 4):
        raise Refused("DIM_UNSUPPORTED", "MetaTensor", f"shape {array.shape} is not (C, X, Y[, Z])",
                      "Take one image out of the batch and put its channels first")
    # MONAI's readers give RAS unless they were asked for ITK's LPS, which the meta data then says.
    to_ras = LPS_RAS if str(image.meta.get("space", "RAS")).upper().endswith("LPS") else np.eye(4)
    stored = np.asarray(image.affine.detach().cpu(), dtype=np.float64)
    volume = Volume(array, to_ras @ _four_by_four(stored))

    def back(result: Volume) -> Any:
        import torch

        affine = to_ras @ result.affine
        if stored.shape == (3, 3):
            affine = affine[np.ix_((0, 1, 3), (0, 1, 3))]
        tensor = MetaTensor(_tensor_like(image.as_tensor(), result.array), meta=dict(image.meta))
        tensor.affine = torch.as_tensor(affine.copy())
        if "spatial_shape" in tensor.meta:
            tensor.meta["spatial_shape"] = np.asarray(result.shape)
        return tensor

    return volume, back


def _four_by_four(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """A 2D affine (3, 3) as (4, 4) in the plane z = 0; others as they are."""
    if affine.shape != (3, 3):
        return affine
    full = np.eye(4)
    full[np.ix_((0, 1, 3), (0, 1, 3))] = affine
    return full


def _is_nibabel(image: Any) -> bool:
    nibabel = sys.modules.get("nibabel")
    return nibabel is not None and isinstance(image, nibabel.spatialimages.SpatialImage)


def _from_nibabel(image: Any, spacing_mm: Sequence[float] | None) -> tuple[Volume, Back]:
    import nibabel

    where = image.get_filename() or type(image).__name__
    shape = tuple(image.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        code = "DIM_4D" if len(shape) == 4 else "DIM_UNSUPPORTED"
        raise Refused(code, where, f"shape {image.shape} where one volume is expected", "Give one volume at a time")
    if image.affine is None:
        raise Refused("GEOM_NO_ORIENTATION", where, "the image has no affine", "Give it the affine of its original")
    unit = image.header.get_xyzt_units()[0] if hasattr(image.header, "get_xyzt_units") else "mm"
    if unit not in ("mm", "unknown"):
        raise Refused("GEOM_UNITS", where, f"the header's unit is {unit}", "Scale the affine to mm and say so")
    array = _real(np.asarray(image.dataobj).reshape(shape), where)
    # Scaled integers come out as float64 and the result is no longer on that scale, so it goes back as float32.
    dtype = array.dtype if array.dtype == image.get_data_dtype().newbyteorder("=") else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        volume = Volume(array.astype(dtype, copy=False)[None], image.affine)
    nifti = isinstance(image, nibabel.Nifti1Pair)

    def back(result: Volume) -> Any:
        values = cast(_channels_last(result, image.ndim), dtype)
        # Other formats hold few dtypes and shapes; NIfTI holds them all.
        kind = type(image) if nifti else nibabel.Nifti1Image
        made = kind(values, result.affine, header=image.header if nifti else None, dtype=values.dtype)
        made.header.set_xyzt_units("mm")
        return made

    return volume, back


def _channels_last(volume: Volume, ndim: int) -> NDArray[Any]:
    """The array as (X, Y, Z[, C]), with ones at the end up to `ndim` axes."""
    array: NDArray[Any] = volume.array[0]
    if volume.channels > 1:
        array = np.moveaxis(volume.array if volume.dims == 3 else volume.array[..., None], 0, -1)
    return array.reshape(*array.shape, *[1] * (ndim - array.ndim))


def _is_sitk(image: Any) -> bool:
    sitk = sys.modules.get("SimpleITK")
    return sitk is not None and isinstance(image, sitk.Image)


def _from_sitk(image: Any, spacing_mm: Sequence[float] | None) -> tuple[Volume, Back]:
    import SimpleITK as sitk

    n = image.GetDimension()
    if n not in (2, 3):
        raise Refused("DIM_4D", "SimpleITK image", f"{n} dimensions where one volume is expected", "Extract one volume")
    array = _real(sitk.GetArrayFromImage(image), "SimpleITK image")
    vector = array.ndim > n
    if not vector:
        array = array[..., None]
    affine = np.eye(4)
    affine[:n, :n] = np.reshape(image.GetDirection(), (n, n)) * np.asarray(image.GetSpacing())
    affine[:n, 3] = image.GetOrigin()
    # numpy's axes run the other way round: (z, y, x, c) to (c, x, y, z). One slice becomes a 2D image, as from a file.
    single = n == 3 and array.shape[0] == 1
    volume = Volume(np.ascontiguousarray(array.T[..., 0] if single else array.T), LPS_RAS @ affine)

    def back(result: Volume) -> Any:
        values = (result.array[..., None] if single else result.array).T
        several = vector or result.channels > 1
        made = sitk.GetImageFromArray(
            np.ascontiguousarray(cast(values if several else values[..., 0], array.dtype)), isVector=several
        )
        lps = LPS_RAS @ result.affine
        spacing = np.linalg.norm(lps[:n, :n], axis=0)
        made.SetOrigin(lps[:n, 3].tolist())
        made.SetSpacing(spacing.tolist())
        made.SetDirection((lps[:n, :n] / spacing).ravel().tolist())
        return made

    return volume, back


_Converter = Callable[[Any, Sequence[float] | None], tuple[Volume, Back]]

#: Recogniser -> converter, in the order they are tried.
_KINDS: tuple[tuple[Callable[[Any], bool], _Converter], ...] = (
    (_is_numpy, _from_numpy),
    (_is_metatensor, _from_metatensor),
    (_is_tensor, _from_tensor),
    (_is_nibabel, _from_nibabel),
    (_is_sitk, _from_sitk),
)
