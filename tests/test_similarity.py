"""Images against their reference: MONAI's and scikit-image's figures, explicit kernels, and what masks change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medgan.errors import Refused
from medgan.metrics.similarity import BANDS, hfen, psnr, similarity, spectrum_ratio, ssim

SIZES = [(40, 36), (24, 20, 22)]


def _pair(size: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = np.tanh(ndimage.gaussian_filter(rng.standard_normal(size), 1.2) * 3)
    return reference + 0.1 * rng.standard_normal(size), reference


@pytest.mark.parametrize("size", SIZES)
def test_psnr_and_ssim_are_monais(size: tuple[int, ...]) -> None:
    from monai.metrics import PSNRMetric, SSIMMetric

    image, reference = _pair(size)
    one, other = (torch.from_numpy(values)[None, None] for values in (image, reference))
    assert psnr(image, reference, data_range=2) == pytest.approx(float(PSNRMetric(2.0)(one, other)), rel=1e-6)
    theirs = float(SSIMMetric(len(size), data_range=2.0)(one, other))
    assert ssim(image, reference, data_range=2) == pytest.approx(theirs, abs=1e-4)


def test_a_reference_is_its_own_best() -> None:
    image, reference = _pair((32, 32))
    best = similarity(reference, reference, data_range=2)
    assert best.psnr_db == float("inf") and best.ssim == pytest.approx(1) and best.hfen == 0
    assert best.spectrum == pytest.approx([1] * BANDS)
    worse = similarity(image, reference, data_range=2)
    assert worse.psnr_db == pytest.approx(10 * np.log10(4 / np.mean((image - reference) ** 2)))
    assert worse.ssim < 0.99 and worse.hfen > 0.1 and worse.spectrum[-1] > 2


@pytest.mark.parametrize("size", SIZES)
def test_only_what_is_in_the_mask_counts(size: tuple[int, ...]) -> None:
    image, reference = _pair(size)
    inside = np.zeros(size, bool)
    inside[:12] = True
    # Far from the mask, so that no window reaches there.
    ruined = image.copy()
    ruined[22:] = 5
    for figure in (lambda values, mask: psnr(values, reference, data_range=2, mask=mask),
                   lambda values, mask: ssim(values, reference, data_range=2, mask=mask),
                   lambda values, mask: hfen(values, reference, mask=mask)):
        assert figure(ruined, inside) == pytest.approx(figure(image, inside), rel=1e-9)
        assert figure(ruined, None) != pytest.approx(figure(image, None), rel=0.02)
    assert psnr(image, reference, data_range=2, mask=inside) == pytest.approx(
        10 * np.log10(4 / np.mean((image[:12] - reference[:12]) ** 2)))


def test_the_data_range_is_the_callers() -> None:
    image, reference = _pair((32, 32))
    assert psnr(image, reference, data_range=20) == pytest.approx(psnr(image, reference, data_range=2) + 20)
    assert ssim(10 * image, 10 * reference, data_range=20) == pytest.approx(ssim(image, reference, data_range=2))


def test_hfen_is_that_of_an_explicit_kernel() -> None:
    image, reference = _pair((60, 60))
    # A rotationally symmetric Laplacian of Gaussian of 15 x 15 pixels with a standard deviation of 1.5, summing to 0.
    y, x = np.mgrid[-7:8, -7:8]
    bell = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    kernel = bell / bell.sum() * (x**2 + y**2 - 2 * 1.5**2) / 1.5**4
    kernel -= kernel.mean()
    wrong, there = (ndimage.correlate(values, kernel, mode="reflect") for values in (image - reference, reference))
    expected = np.linalg.norm(wrong) / np.linalg.norm(there)
    assert hfen(image, reference) == pytest.approx(expected, rel=0.02)


def test_hfen_knows_detail_and_not_brightness() -> None:
    _, reference = _pair((40, 40))
    assert hfen(reference + 0.5, reference) == pytest.approx(0, abs=1e-4)
    assert hfen(np.zeros((40, 40)), reference) == pytest.approx(1)
    assert hfen(2 * reference, reference) == pytest.approx(1)
    blurred = [hfen(ndimage.gaussian_filter(reference, sigma), reference) for sigma in (0.5, 1, 2)]
    assert 0 < blurred[0] < blurred[1] < blurred[2] < 1
    assert np.isnan(hfen(reference, np.zeros((40, 40))))


@pytest.mark.parametrize("size", [(256, 256), (48, 48, 48)])
def test_the_spectrum_of_a_blur_is_the_blurs(size: tuple[int, ...]) -> None:
    noise = np.random.default_rng(1).standard_normal(size)
    found = spectrum_ratio(ndimage.gaussian_filter(noise, 1.0, mode="wrap"), noise)
    # The squared transfer function of a Gaussian, in the middle of each band.
    middle = (np.arange(BANDS) + 0.5) / BANDS / 2
    # The lowest bands hold few frequencies, the highest next to no power.
    assert found[1:5] == pytest.approx(np.exp(-((2 * np.pi * middle) ** 2))[1:5], rel=0.12)
    assert (np.diff(found) < 0).all()
    assert spectrum_ratio(3 * noise + 7, noise) == pytest.approx([9] * BANDS)


def test_what_cannot_be_compared_is_refused() -> None:
    image, reference = _pair((32, 32))
    broken = image.copy()
    broken[0, 0] = np.inf
    whole = np.ones((32, 32), bool)
    for given, mask, code in ((image[:-1], None, "DIM_UNSUPPORTED"), (broken, None, "PIX_NONFINITE"),
                              (image, whole[:-1], "LABEL_GRID"), (image, ~whole, "LABEL_EMPTY")):
        with pytest.raises(Refused) as refused:
            psnr(given, reference, data_range=2, mask=mask)
        assert refused.value.code == code
    with pytest.raises(Refused, match="CFG_VALUE"):
        psnr(image, reference, data_range=0)
    with pytest.raises(Refused, match="10 voxels"):
        ssim(image[:10], reference[:10], data_range=2)
