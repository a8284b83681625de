"""Intensity maps invert exactly on what they did not clip."""

from __future__ import annotations

import numpy as np
import pytest

from medgan.config import Config, Intensity
from medgan.imaging.intensity import IntensityMap, foreground, intensity_maps

MODALITIES = ("ct", "mr", "xray", "us")


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_every_unclipped_value_comes_back_exactly(modality: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(60, 40, (1, 20, 20, 10))
    array = np.clip(values, 0, 255).astype(dtype) if dtype != np.float32 else values.astype(dtype)
    values_map = intensity_maps(array, Config.resolve(modality).intensity)[0]
    mapped = values_map.forward(array[0])
    assert mapped.min() >= -1 and mapped.max() <= 1
    kept = (array[0] >= values_map.raw[0]) & (array[0] <= values_map.raw[-1])
    assert kept.mean() > 0.9
    assert np.array_equal(values_map.inverse(mapped, dtype)[kept], array[0][kept])


def test_ct_gives_every_hounsfield_unit_back() -> None:
    hu = np.arange(-1024, 1501, dtype=np.int16)
    values_map = intensity_maps(hu.reshape(1, 1, -1), Config.resolve("ct").intensity)[0]
    assert np.array_equal(values_map.inverse(values_map.forward(hu), np.int16), hu)
    assert np.array_equal(values_map.inverse(values_map.forward(hu, np.float32), np.int16), hu)
    # A liver lesion 60 HU under the liver must be more than a trace to the network.
    assert values_map.forward(np.array(105.0)) - values_map.forward(np.array(45.0)) > 0.12


def test_the_map_is_per_channel_and_ignores_constant_background() -> None:
    rng = np.random.default_rng(1)
    brain = rng.normal(100, 10, (30, 30, 30)).astype(np.float32)
    brain[:20] = 0
    maps = intensity_maps(np.stack([brain, brain * 3 + 7]), Intensity(percentiles=(1, 99)))
    assert maps[0].raw[0] > 60 and maps[1].raw[0] == pytest.approx(maps[0].raw[0] * 3 + 7, rel=1e-3)
    assert foreground(brain).min() > 0


def test_outside_the_knots_the_inverse_goes_on_and_integers_do_not_wrap() -> None:
    values_map = IntensityMap((0.0, 100.0, 300.0), (-1.0, 0.0, 1.0))
    assert values_map.inverse(np.array([-1.5, 1.5])) == pytest.approx([-50, 400])
    assert values_map.inverse(np.array([-9.0, 9.0]), np.uint8).tolist() == [0, 255]


def test_constant_images_and_bad_knots() -> None:
    values_map = intensity_maps(np.full((1, 4, 4), 7, np.int16), Intensity())[0]
    assert np.isfinite(values_map.forward(np.array([7.0]))).all()
    with pytest.raises(ValueError, match="rise"):
        IntensityMap((0.0, 0.0), (-1.0, 1.0))
