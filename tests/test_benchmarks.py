"""The benchmark scripts of upsampling run on phantoms, and their measures notice what they are there to notice."""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import medgan
from medgan.datasets.phantoms import phantom
from medgan.imaging.slices import Acquisition
from medgan.imaging.volume import Volume

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Any:
    """Imports a script of `benchmarks/` by name."""
    if not FOLDER.is_dir():
        pytest.skip("no benchmarks beside the tests")
    sys.path.insert(0, str(FOLDER))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def truth() -> Volume:
    image = phantom("mr", 3, shape=(40, 44, 48))[0]
    return replace(image, array=image.array.astype(np.float32))


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{
        "data": Path(), "model": None, "device": "cpu", "quick": True, "adapt": False, "threads": 1, "methods": None,
        "psnr_only": False, "soupgan_python": None, "soupgan_weights": None} | given)


def test_a_phantom_goes_through_the_whole_measurement(scripts: Any, truth: Volume,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    upsample, tables = scripts("upsample"), scripts("upsample_tables")
    monkeypatch.setattr(upsample, "t2_phantom", lambda: truth)
    scan = upsample.Scan("T2 phantom", "phantom", "", phantom=True)
    titles = {key: kind.title for key, kind in upsample.INPUTS.items()}
    rows = [upsample.measure(scan, key, options()) for key in ("gauss3", "iso2")]
    for row in rows:
        found = {name: told["psnr"] for name, told in row["methods"].items()}
        assert set(found) == {"linear", "cubic", "Lanczos-3", "Tikhonov, best", "Tikhonov", "Tikhonov auto", "network",
                              "network auto"}
        assert found["linear"] < found["cubic"] < found["Tikhonov, best"] < found["linear"] + 10
    assert 0 < rows[0]["methods"]["cubic"]["ssim"] < rows[0]["methods"]["Tikhonov"]["ssim"] < 1
    # A phantom enters no mean; a real volume does.
    assert not tables.gains(rows, "network", "cubic")
    real = [dict(row, phantom=False) for row in rows]
    text = tables.everything(real, titles, upsample.MAIN)
    assert "| isotropic ×2 | +" in text and "network below cubic: 0 of 2" in text and "SSIM" in text


@pytest.mark.parametrize("key", ["gauss3", "rect3", "gap3", "noise4", "iso2"])
def test_interpolation_and_tikhonov_are_on_the_right_grid(scripts: Any, key: str) -> None:
    upsample, peers = scripts("upsample"), scripts("upsample_peers")
    kind = upsample.INPUTS[key]
    factors = kind.factors(2)
    # A plane that rises along every axis comes back as it was, but for the ends, on the right grid only.
    x, y, z = np.meshgrid(*(np.arange(24.0),) * 3, indexing="ij")
    truth = Volume((x + 2 * y + 3 * z)[None].astype(np.float32), np.eye(4))
    thick = upsample.thicken(truth, 2, kind, 0.0)
    inner = (slice(9, -9),) * 3
    scans = [Acquisition(n, f, kind.width / kind.factor, kind.profile)
             for n, f in zip(thick.shape, factors, strict=True)]
    smooth, _ = peers.best_tikhonov(thick.array[0], scans,
                                    lambda image: -float(np.square(image - truth.array[0])[inner].mean()))
    for made in (peers.spline(thick.array[0], factors, 1), peers.spline(thick.array[0], factors, 3),
                 peers.lanczos(thick.array[0], factors), smooth):
        assert made.shape == truth.shape
        assert np.abs(made - truth.array[0])[inner].max() < 0.5  # a third of a voxel off is 1
    told = kind.told(truth, 2)
    assert told["profile"] == kind.profile
    assert told.get("thickness", kind.factor) == kind.width


def test_a_shift_is_found_and_taken_out(scripts: Any, truth: Volume) -> None:
    from scipy import ndimage

    peers = scripts("upsample_peers")
    sharp = ndimage.gaussian_filter(truth.array[0], 1.0)
    mask = sharp > 50
    away = ndimage.shift(sharp, (0, 0, 0.7), order=3, mode="nearest")
    back, shift = peers.unshifted(away, sharp, mask, 2)
    assert shift == pytest.approx(-0.7, abs=0.05)
    assert np.square(back - sharp)[mask].mean() < 0.05 * np.square(away - sharp)[mask].mean()
    same, none = peers.unshifted(sharp, sharp, mask, 2)
    assert none == 0.0 and same is sharp


def test_intervals_draw_people_and_not_volumes(scripts: Any) -> None:
    tables = scripts("upsample_tables")
    one = {("a", str(n)): 1.0 for n in range(9)} | {("b", "x"): 3.0}
    low, high = tables.interval(one)
    assert (low, high) == (1.0, 3.0)


def test_a_pattern_at_the_slices_frequency_is_noticed(scripts: Any, truth: Volume) -> None:
    speed = scripts("upsample_speed")
    image = truth.array[0]
    mask = image > 50
    clean = speed.periodicity(image, image, mask, 2, 3)[1]
    assert clean[0] == pytest.approx(1.0) and clean[1] == clean[2]
    # A twentieth of the contrast, on every third slice; the phantom's own noise hides less.
    striped = image + 0.05 * image.std() * (np.arange(image.shape[2]) % 3 == 0)
    assert speed.periodicity(striped.astype(np.float32), image, mask, 2, 3)[1][1] > 1.05 * clean[1]


def test_the_plain_way_and_small_blocks_give_the_same_result(scripts: Any, truth: Volume) -> None:
    upsample, speed = scripts("upsample"), scripts("upsample_speed")
    thick = upsample.thicken(truth, 2, speed.KIND, 0.0)
    made = speed.enhance(thick, None)
    linear = medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", method="linear").array[0]
    drawn = float(np.abs(made - linear).max())
    assert drawn > 0
    with speed.plainly(None, 4):
        plain = speed.enhance(thick, None)
    assert 0 < float(np.abs(plain - made).max()) < 0.2 * drawn
    slabs: list[int] = []
    with speed.small_blocks(20_000, 500):
        medgan.upsample(thick, factor=(1, 1, 3), profile="gaussian", device="cpu",
                        progress=lambda now: slabs.append(now.total or 0))
    assert max(slabs) > 1
    assert speed.seams(thick, None, made, 20_000, 500) < 1e-3 * float(np.ptp(truth.array))


def test_a_ct_of_any_size_is_written(scripts: Any, tmp_path: Path) -> None:
    memory = scripts("memory")
    memory.write_ct(tmp_path / "ct.nii", (70, 30, 40))
    image = medgan.read(tmp_path / "ct.nii")
    assert image.shape == (70, 30, 40) and image.array.dtype == np.int16
    assert image.spacing_mm == pytest.approx(memory.CT_SPACING)
    assert image.array.min() < -800 and image.array.max() > 100
