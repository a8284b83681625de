"""The lesion task, 2D and 3D through the same code: blending, learning, its batches and its makers."""

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
from medgan.learning.tasks.lesion import LesionTask, paint, read_error, smooth_fill
from medgan.learning.tasks.lesion_batches import without_lesions
from medgan.learning.tasks.lesion_source import LesionSource, real_spread
from medgan.lesions.compose import compose
from medgan.lesions.gan import Gan
from medgan.lesions.library import build_library
from medgan.lesions.placement import Ground
from medgan.lesions.scans import open_scan


def _config(tiny: dict[str, object], **more: object) -> Config:
    return Config.resolve("mr", settings=tiny | more)


@pytest.fixture(scope="module", params=[2, 3])
def source(request: pytest.FixtureRequest, mr_set: Path, tiny: dict[str, object]) -> LesionSource:
    crop = 32 if request.param == 2 else 16
    config = _config(tiny, **{"data.dims": request.param, "data.crop": crop})
    return LesionTask.source(open_dataset(mr_set), config)


def test_batches_are_a_function_of_the_step(source: LesionSource) -> None:
    first, again, other = source.batch(3), source.batch(3), source.batch(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])
    size = (source.config.data.crop,) * source.dims
    assert first["image"].shape == (8, 1, *size) and first["labels"].shape == (8, 2, *size)


def test_batches_hold_lesions_and_lesion_free_voids(source: LesionSource) -> None:
    batch = source.batch(0)
    has_lesion = batch["condition"][:, -1] == 1
    assert has_lesion.sum() == 6 and (~has_lesion).sum() == 2
    voids = batch["void"].flatten(1)
    lesions = batch["labels"].flatten(1)
    assert (lesions[~has_lesion] == 0).all() and (voids[~has_lesion].max(dim=1).values > 0).all()
    # Every lesion voxel may change, and the void reaches a little beyond.
    for row in torch.where(has_lesion)[0]:
        inside = batch["labels"][row].sum(0) > 0
        assert (batch["void"][row, 0][inside] == 1).all()
        assert (batch["void"][row, 0] > 0).sum() > inside.sum() > 0


def test_outside_the_void_every_bit_stays(source: LesionSource) -> None:
    task = LesionTask(source.config, source.interface)
    for parameter in task.generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = source.batch(0)
    painted = paint(task.generator, batch)
    outside = (batch["void"] == 0).expand_as(painted)
    assert torch.equal(painted[outside], batch["image"][outside])
    assert not torch.equal(painted, batch["image"])


def test_a_few_steps_learn_to_fill(source: LesionSource) -> None:
    config = source.config.model_copy(update={"training": source.config.training.model_copy(
        update={"images": 240, "rate": 2e-3, "report_images": 1000})})
    torch.manual_seed(0)
    state = loop.State.fresh(LesionTask(config, source.interface), config.training)
    parts = [step.parts for step in loop.train(state, source, config)]
    first = np.mean([p["generator/reconstruction"] for p in parts[:5]])
    last = np.mean([p["generator/reconstruction"] for p in parts[-5:]])
    assert last < 0.8 * first
    assert set(parts[0]) >= {"discriminator/r1", "discriminator/r2", "discriminator/margin", "generator/rim",
                             "generator/histogram", "generator/features"}
    # Requests are drawn twice for variety and for the texture by turns.
    assert {name for p in parts for name in p} >= {"generator/diversity", "generator/texture", "generator/seen"}


def test_at_first_only_tissue_is_drawn_where_the_settings_say_so(source: LesionSource) -> None:
    batch = source.batch(0)
    torch.manual_seed(0)
    warm = without_lesions(batch)
    assert not warm["labels"].any() and not warm["condition"].any() and (warm["distance"] == -1).all()
    assert not (warm["void"] * batch["labels"].sum(1, keepdim=True)).any(), "a lesion would be learned as tissue"
    assert not (warm["void"] * (1 - batch["known"])).any()
    has_lesion = batch["condition"][:, -1] == 1
    assert torch.equal(warm["void"][~has_lesion], batch["void"][~has_lesion])
    assert (warm["void"][has_lesion].flatten(1).amax(1) > 0).any()
    config = source.config.model_copy(update={"loss": source.config.loss.model_copy(update={"warmup": 0.15})})
    task = LesionTask(config, source.interface)
    task.at(0.0)
    assert set(_parts(task, batch)) >= {"healthy"} and _parts(task, batch)["reconstruction"] == 0
    task.at(0.5)
    assert _parts(task, batch)["reconstruction"] > 0 and "seen" in _parts(task, batch)


def _parts(task: LesionTask, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    task.loss("discriminator", batch)
    return task.loss("generator", batch)[1]


def test_the_generator_moves_on_what_the_discriminator_saw(source: LesionSource) -> None:
    task = LesionTask(source.config, source.interface)
    task.at(0.5)
    batch = source.batch(0)
    loss, _ = task.loss("discriminator", batch)
    loss.backward()
    assert all(p.grad is None for p in task.generator.parameters()), "the discriminator's loss moved the generator"
    assert all(p.grad is not None for p in task.discriminator.parameters())
    kept = task._drawn
    assert kept is not None and kept[0] is batch
    task.discriminator.requires_grad_(False)
    loss, _ = task.loss("generator", batch)
    loss.backward()
    assert task.generator.head.weight.grad.abs().max() > 0
    assert task._drawn is None


def test_the_probability_of_cuts_moves_and_is_saved(source: LesionSource) -> None:
    task = LesionTask(source.config, source.interface)
    assert "cutout" in task.state_dict(), "a resumed run would begin without cuts"
    task.cutout.fill_(0.5)
    before = float(task.cutout)
    task.loss("discriminator", source.batch(0))
    assert float(task.cutout) != before


def test_the_reading_counts_only_where_it_is_known() -> None:
    logits, labels = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)
    where = torch.zeros(1, 1, 4, 4)
    where[..., :2, :2] = 1
    assert read_error(logits, labels, where).item() == pytest.approx(np.log(2))
    wrong = logits.clone()
    wrong[..., 1, 1] = 50
    assert read_error(wrong, labels, where).item() == pytest.approx(np.log(2))
    assert read_error(wrong, labels, torch.ones_like(where)).item() > 10


def test_real_lesions_of_one_size_differ_and_one_alone_does_not(source: LesionSource) -> None:
    assert source.interface["spread"] > 0.01
    assert real_spread(source.lesion_crops[:1], np.random.default_rng(0)) == 0
    assert LesionTask(source.config, dict(source.interface) | {"spread": 0.0}).bound > 0


def test_a_run_of_another_version_is_refused(source: LesionSource) -> None:
    old = {name: value for name, value in source.interface.items() if name not in ("version", "textures", "spread")}
    with pytest.raises(Refused, match="version") as refused:
        LesionTask(source.config, old)
    assert refused.value.code == "CKPT_MISMATCH"


def test_the_contact_sheet_is_a_picture(source: LesionSource) -> None:
    task = LesionTask(source.config, source.interface)
    sheet = task.sheet(task.generator, source)
    assert sheet.dtype == np.uint8 and sheet.ndim == 3 and sheet.std() > 10


@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 12)])
def test_the_smooth_fill_is_exact_outside_and_constant_on_a_constant(shape: tuple[int, ...]) -> None:
    image = torch.randn(1, 2, *shape)
    void = torch.zeros(1, 1, *shape)
    void[(..., *[slice(6, 11)] * len(shape))] = 1
    filled = smooth_fill(image * (1 - void) + 99 * void, void)
    outside = (void == 0).expand_as(image)
    assert torch.equal(filled[outside], image[outside])
    assert filled.abs().max() <= image.abs().max() + 1e-4, "the void's own values leaked"
    flat = smooth_fill(torch.full_like(image, 0.7) * (1 - void), void)
    assert torch.allclose(flat, torch.full_like(flat, 0.7), atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_generator_draws_into_a_scan_and_the_seed_decides(dims: int, mr_set: Path, lesion_run: Path,
                                                              tiny: dict[str, object], tmp_path: Path) -> None:
    import medgan

    run = open_run(lesion_run)
    if dims == 3:
        run = medgan.train(mr_set, modality="mr", out=tmp_path / "run",
                           settings=tiny | {"data.dims": 3, "data.crop": 16, "training.images": 16})
    dataset = open_dataset(mr_set)
    library = build_library(dataset, run.config)
    scan = open_scan(dataset, dataset.cases[0], run.config)
    maker = Gan(run, "cpu")
    for parameter in maker.generator.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    site = None
    for seed in range(20):
        ground = Ground(scan, library, finest_mm=2.0, crop=run.config.data.crop)
        site = ground.site(library.lesions[seed % len(library.lesions)], np.random.default_rng(seed))
        if site is not None:
            break
    assert site is not None
    drawn = maker.draw(scan, site, 5)
    assert drawn.shape == (1, *site.labels.shape) and np.isfinite(drawn).all()
    assert np.array_equal(drawn, maker.draw(scan, site, 5))
    inside = site.labels > 0
    assert np.abs(drawn - maker.draw(scan, site, 6))[0][inside].max() > 1e-3
    before = scan.image[(slice(None), *site.box)]
    assert np.abs(drawn - before)[0][inside].mean() > 1e-3
    ground = Ground(scan, library, finest_mm=2.0, crop=run.config.data.crop)
    made = compose(ground, maker, run.config.augment.model_copy(update={"sigmas": 1e9, "visibility": -1e9}), 1)
    assert made is not None and np.array_equal(made.image.array[:, ~made.changed],
                                               dataset.load(dataset.cases[0])[0].array[:, ~made.changed])


def test_a_set_without_lesions_is_refused(mr_set: Path, tiny: dict[str, object], tmp_path: Path) -> None:
    from medgan.datasets.phantoms import write_phantoms

    write_phantoms(tmp_path / "set", "mr", count=1, seed=0, shape=(40, 40, 16))
    import nibabel

    for path in (tmp_path / "set" / "labelsTr").glob("*.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    with pytest.raises(Refused) as refused:
        LesionTask.source(open_dataset(tmp_path / "set"), _config(tiny))
    assert refused.value.code == "DATASET_EMPTY"
