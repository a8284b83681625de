"""What a scan tells about how it was taken: its noise, and the slice profile when nobody names it.

Anatomy looks much the same along every axis, so the sharp in-plane axes of a thick-slice scan show what the slice axis
would look like had its slices been thin. `estimate_profile` degrades an in-plane axis with one slice profile after
another and takes the one after which steps along both axes are equally steep. Steepness is the ratio of the fourth
moments of differences between samples one and two apart: it does not depend on how many edges lie across an axis, which
differs between axes far more than their sharpness does. Only the strength of the blur can be told in this way, not its
shape: a rectangle of width T acts as a Gaussian of 0.68 T does, so the profile named is always a Gaussian.

The idea of comparing the axes of one scan: Zhao et al., "SMORE", IEEE TMI 2021; Han et al., "ESPRESO", MICCAI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgan.imaging.slices import FACTORS, Acquisition, Profile, along

#: A value that more than this part of the voxels share may be air set to one value or stripped skull.
CONSTANT_SHARE = 0.02
#: Tissue starts at this part of the intensity range: in air the noise of a magnitude image is not Gaussian.
TISSUE = 0.1
#: Noise is measured in this part of the tissue, where it is smoothest, and in at least so many voxels.
SMOOTH_SHARE = 0.1
SMOOTH_VOXELS = 500
#: A Gaussian's median absolute value, in standard deviations.
MEDIAN_DEVIATION = 0.6745
#: Voxels looked at, at most; more say nothing new.
NOISE_VOXELS = 1_500_000
PROFILE_VOXELS = 400_000

#: Slices must be this many times farther apart than in-plane pixels, and there must be so many samples of either.
LEAST_RATIO = 1.2
LEAST_SAMPLES = 8
#: Candidate thicknesses, full width at half maximum in slice spacings.
CANDIDATES = np.geomspace(0.35, 1.8, 17)
#: What is known of log(thickness) before the scan is seen: mean and standard deviation. An ideal slice without gap is
#: at 0.68, a Gaussian without gap at 1.0.
PRIOR = (np.log(0.8), 0.35)
#: Standard deviation of the log ratio of steepness along two equally sharp axes of real anatomy; see
#: `benchmarks/estimation.py --fit`.
ANATOMY = 0.11
#: Distances, in samples, over which differences are taken; steepness is the ratio of the nearer to the farther.
LAGS = (1, 2)
#: Groups of lines that are left out in turn to find how much the ratio depends on which lines were seen.
GROUPS = 8
#: A scan whose differences hold less signal than this part of their noise tells nothing.
LEAST_SIGNAL = 0.1
#: What thickness may be off by, as a log ratio: undoing the profile then costs 0.1 to 0.5 dB of PSNR (T1, FLAIR and CT
#: at a factor of 3 without noise), and less under noise.
TOLERANCE = 0.2


@dataclass(frozen=True)
class ProfileEstimate:
    """The slice profile that fits a scan.

    Args:
        profile: The kind to use; always `gaussian`, since the shape cannot be told from a scan.
        thickness: Full width at half maximum, in slice spacings.
        deviation: Standard error of log(`thickness`).
        confidence: Probability, 0 to 1, that the blur's strength is within a log ratio of 0.2 (about 20 %) of that of
            a Gaussian of this thickness; farther off, undoing it costs more than 0.1 to 0.5 dB.
    """

    profile: Profile
    thickness: float
    deviation: float
    confidence: float


def estimate_noise(array: NDArray[Any], axis: int | None = None) -> float:
    """The standard deviation of a scan's white noise, from the smoothest part of its tissue.

    Second differences along all axes but `axis` leave little but noise; their median size where the smoothed image is
    flattest is not moved by the edges that remain. Noise that neighbouring voxels share, as in CT with a smooth
    kernel or after interpolation, is found only as far as it is rough; fine texture counts as noise.

    Args:
        array: (X, Y, Z), any real dtype.
        axis: The axis along which slices are thick, if any: structure is rough along it, so it is left out.

    Returns:
        In the array's unit; 0 where nothing varies or the volume is too small.
    """
    axes = [a for a in range(3) if a != axis and array.shape[a] >= 3]
    if not axes:
        return 0.0
    image = np.asarray(_thinned(array, axis), dtype=np.float32)
    values = image.reshape(-1)[:: max(1, image.size // 300_000)]
    constant = _constant(values)
    shown = values if constant is None else values[values != constant]
    if not shown.size:
        return 0.0
    low, high = np.percentile(shown, (0.1, 99.9))
    residual, smooth = image, image
    slope = np.zeros_like(image)
    for a in axes:
        residual = ndimage.correlate1d(residual, [1.0, -2.0, 1.0], a, mode="nearest") / np.float32(np.sqrt(6.0))
        smooth = ndimage.uniform_filter1d(smooth, 5, a, mode="nearest")
    for a in axes:
        slope += np.square(ndimage.correlate1d(smooth, [-1.0, 0, 0, 0, 0, 0, 1.0], a, mode="nearest"))
    useful = smooth > low + TISSUE * (high - low)
    if constant is not None:
        # Integers share values too; only where neighbours share one as well was nothing measured.
        unmeasured = image == constant
        for a in axes:
            unmeasured = ndimage.minimum_filter1d(unmeasured, 3, a)
        for a in axes:
            unmeasured = ndimage.maximum_filter1d(unmeasured, 7, a)
        useful &= ~unmeasured
    inner = tuple(slice(1, -1) if a in axes else slice(None) for a in range(3))
    useful, slope, residual = useful[inner], slope[inner], residual[inner]
    slopes = slope[useful]
    if slopes.size < 2:
        return 0.0
    count = min(slopes.size, max(SMOOTH_VOXELS, round(SMOOTH_SHARE * slopes.size)))
    limit = np.partition(slopes, count - 1)[count - 1]
    return float(np.median(np.abs(residual[useful & (slope <= limit)])) / MEDIAN_DEVIATION)


def estimate_profile(array: NDArray[Any], spacing_mm: Sequence[float], axis: int,
                     noise: float | None = None) -> ProfileEstimate | None:
    """How thick the slices along `axis` are, from the same scan's in-plane axes.

    Args:
        array: (X, Y, Z), any real dtype.
        spacing_mm: Of the three axes.
        axis: The one along which slices are thick.
        noise: Standard deviation of the white noise, in the array's unit; estimated by default.

    Returns:
        None where the volume cannot tell: no other axis is finer by a fifth, too few slices, or no structure.
    """
    sigma = estimate_noise(array, axis) if noise is None else float(noise)
    found = contrasts(array, spacing_mm, axis, sigma)
    return None if found is None else _posterior(found[0], np.sqrt(found[1] ** 2 + ANATOMY**2))


def contrasts(array: NDArray[Any], spacing_mm: Sequence[float], axis: int,
              noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """How much steeper steps along `axis` are than along in-plane axes degraded with each of the `CANDIDATES`.

    Args: as for `estimate_profile`.

    Returns:
        The mean log ratio over the sharp axes, near 0 for the right candidate, and its standard error in one volume,
        without what anatomy adds; each (candidates,). None where the volume cannot tell.
    """
    others = [a for a in range(3) if a != axis and spacing_mm[axis] >= LEAST_RATIO * spacing_mm[a]]
    found = []
    for a in others:
        ratio = spacing_mm[axis] / spacing_mm[a]
        if array.shape[axis] >= LEAST_SAMPLES and array.shape[a] >= LEAST_SAMPLES * ratio:
            contrast = _contrast(np.transpose(array, (a, 3 - axis - a, axis)), ratio, noise)
            if contrast is not None:
                found.append(contrast)
    if not found:
        return None
    # Both in-plane axes are compared with the same lines along the slice axis, so their errors do not average out.
    value, error = np.mean(found, axis=0)
    return value, error


def _posterior(contrast: NDArray[np.float64], deviation: NDArray[np.float64]) -> ProfileEstimate:
    """Bayes' rule for log(thickness), given each candidate's contrast (which is 0 for the true one) and its error."""
    log_candidates = np.log(CANDIDATES)
    grid = np.linspace(log_candidates[0], log_candidates[-1], 400)
    error = np.interp(grid, log_candidates, contrast)
    sd = np.interp(grid, log_candidates, deviation)
    chance = -0.5 * (error / sd) ** 2 - np.log(sd) - 0.5 * ((grid - PRIOR[0]) / PRIOR[1]) ** 2
    weight = np.exp(chance - chance.max())
    weight /= weight.sum()
    mean = float(weight @ grid)
    spread = float(np.sqrt(weight @ (grid - mean) ** 2))
    confidence = float(weight[np.abs(grid - mean) <= TOLERANCE].sum())
    return ProfileEstimate("gaussian", float(np.exp(mean)), spread, confidence)


def _contrast(lines: NDArray[Any], ratio: float,
              noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Log steepness along the slice axis over that along a degraded in-plane axis, for each candidate.

    Args:
        lines: (X, Y, Z) with the in-plane axis first and the slice axis last.
        ratio: Slice spacing over in-plane spacing.
        noise: Standard deviation.

    Returns:
        The log ratio and its standard error, each (candidates,); None where there is no signal.
    """
    # An axis that is more than eight times finer is averaged first.
    bins = int(np.ceil(ratio / FACTORS[1]))
    if bins > 1:
        length = lines.shape[0] // bins * bins
        lines = lines[:length].reshape(-1, bins, *lines.shape[1:]).mean(axis=1)
        noise, ratio = noise / np.sqrt(bins), ratio / bins
    step = min(max(1, round(lines.size / PROFILE_VOXELS)), max(1, lines.shape[1] // (4 * GROUPS)))
    part = lines[:, step // 2 :: step].astype(np.float64)
    scale = float(part.std())
    if scale <= 0:
        return None
    # Fourth powers of raw values may leave the range of float32.
    part, noise = np.ascontiguousarray(part / scale, dtype=np.float32), noise / scale
    count = max(1, round(part.shape[0] / ratio))
    values, errors = [], []
    for thickness in CANDIDATES:
        matrix = Acquisition(count, ratio, float(thickness), fine=part.shape[0]).matrix
        covariance = matrix @ matrix.T
        # After degrading, noise is weaker, and correlated along the in-plane axis but not along the slice axis.
        variance = np.diag(covariance)
        coarse = along(matrix, part, 0)
        moments = []
        for axis in (0, 2):
            for lag in LAGS:
                between = np.diag(covariance, lag) if axis == 0 else 0.0
                power = noise**2 * float(np.mean(variance[lag:] + variance[:-lag] - 2 * between))
                moments.append(_moments(coarse, axis, lag, power))
        contrast = _steepness(*moments)
        if contrast is None:
            return None
        values.append(contrast[0])
        errors.append(contrast[1])
    return np.array(values), np.array(errors)


def _moments(array: NDArray[np.float32], axis: int, lag: int, power: float) -> NDArray[np.float64]:
    """Fourth moment of differences along axis 0 or 2 of (X, Y, Z), without noise of variance `power`.

    Returns:
        (groups + 1,): leaving out one group of neighbouring Y after the other, and last with none left out; NaN where
        there is no signal.
    """
    moved = np.moveaxis(array, axis, 0)
    square = np.square(moved[lag:] - moved[:-lag])
    across = (0, 2) if axis == 0 else (0, 1)
    sums = np.stack([square.sum(axis=across, dtype=np.float64), np.square(square).sum(axis=across, dtype=np.float64)])
    edges = np.linspace(0, array.shape[1], min(GROUPS, array.shape[1]) + 1).astype(int)
    parts = np.add.reduceat(sums, edges[:-1], axis=1)
    sizes = np.diff(edges) * (square.size // array.shape[1])
    second, fourth = np.append(parts.sum(axis=1, keepdims=True) - parts, parts.sum(axis=1, keepdims=True), axis=1)
    count = np.append(sizes.sum() - sizes, sizes.sum())
    signal = second / count - power
    # The fourth moment of a sum of signal and independent Gaussian noise.
    fourth = fourth / count - 6 * signal * power - 3 * power**2
    told = (signal > LEAST_SIGNAL * power) & (signal > 0) & (fourth > 0)
    return np.where(told, fourth, np.nan)


def _steepness(*moments: NDArray[np.float64]) -> tuple[float, float] | None:
    """Log ratio of steepness and its jackknife error, from the moments in-plane at both lags, then through-plane."""
    near, far, slice_near, slice_far = (np.log(m) for m in moments)
    contrast = (slice_near - slice_far) - (near - far)
    if not np.isfinite(contrast).all():
        return None
    left_out, value = contrast[:-1], float(contrast[-1])
    groups = len(left_out)
    return value, float(np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum()))


def _constant(values: NDArray[Any]) -> Any:
    """The value that many voxels share, or None."""
    distinct, counts = np.unique(values, return_counts=True)
    commonest = int(counts.argmax())
    return distinct[commonest] if counts[commonest] > CONSTANT_SHARE * values.size and distinct.size > 2 else None


def _thinned(array: NDArray[Any], axis: int | None) -> NDArray[Any]:
    """A part of the volume of at most about `NOISE_VOXELS`: every n-th slice, or the middle of the longest axis."""
    if array.size <= NOISE_VOXELS:
        return array
    if axis is not None:
        step = min(round(array.size / NOISE_VOXELS), max(1, array.shape[axis] // 8))
        return array[(slice(None),) * axis + (slice(step // 2, None, step),)]
    longest = int(np.argmax(array.shape))
    length = max(16, array.shape[longest] * NOISE_VOXELS // array.size)
    start = (array.shape[longest] - length) // 2
    return array[(slice(None),) * longest + (slice(start, start + length),)]
