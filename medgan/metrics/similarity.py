"""How near an image is to its own reference: PSNR, SSIM, HFEN and the ratio of their power spectra.

For super-resolution and other cases with a truth. Everything takes one channel, 2D or 3D, a fixed data range (a range
taken from each image would change the figure with the image) and, where only tissue counts, a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import binned_statistic
from skimage.metrics import mean_squared_error, structural_similarity

from medgan.errors import Refused

#: Standard deviation of the Laplacian of Gaussian, and half of its 15 voxel window (Ravishankar and Bresler 2011).
SIGMA, HALF_WINDOW = 1.5, 7
#: Of SSIM's Gaussian window, in voxels, as Wang et al. (2004) have it; skimage cuts it at 3.5 of these.
SSIM_SIGMA = 1.5
#: Bands of the power spectrum, from 0 to half a cycle a voxel.
BANDS = 8

Image = NDArray[np.floating]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Similarity:
    """How near an image is to its reference.

    Args:
        psnr_db: Peak signal to noise ratio; infinite where both are the same.
        ssim: Mean structural similarity, at most 1.
        hfen: Norm of the difference of fine detail over the reference's; 0 is best.
        spectrum: (`BANDS`,) power over the reference's, from coarse to fine; below 1 is blur, above it noise.
    """

    psnr_db: float
    ssim: float
    hfen: float
    spectrum: tuple[float, ...]


def similarity(image: Image, reference: Image, *, data_range: float, mask: Mask | None = None) -> Similarity:
    """All of them; arguments as for `psnr`."""
    return Similarity(psnr(image, reference, data_range=data_range, mask=mask),
                      ssim(image, reference, data_range=data_range, mask=mask), hfen(image, reference, mask=mask),
                      tuple(spectrum_ratio(image, reference).tolist()))


def psnr(image: Image, reference: Image, *, data_range: float, mask: Mask | None = None) -> float:
    """Peak signal to noise ratio in dB, infinite where both are the same.

    Args:
        image: (X, Y[, Z]).
        reference: The truth, of the same shape.
        data_range: Difference of the largest and least possible value: 2 for network values.
        mask: Voxels that count; None: all.

    Raises:
        Refused: Another shape, values that are not finite, an empty mask, or a data range that is not positive.
    """
    one, other, inside = _checked(image, reference, mask, data_range)
    error = mean_squared_error(other[inside], one[inside])
    return float(10 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(image: Image, reference: Image, *, data_range: float, mask: Mask | None = None) -> float:
    """Mean structural similarity (Wang et al. 2004) over the mask; arguments as for `psnr`.

    Windows reach beyond the mask's edge. Without a mask, those that reach beyond the image's edge do not count.
    """
    one, other, inside = _checked(image, reference, mask, data_range)
    reach = int(3.5 * SSIM_SIGMA + 0.5)
    if min(one.shape) <= 2 * reach:
        raise Refused("DIM_UNSUPPORTED", "image", f"of {' x '.join(map(str, one.shape))} voxels",
                      f"SSIM needs more than {2 * reach} voxels along each axis")
    mean, everywhere = structural_similarity(other, one, data_range=data_range, gaussian_weights=True, full=True,
                                             sigma=SSIM_SIGMA, use_sample_covariance=False)
    return float(everywhere[inside].mean()) if mask is not None else float(mean)


def hfen(image: Image, reference: Image, *, mask: Mask | None = None) -> float:
    """High-frequency error norm (Ravishankar and Bresler 2011) over the mask.

    The Laplacian of Gaussian of the difference, over that of the reference, both as Euclidean norms: 0 where all fine
    detail is there, about 1 where none is. NaN where the reference has none either.
    """
    one, other, inside = _checked(image, reference, mask, 1.0)
    wrong, there = (ndimage.gaussian_laplace(values, SIGMA, truncate=HALF_WINDOW / SIGMA)[inside]
                    for values in (one - other, other))
    below = float(np.linalg.norm(there))
    return float(np.linalg.norm(wrong)) / below if below > 0 else float("nan")


def spectrum_ratio(image: Image, reference: Image, bands: int = BANDS) -> NDArray[np.float64]:
    """(bands,) the image's power over the reference's, by frequency from 0 to half a cycle a voxel.

    Radial means of the squared Fourier transform of images less their mean, under a Hann window: what does not match
    at opposite edges would else leak into all bands. NaN where the reference has no power, or a small image no
    frequency.
    """
    one, other, _ = _checked(image, reference, None, 1.0)
    grids = np.meshgrid(*[np.fft.fftfreq(length) for length in one.shape], indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    window = np.ones(one.shape)
    for axis, length in enumerate(one.shape):
        # Without the zeros at both ends.
        window = window * np.expand_dims(np.hanning(length + 2)[1:-1], [a for a in range(one.ndim) if a != axis])
    power = [np.abs(np.fft.fftn((values - values.mean()) * window)) ** 2 for values in (one, other)]
    sums = [binned_statistic(radius.ravel(), values.ravel(), "sum", bands, (0.0, 0.5)).statistic for values in power]
    return np.asarray(np.divide(sums[0], sums[1], out=np.full(bands, np.nan), where=sums[1] > 0))


def _checked(image: Image, reference: Image, mask: Mask | None, data_range: float
             ) -> tuple[NDArray[np.float64], NDArray[np.float64], Mask]:
    one, other = (np.asarray(values, np.float64) for values in (image, reference))
    if one.shape != other.shape or one.ndim not in (2, 3):
        raise Refused("DIM_UNSUPPORTED", "image", f"of shape {one.shape} beside a reference of {other.shape}",
                      "Give one channel of both, 2D or 3D, on one grid")
    inside = np.ones(one.shape, bool) if mask is None else np.asarray(mask, bool)
    if inside.shape != one.shape:
        raise Refused("LABEL_GRID", "mask", f"of shape {inside.shape} beside an image of {one.shape}",
                      "Give the mask on the image's grid")
    if not inside.any():
        raise Refused("LABEL_EMPTY", "mask", "it holds no voxel", "Give a mask of what counts, or none")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise Refused("PIX_NONFINITE", "image", "it or its reference has values that are not finite",
                      "Replace them, or leave the image out")
    if not (np.isfinite(data_range) and data_range > 0):
        raise Refused("CFG_VALUE", "data_range", f"{data_range} is no range",
                      "Give the largest possible value less the least, 2 for network values")
    return one, other, inside
