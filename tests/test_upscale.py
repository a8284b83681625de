"""The upscale task: where it learns from, that it starts as the linear method, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medgan.config import Config
from medgan.datasets.phantoms import phantom
from medgan.errors import Refused
from medgan.imaging.intensity import IntensityMap
from medgan.imaging.refine import Pass
from medgan.imaging.slices import Acquisition, along
from medgan.imaging.volume import Volume
from medgan.learning import checkpoints
from medgan.learning.loop import State, train
from medgan.learning.sharpening import Sharpener
from medgan.learning.task import Batch
from medgan.learning.tasks import TASKS
from medgan.learning.tasks.upscale import UpscaleTask
from medgan.learning.tasks.upscale_source import CONDITION, EQUIVALENT, Plan, UpscaleSource

QUICK = {"network.width": 8, "training.batch": 8, "data.crop": 24, "training.rate": 3e-3, "training.beta1": 0.9,
         "training.images": 320, "training.precision": "fp32", "device": "cpu", "loss.adversarial": 0}


def settings(dims: int = 2, **more: object) -> Config:
    return Config.resolve("mr", "upscale", settings=QUICK | {"data.dims": dims} | more)


@pytest.fixture(scope="module")
def head() -> Volume:
    return phantom("mr", 3, shape=(64, 72, 56), spacing_mm=(1.6, 1.6, 1.6))[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_batches_are_a_pure_function_of_the_step(head: Volume, dims: int) -> None:
    source = UpscaleSource.from_volumes([head], settings(dims))
    for step in range(8):
        batch, again = source.batch(step), source.batch(step)
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        thick, base = batch["thick"], batch["base"]
        planes = 3 if dims == 2 else 1
        assert thick.shape[:2] == (8, planes) and thick.ndim == 2 + dims
        assert base.shape == batch["truth"].shape == (8, 1, batch["position"].shape[1], *thick.shape[3:])
        assert batch["condition"].shape == (8, CONDITION)
        rows = batch["position"].shape[1]
        assert batch["matrix"].shape == (8, thick.shape[2], rows) and batch["back"].shape == (8, rows, thick.shape[2])
        judged = UpscaleTask.judged(base, batch).shape[2]
        assert int(batch["inside"][0].sum()) == judged < rows
        assert all(tensor.isfinite().all() and len(tensor) == 8 for tensor in batch.values())
    assert not torch.equal(source.batch(0)["truth"], source.batch(1)["truth"])


def test_base_and_truth_lie_on_the_same_grid(head: Volume) -> None:
    """A shift by one voxel either way fits worse: no half-voxel error creeps in at any factor."""
    source = UpscaleSource.from_volumes([head], settings())
    errors = np.zeros(3)
    for step in range(12):
        batch = source.batch(step)
        base, truth = batch["base"][:, 0, 1:-1], batch["truth"][:, 0]
        for number in range(3):
            errors[number] += float((base - truth[:, number : number + base.shape[1]]).abs().mean())
    assert errors[1] < 0.9 * min(errors[0], errors[2])


def test_only_sharp_axes_are_learned_from() -> None:
    rng = np.random.default_rng(0)
    thick = Volume(rng.normal(size=(1, 40, 44, 30)).astype(np.float32), np.diag([1.0, 1.1, 4.0, 1.0]))
    assert [scan.axes for scan in UpscaleSource.from_volumes([thick], settings()).scans] == [(0, 1)]
    planar = Volume(rng.normal(size=(1, 40, 44)).astype(np.float32))
    assert UpscaleSource.from_volumes([planar], settings()).batch(0)["thick"].shape[1] == 3
    with pytest.raises(Refused, match="DATASET_EMPTY"):
        UpscaleSource.from_volumes([Volume(np.ones((1, 8, 9, 10), np.float32))], settings())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generator_starts_as_the_linear_method(head: Volume, dims: int) -> None:
    config = settings(dims)
    source = UpscaleSource.from_volumes([head], config)
    batch = source.batch(0)
    task = UpscaleTask(config, source.interface)
    torch.testing.assert_close(task.draw(batch), task.judged(batch["base"], batch), rtol=0, atol=1e-6)


def test_the_tail_can_be_read_anywhere() -> None:
    generator = UpscaleTask(settings(), {}).generator
    torch.nn.init.normal_(generator.head.weight)  # type: ignore[arg-type]
    thick, told = torch.randn(1, 3, 10, 12), torch.zeros(1, CONDITION)
    coarse = torch.from_numpy(Acquisition(10, 2.0).positions).float()
    fine = torch.from_numpy(Acquisition(10, 6.0).positions).float()
    with torch.no_grad():
        few, many = generator(thick, told, coarse), generator(thick, told, fine)
    assert few.shape == (1, 1, 20, 12)
    torch.testing.assert_close(few, many[:, :, 1::3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_reach_is_as_far_as_said(dims: int) -> None:
    generator = UpscaleTask(settings(dims), {}).generator
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    reach = generator.reach
    length = 2 * reach + 5
    thick = torch.zeros(1, generator.planes, *[length] * 2, *[4] * (dims - 2))
    touched = thick.clone()
    touched[:, :, reach + 2, reach + 2] += 100
    position = torch.arange(length) + 0.5
    with torch.no_grad():
        told = torch.zeros(1, CONDITION)
        change = (generator(thick, told, position) - generator(touched, told, position)).abs().amax(dim=(0, 1))
    moved = (change if dims == 2 else change.amax(dim=2)).amax(dim=1).nonzero()
    assert int(moved.min()) >= 2 and int(moved.max()) <= length - 3


class SameBatch:
    """A source of one batch only."""

    def __init__(self, source: UpscaleSource) -> None:
        self.interface, self.only = source.interface, source.batch(4)

    def batch(self, step: int) -> Batch:
        return self.only


@pytest.mark.parametrize("dims", [2, 3])
def test_a_few_steps_lower_the_loss(head: Volume, dims: int) -> None:
    config = settings(dims, **{"training.batch": 2, "data.crop": 16, "training.images": 60})
    source = SameBatch(UpscaleSource.from_volumes([head], config))
    torch.manual_seed(0)
    state = State.fresh(UpscaleTask(config, source.interface), config.training)
    losses = [step.parts["generator/fidelity"] for step in train(state, source, config)]
    assert len(losses) == 30
    assert losses[-1] < 0.9 * losses[0]


def test_a_discriminator_plays_when_asked(head: Volume) -> None:
    config = settings(**{"loss.adversarial": 1, "training.images": 32})
    source = UpscaleSource.from_volumes([head], config)
    task = UpscaleTask(config, source.interface)
    assert list(task.players) == ["discriminator", "generator"]
    last = list(train(State.fresh(task, config.training), source, config))[-1]
    assert {"discriminator/r1", "discriminator/r2", "generator/adversarial"} <= set(last.parts)
    assert list(UpscaleTask(settings(), source.interface).players) == ["generator"]


def test_the_sheet_is_a_picture(head: Volume) -> None:
    config = settings()
    source = UpscaleSource.from_volumes([head], config)
    task = UpscaleTask(config, source.interface)
    sheet = task.sheet(task.generator, source)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.std() > 10


@pytest.mark.parametrize("dims", [2, 3])
def test_a_run_sharpens_in_blocks_of_any_size(head: Volume, dims: int, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(dims)
    source = UpscaleSource.from_volumes([head], config)
    run = checkpoints.create_run(tmp_path / "run", config, source.interface, {})
    generator = TASKS["upscale"](config, source.interface).generator
    torch.manual_seed(1)
    torch.nn.init.normal_(generator.head.weight, std=0.05)  # type: ignore[arg-type]
    checkpoints.save_weights(generator, run.path / checkpoints.WEIGHTS, {})
    sharpener = Sharpener.open(run.path, "cpu")
    scan = Acquisition(14, 3.0)
    thick = along(Acquisition(14, 4.0, fine=56).matrix, head.array, 3)
    step = Pass(2, scan, (1.6, 1.6, 6.4), slice(0, 14), slice(0, 42))
    results = []
    for voxels in (10**9, 14 * 20 * (20 if dims == 3 else 1)):
        monkeypatch.setattr("medgan.learning.sharpening.VOXELS", {dims: voxels})
        linear = np.zeros((64, 72, 42), np.float32)
        sharpener.add(linear, thick[0], source.scans[0].maps[0], step)
        results.append(linear)
    assert results[0].std() > 1
    assert np.abs(results[0] - results[1]).max() < 1e-2 * np.abs(results[0]).max()  # bfloat16 where the CPU has it


def test_the_last_step_agrees_with_the_slices_where_they_are_trusted(head: Volume) -> None:
    config = settings()
    task = UpscaleTask(config, {})
    batch = UpscaleSource.from_volumes([head], config).batch(1)
    batch["inside"][:] = 1
    slices = batch["thick"][:, 1]

    def disagreement() -> float:
        with torch.no_grad():
            return float((batch["matrix"] @ task.draw(batch)[:, 0] - slices).square().mean().sqrt())

    before = disagreement()
    torch.nn.init.constant_(task.generator.trust.bias, 1.0)
    assert disagreement() < 0.5 * before
    torch.nn.init.constant_(task.generator.trust.bias, 0.5)
    assert 0.5 * disagreement() < before < 2.5 * disagreement()


def test_what_is_told_is_the_truth_or_marked_as_a_guess(head: Volume) -> None:
    """Certain takes name the profile they were taken with; the others a width that is off by about what was meant."""
    rng = np.random.default_rng(0)
    plan = Plan(3.0, 1.0, 3.0, 20, 24, 2)
    takes = [plan.take(rng) for _ in range(400)]
    sure = [take for take in takes if take.told.certain]
    assert 0.5 < len(sure) / len(takes) < 0.8
    assert all((t.told.profile, t.told.thickness) == (t.true.profile, t.true.thickness) for t in sure)
    off = [np.log(t.told.thickness * EQUIVALENT[t.told.profile] / t.true.thickness / EQUIVALENT[t.true.profile])
           for t in takes if not t.told.certain]
    assert 0.08 < np.std(off) < 0.25 and abs(np.mean(off)) < 0.1


def test_nothing_is_drawn_in_the_background(head: Volume) -> None:
    sharpener = Sharpener.open(None, "cpu")
    scan = Acquisition(14, 3.0)
    thick = np.full((90, 40, 14), -1.0, np.float32)
    thick[:10, :10] = np.random.default_rng(0).uniform(-1, 1, (10, 10, 14))
    linear = along(scan.inverse, thick, 2)
    before = linear.copy()
    step = Pass(2, scan, (1.0, 1.0, 3.0), slice(0, 14), slice(0, 42))
    spread = sharpener.add(linear, thick, IntensityMap((-1.0, 1.0), (-1.0, 1.0)), step, spread=True)
    reach = sharpener.generator.reach
    assert spread is not None and spread[:10, :10].max() > 0.01
    assert np.abs(linear - before)[:10, :10].max() > 0.01
    np.testing.assert_allclose(linear[10 + reach :], before[10 + reach :], atol=1e-5)
    assert spread[10 + reach :].max() == 0


def test_runs_of_other_tasks_are_refused(tmp_path: Path) -> None:
    config = Config.resolve("mr", "image")
    checkpoints.create_run(tmp_path / "run", config, {}, {})
    with pytest.raises(Refused, match="RUN_TASK"):
        Sharpener.open(tmp_path / "run")


def test_threads_change_no_bit_and_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medgan.learning.sharpening.VOXELS", {2: 2000})
    sharpener, scan = Sharpener.open(None, "cpu"), Acquisition(14, 3.0)
    thick = np.random.default_rng(0).uniform(-1, 1, (30, 40, 14)).astype(np.float32)
    step = Pass(2, scan, (1.0, 1.0, 3.0), slice(0, 14), slice(0, 42))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            linear = along(scan.inverse, thick, 2)
            sharpener.add(linear, thick, IntensityMap((-1.0, 1.0), (-1.0, 1.0)), step)
            assert torch.get_num_threads() == threads
            results.append(linear)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
