"""The image task: class-conditional images in 2D and 3D, and their way back to raw values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning import loop
from medgan.learning.checkpoints import open_run
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.image_source import made_volume, sample


def test_the_source_balances_classes_and_keeps_values(xray_classes: Path, tiny: dict[str, object]) -> None:
    source = ImageTask.source(open_dataset(xray_classes), Config.resolve("xray", "image", settings=tiny))
    assert source.interface["classes"] == ["normal", "opacity"] and source.interface["size"] == [32, 32]
    assert source.images.shape == (8, 1, 32, 32) and np.abs(source.images).max() <= 1
    drawn = torch.cat([source.batch(step)["class"] for step in range(40)])
    assert 0.4 < drawn.float().mean() < 0.6
    assert torch.equal(source.batch(2)["image"], source.batch(2)["image"])


def test_three_dimensional_images_are_learned_by_the_same_code(mr_set: Path, tiny: dict[str, object]) -> None:
    config = Config.resolve("mr", "image", settings=tiny | {"data.dims": 3, "data.crop": 16, "training.images": 16})
    source = ImageTask.source(open_dataset(mr_set), config)
    assert len(source.interface["size"]) == 3 and max(source.interface["size"]) == 16
    task = ImageTask(config, source.interface)
    state = loop.State.fresh(task, config.training)
    steps = list(loop.train(state, source, config))
    assert steps[-1].images == 16 and np.isfinite(list(steps[-1].parts.values())).all()
    assert sample(state.average, 0, 2, 0).shape == (2, 1, *source.interface["size"])
    assert task.sheet(state.average, source).std() > 0


def test_training_pulls_made_images_towards_the_real_ones(xray_classes: Path, tiny: dict[str, object]) -> None:
    config = Config.resolve("xray", "image", settings=tiny | {
        "training.images": 800, "training.rate": 1e-3, "training.report_images": 10_000, "training.ema_images": 200})
    source = ImageTask.source(open_dataset(xray_classes), config)
    torch.manual_seed(0)
    state = loop.State.fresh(ImageTask(config, source.interface), config.training)

    def distance() -> float:
        made = np.concatenate([sample(state.average, index, 8, 0) for index in (0, 1)])
        return float(np.abs(made.mean(axis=0) - source.images.mean(axis=0)).mean())

    before = distance()
    for _ in loop.train(state, source, config):
        pass
    assert distance() < 0.6 * before


def test_made_images_have_the_templates_grid_type_and_range(image_run: Path, xray_classes: Path) -> None:
    run = open_run(image_run)
    dataset = open_dataset(xray_classes)
    template, _ = dataset.load(dataset.cases[0])
    generator = run.generator()
    made = made_volume(generator, run, "normal", template, 3)
    assert made.array.dtype == template.array.dtype and made.shape == template.shape
    assert np.array_equal(made.affine, template.affine)
    again = made_volume(generator, run, "normal", template, 3)
    assert np.array_equal(made.array, again.array)
    assert not np.array_equal(made.array, made_volume(generator, run, "normal", template, 4).array)


def test_a_3d_network_refuses_2d_images(xray_classes: Path, tiny: dict[str, object]) -> None:
    config = Config.resolve("xray", "image", settings=tiny | {"data.dims": 3})
    with pytest.raises(Refused) as refused:
        ImageTask.source(open_dataset(xray_classes), config)
    assert refused.value.code == "DIM_UNSUPPORTED" and "data.dims=2" in str(refused.value)
