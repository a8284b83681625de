"""The image task: class-conditional images in 2D and 3D, and their way back to raw values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning import loop
from medgan.learning.checkpoints import open_run
from medgan.learning.task import Batch
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
        "training.images": 400, "training.rate": 1e-3, "training.report_images": 10_000, "training.ema_images": 200})
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


class Squares:
    """Grey images with a bright square (class 1: a dark one), whose place the label map tells."""

    interface: ClassVar[dict[str, Any]] = {
        "channels": 1, "classes": ["bright", "dark"], "size": [16, 16], "maps": ["background", "square"]}

    def __init__(self, config: Config) -> None:
        rng = np.random.default_rng(0)
        self.config, self.labels = config, np.arange(64) % 2
        square = np.zeros((64, 16, 16), np.float32)
        for row, (x, y) in zip(square, rng.integers(0, 10, (64, 2)), strict=True):
            row[x : x + 6, y : y + 6] = 1
        self.maps = np.stack([1 - square, square], axis=1)
        self.images = ((1 - 2 * self.labels)[:, None, None] * 0.8 * square
                       + 0.1 * rng.standard_normal(square.shape))[:, None].astype(np.float32)

    def of_class(self, index: int) -> NDArray[np.float32]:
        return np.asarray(self.images[self.labels == index])

    def maps_of_class(self, index: int) -> NDArray[np.float32] | None:
        return np.asarray(self.maps[self.labels == index]) if self.config.network.label_maps else None

    def batch(self, step: int) -> Batch:
        rows = np.random.default_rng([1, step]).integers(64, size=self.config.training.batch)
        found = {"image": torch.from_numpy(self.images[rows]), "class": torch.from_numpy(self.labels[rows])}
        return found | ({"map": torch.from_numpy(self.maps[rows])} if self.config.network.label_maps else {})


def squares(**settings: Any) -> tuple[ImageTask, Squares]:
    """A small task on squares, without label maps unless these are asked for."""
    config = Config.resolve("xray", "image", settings={
        "network.width": 8, "network.latent": 8, "training.batch": 16, "training.images": 1200, "training.rate": 3e-3,
        "training.precision": "fp32", "training.report_images": 10_000, "training.ema_images": 200,
        **{name.replace("__", "."): value for name, value in settings.items()}})
    torch.manual_seed(0)
    source = Squares(config)
    return ImageTask(config, source.interface), source


def taught(task: ImageTask, source: Squares) -> torch.nn.Module:
    """The averaged generator after a short training."""
    state = loop.State.fresh(task, source.config.training)
    for _ in loop.train(state, source, source.config):
        pass
    return state.average


def test_classes_are_heard_after_a_little_training() -> None:
    task, source = squares()
    generator = taught(task, source)
    bright, dark = (sample(generator, index, 32, 0).mean() for index in (0, 1))
    real = [source.of_class(index).mean() for index in (0, 1)]
    assert bright - dark > 0.5 * (real[0] - real[1])


def test_made_images_follow_a_label_map() -> None:
    task, source = squares(network__label_maps=True)
    generator = taught(task, source)
    own = source.maps[source.labels == 0]
    made, square = sample(generator, 0, len(own), 0, maps=own)[:, 0], own[:, 1]

    def contrast(where: NDArray[np.float32]) -> float:
        return float((made * where).sum() / where.sum() - (made * (1 - where)).sum() / (1 - where).sum())

    assert contrast(square) > 0.25 > 0.12 > abs(contrast(np.roll(square, 8, axis=(1, 2))))
    assert task.sheet(generator, source).std() > 0


def test_both_players_see_the_same_made_images_and_each_pair_augmented_alike() -> None:
    task, source = squares(training__ada_cap=0.8)
    batch = source.batch(0)
    task.probability.fill_(0.8)
    real, made = task._seen(batch, batch["image"] + 0)
    assert torch.equal(real, made) and not torch.equal(real, batch["image"])
    task.loss("discriminator", batch)
    assert task._made is not None
    kept, drawn = task._made[1], []
    task._make = lambda batch: drawn.append(batch)  # type: ignore[assignment, return-value]
    task.loss("generator", batch)
    assert not drawn and task._made is None and kept.requires_grad


def test_each_player_moves_only_itself() -> None:
    task, source = squares()
    batch = source.batch(0)
    for player, network in task.players.items():
        for other in task.players.values():
            other.requires_grad_(other is network)
        task.zero_grad(set_to_none=True)
        task.loss(player, batch)[0].backward()
        moved = {name for name, net in task.players.items() if any(p.grad is not None for p in net.parameters())}
        assert moved == {player}


@pytest.mark.parametrize(("sure", "direction"), [(True, 1), (False, -1)])
def test_p_follows_how_sure_the_discriminator_is(sure: bool, direction: int) -> None:
    task, source = squares(training__ada_target=-1 if sure else 1)
    task.probability.fill_(0.4)
    _, parts = task.loss("discriminator", source.batch(0))
    assert float(parts["p"]) == pytest.approx(0.4 + direction * 16 / 8000)
    assert "probability" in task.state_dict(), "a resumed run would begin without augmentation"
    task.ada_floor.fill_(0.6)
    assert float(task.loss("discriminator", source.batch(1))[1]["p"]) == pytest.approx(0.6)


def test_the_penalty_grows_by_its_scale_and_is_that_of_the_setting() -> None:
    task, source = squares(training__gamma=4.0)
    torch.nn.init.normal_(task.discriminator.whole.weight)

    def paid() -> float:
        torch.manual_seed(0)
        total, parts = task.loss("discriminator", source.batch(0))
        return float(total.detach() - parts["game"].detach())

    once = paid()
    task.penalty_scale.fill_(3)
    assert once > 0 and paid() == pytest.approx(3 * once, rel=1e-4)
    free, _ = squares(training__penalty="none")
    total, parts = free.loss("discriminator", source.batch(0))
    assert float(total.detach()) == float(parts["game"].detach()) and "r1" not in parts


def test_a_probe_holds_as_many_made_as_real_images_of_each_class() -> None:
    task, source = squares(network__label_maps=True)
    probe = task.probe(task.generator, source, 20)
    assert probe.made.shape == probe.real.shape == (20, 1, 16, 16)
    assert np.array_equal(probe.made_classes, probe.real_classes) and set(probe.made_classes) == {0, 1}
    assert np.array_equal(probe.made, task.probe(task.generator, source, 20).made)
    assert len(task.probe(task.generator, source, 400).real) == 64
