"""Where whole images come from: classes, sizes and label maps, what is odd about them, and what a run begins with."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import dataset_makers as make
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medgan
from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.imaging.geometry import reorient
from medgan.learning import loop
from medgan.learning.checkpoints import Run, open_run
from medgan.learning.image_networks import ImageGenerator
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.image_source import ImageSource, label_map, made_volume, sample
from medgan.learning.transfer import begin_with, check_start
from medgan.verbs.progress import Progress


def _folders(root: Path, counts: dict[str, int], shape: tuple[int, int] = (16, 20), seed: int = 0) -> Path:
    """Class folders of random images."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            np.save(root / name / f"im{index}.npy", make.image(seed + 100 * number + index, "uint8", shape))
    return root


def _source(root: Path, *, modality: str = "xray", **settings: object) -> ImageSource:
    named = {"data.crop": 16} | {name.replace("__", "."): value for name, value in settings.items()}
    return ImageSource(open_dataset(root), Config.resolve(modality, "image", settings=named))


def _refused(root: Path, **settings: object) -> Refused:
    with pytest.raises(Refused) as refused:
        _source(root, **settings)
    return refused.value


@pytest.mark.parametrize(("balance", "share"), [(1.0, 0.5), (0.5, 0.7), (0.0, 0.9)])
def test_classes_are_drawn_evenly_or_as_they_are(tmp_path: Path, balance: float, share: float) -> None:
    source = _source(_folders(tmp_path / "set", {"common": 18, "rare": 2}), training__balance=balance)
    drawn = torch.cat([source.batch(step)["class"] for step in range(60)])  # 1,920 of them
    assert float((drawn == 0).float().mean()) == pytest.approx(share, abs=0.04)
    for step in (0, 7):
        one, two = source.batch(step), source.batch(step)
        assert torch.equal(one["image"], two["image"]) and torch.equal(one["class"], two["class"])
        own = {image.tobytes() for image in source.of_class(int(one["class"][0]))}
        assert one["image"][0].numpy().tobytes() in own, "an image of another class"


def test_label_maps_go_with_their_images(mr_set: Path) -> None:
    dataset = open_dataset(mr_set)
    source = _source(mr_set, modality="mr", data__dims=3, network__label_maps=True, training__batch=3)
    names = source.interface["maps"]
    assert names == list(dataset.labels.values()) and names[0] == "background"
    batch = source.batch(0)
    maps = batch["map"]
    assert maps.dtype == torch.float32 and maps.shape == (3, len(names), *source.interface["size"])
    assert torch.equal(maps.sum(dim=1), torch.ones(3, *source.interface["size"]))
    every = source.maps_of_class(0)
    assert every is not None and every.shape == (3, len(names), *source.interface["size"])
    for image, drawn in zip(batch["image"], maps, strict=True):
        row = next(n for n, known in enumerate(source.images) if np.array_equal(known, image.numpy()))
        assert np.array_equal(every[row], drawn.numpy()), "the label map of another case"
    # The same case's own mask, read anew, is the same map; shares of labels are about those of the mask.
    mask = dataset.load(dataset.cases[1])[1]
    assert mask is not None
    anew = label_map(mask, list(dataset.labels), source.interface["size"])
    assert np.array_equal(anew[0], every[1])
    there = np.array([(mask.array == value).mean() for value in sorted(dataset.labels)])
    assert np.abs(anew[0].mean(axis=(1, 2, 3)) - there).max() < 0.02


def test_slices_have_the_label_maps_of_their_slices(mr_set: Path) -> None:
    source = _source(mr_set, modality="mr", network__label_maps=True, data__crop=32)
    assert source.maps is not None and source.maps.shape == (len(source.images), *source.interface["size"])
    outside = source.maps == 0
    # What the mask marks (in these phantoms, lesions) is not where the image is darkest.
    assert source.maps.any() and source.images[:, 0][~outside].mean() > source.images[:, 0][outside].mean()


def test_label_maps_need_masks(tmp_path: Path) -> None:
    refused = _refused(_folders(tmp_path / "set", {"a": 3}), network__label_maps=True)
    assert refused.code == "LABEL_MISSING" and "3 of 3" in str(refused) and "a_im0" in str(refused)


def test_few_images_of_a_class_and_one_class_only_are_named(tmp_path: Path) -> None:
    warnings = _source(_folders(tmp_path / "few", {"common": 12, "rare": 3})).warnings
    assert len(warnings) == 1 and "rare (3)" in warnings[0] and "common" not in warnings[0]
    alone = _source(_folders(tmp_path / "one", {"only": 12})).warnings
    assert len(alone) == 1 and "one class only" in alone[0]
    assert not _source(_folders(tmp_path / "fine", {"a": 10, "b": 10})).warnings


def test_images_and_volumes_together_are_refused(tmp_path: Path) -> None:
    root = _folders(tmp_path / "set", {"a": 3, "b": 3})
    np.save(root / "b" / "im2.npy", make.image(1, "uint8", (16, 20, 12)))
    refused = _refused(root)
    assert refused.code == "DIM_UNSUPPORTED" and "im2.npy" in str(refused)
    assert "3D and other images are 2D" in refused.why


def test_a_class_without_training_images_is_not_made_up(tmp_path: Path) -> None:
    root = tmp_path / "set"
    _folders(root / "train", {"a": 10, "b": 10})
    _folders(root / "test", {"c": 2})
    source = _source(root)
    assert source.interface["classes"] == ["a", "b"] and "class c" in " ".join(source.warnings)
    shutil.rmtree(root / "train" / "b")
    refused = _refused(root)
    assert refused.code == "DATASET_EMPTY" and "class a" in str(refused) and "c" in refused.why


def test_cases_without_a_class_among_others_are_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    dataset = open_dataset(_folders(tmp_path / "set", {"a": 4, "b": 4}))
    cases = tuple(replace(case, label=None) if case.id in ("a_im2", "b_im1") else case for case in dataset.cases)
    with pytest.raises(Refused) as refused:
        ImageSource(dataset.only(cases), Config.resolve("xray", "image"))
    assert refused.value.code == "TAB_MISSING_LABEL" and "2 of 8" in str(refused.value)
    assert "a_im2" in str(refused.value)


def test_images_of_several_sizes_are_brought_to_the_commonest_and_this_is_said(tmp_path: Path) -> None:
    root = _folders(tmp_path / "set", {"b": 10, "c": 10})
    (root / "a").mkdir()
    for index in range(10):
        np.save(root / "a" / f"x{index}.npy", make.image(index, "uint8", (16, 60) if index == 0 else (16, 20)))
    source = _source(root)
    # The odd one comes first and does not decide.
    assert source.interface["size"] == [16, 13] or source.interface["size"] == [13, 16]
    said = " ".join(source.warnings)
    assert "2 sizes" in said and "a_x0" in said and "stretched" in said
    np.save(root / "a" / "x0.npy", make.image(0, "uint8", (20, 22)))
    mild = " ".join(_source(root).warnings)
    assert "2 sizes" in mild and "stretched" not in mild


def test_images_of_one_value_are_left_out_or_refused(tmp_path: Path) -> None:
    root = _folders(tmp_path / "set", {"a": 10, "b": 10})
    np.save(root / "a" / "im3.npy", np.full((16, 20), 7, np.uint8))
    source = _source(root)
    assert len(source.images) == 19 and "a_im3" in source.warnings[0] and "left out" in source.warnings[0]
    for index in range(10):
        np.save(root / "a" / f"im{index}.npy", np.full((16, 20), index, np.uint8))
    refused = _refused(root)
    assert refused.code == "PIX_CONSTANT" and "class a" in str(refused)


def test_a_set_of_several_types_is_written_in_one_that_holds_them_all(tmp_path: Path) -> None:
    root = _folders(tmp_path / "set", {"a": 10, "b": 10})
    assert _source(root).interface["dtype"] == "uint8"
    np.save(root / "b" / "im9.npy", make.image(1, "uint16", (16, 20)) * np.uint16(8))
    assert _source(root).interface["dtype"] == "uint16"


@pytest.mark.parametrize("kind", ["npy", "nifti", "npz"])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "set"
    values = np.random.default_rng(0).random((6, 16, 20), dtype=np.float32)
    values[4, 3, 3] = np.nan
    if kind == "npz":
        root.mkdir()
        np.savez(root / "x.npz", train_images=values, train_labels=np.arange(6) % 2)
    else:
        for index, image in enumerate(values):
            path = root / "ab"[index % 2] / f"im{index}"
            if kind == "nifti":
                make.nifti(path.with_suffix(".nii.gz"), image)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path.with_suffix(".npy"), image)
    refused = _refused(root)
    assert refused.code == "PIX_NONFINITE" and ("x.npz" if kind == "npz" else "im4") in str(refused)


def test_refusals_come_before_a_run_folder_and_warnings_before_training(tmp_path: Path,
                                                                       tiny: dict[str, object]) -> None:
    root = _folders(tmp_path / "set", {"a": 12, "b": 3})
    told: list[Progress] = []
    run = medgan.train(root, modality="xray", out=tmp_path / "run", progress=told.append,
                       settings=tiny | {"data.crop": 16, "training.images": 8})
    stages = [progress.stage for progress in told]
    assert "b (3)" in told[stages.index("warning")].text and stages.index("warning") < stages.index("training")
    assert "b (3)" in (run.path / "MODEL_CARD.md").read_text()
    np.save(root / "b" / "bad.npy", np.full((16, 20), np.inf, np.float32))
    with pytest.raises(Refused):
        medgan.train(root, modality="xray", out=tmp_path / "other", settings=tiny)
    assert not (tmp_path / "other").exists()


def test_truncation_draws_samples_together(image_run: Path) -> None:
    generator = open_run(image_run).generator()
    spread = [float(sample(generator, 1, 16, 0, truncation=psi).std(axis=0).mean()) for psi in (1.0, 0.5, 0.1)]
    assert spread[0] > spread[1] > spread[2] > 0
    assert np.array_equal(sample(generator, 1, 2, 0), sample(generator, 1, 2, 0, truncation=1.0))


def test_made_images_have_the_range_of_their_template(image_run: Path, xray_classes: Path) -> None:
    run, dataset = open_run(image_run), open_dataset(xray_classes)
    generator = run.generator()
    template, _ = dataset.load(dataset.cases[0])
    # Floats, so that nothing is clipped: the generator has learned little, and draws beyond the range.
    light, dark = (template.with_array(template.array.astype(np.float32) / part) for part in (1, 4))
    bright, faint = (made_volume(generator, run, "normal", each, 3).array for each in (light, dark))
    assert bright.std() > 0 and np.allclose(faint, bright / 4, atol=1e-3)
    with pytest.raises(Refused) as refused:
        made_volume(generator, run, "freckle", template, 3)
    assert refused.value.code == "LABEL_UNKNOWN"


@pytest.mark.parametrize("codes", ["LPS", "SRA"])
def test_a_turned_template_gets_the_same_image_turned(mr_set: Path, codes: str, tiny: dict[str, object]) -> None:
    dataset = open_dataset(mr_set)
    config = Config.resolve("mr", "image", settings=tiny | {"data.dims": 3, "data.crop": 16})
    source = ImageSource(dataset, config)
    torch.manual_seed(0)
    generator = ImageGenerator(3, 1, 1, size=source.interface["size"], width=8, latent=config.network.latent)
    with torch.no_grad():
        for parameter in generator.parameters():  # else it draws nothing at all before it has learned
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = Run(Path("run"), config, source.interface, {})
    template = reorient(dataset.load(dataset.cases[0])[0])
    straight = made_volume(generator, run, None, template, 3)
    turned = made_volume(generator, run, None, reorient(template, codes), 3)
    assert turned.orientation == codes and (turned.shape != straight.shape or codes == "LPS")
    assert straight.array.std() > 0 and np.array_equal(reorient(turned).array, straight.array)
    assert np.allclose(reorient(turned).affine, straight.affine)


# --- beginning with another run


def _state(config: Config, interface: dict[str, object], seed: int = 9) -> loop.State:
    torch.manual_seed(seed)
    return loop.State.fresh(ImageTask(config, interface), config.training)


def test_a_transferred_run_starts_where_the_other_ended(image_run: Path) -> None:
    run = open_run(image_run)
    state = _state(run.config, dict(run.interface))
    theirs = sample(run.generator(), 1, 4, 0)
    before = np.abs(sample(state.average, 1, 4, 0) - theirs).max()
    note = begin_with(state, run, run.interface)
    assert before > 0.01 and np.array_equal(sample(state.average, 1, 4, 0), theirs)
    assert "normal, opacity" in note and run.hash() in note
    saved = load_file(image_run / "state" / "state.safetensors")
    ours = state.task.state_dict()
    assert all(torch.equal(ours[name], saved[f"task.{name}"]) for name in ours if name.startswith("discriminator."))
    assert not any(optimiser.state for optimiser in state.optimisers.values())


def test_classes_go_by_their_names(image_run: Path) -> None:
    run = open_run(image_run)
    interface = dict(run.interface) | {"classes": ["other", "normal"]}
    state = _state(run.config, interface)
    fresh = state.task.generator.classes.weight.detach().clone()
    note = begin_with(state, run, interface)
    theirs, ours = run.generator().classes.weight, state.task.generator.classes.weight
    assert torch.equal(ours[1], theirs[0]) and torch.equal(ours[0], fresh[0])
    assert "known to both: normal" in note
    # More classes than the other run had, and none of them known: everything else is taken all the same.
    interface |= {"classes": ["x", "y", "z"]}
    state = _state(run.config, interface)
    assert "none" in begin_with(state, run, interface)
    assert torch.equal(state.task.generator.head.weight, run.generator().head.weight)


def test_only_what_fits_is_taken_and_counted(image_run: Path) -> None:
    run = open_run(image_run)
    wide = run.config.over(settings={"network.width": 12})
    state = _state(wide, dict(run.interface))
    note = begin_with(state, run, run.interface)
    total = len(list(state.task.generator.parameters()))
    taken = int(note.split("tensors of the generator")[0].split()[-3])
    assert 0 < taken < total and f"{taken} of {total} tensors of the generator" in note
    assert torch.equal(state.task.generator.classes.weight, run.generator().classes.weight)


def test_without_its_state_the_generator_alone_is_taken(image_run: Path, tmp_path: Path) -> None:
    shutil.copytree(image_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state")
    run = open_run(tmp_path / "run")
    state = _state(run.config, dict(run.interface))
    assert "0 of" in begin_with(state, run, run.interface)
    assert np.array_equal(sample(state.average, 0, 2, 0), sample(run.generator(), 0, 2, 0))


def test_training_from_a_run_is_said_and_resumes_to_the_same_weights(xray_classes: Path, image_run: Path,
                                                                     tmp_path: Path, tiny: dict[str, object]) -> None:
    settings = tiny | {"training.from": str(image_run), "training.images": 24, "training.report_images": 8}
    whole = medgan.train(xray_classes, modality="xray", out=tmp_path / "whole", settings=settings, seed=3)
    lines = [json.loads(line) for line in (whole.path / "log.jsonl").read_text().splitlines()]
    assert lines[0]["images"] == 0 and "begun with" in lines[0]["note"]
    assert lines[0]["note"] in (whole.path / "MODEL_CARD.md").read_text()

    def stop(progress: Progress) -> None:
        if progress.stage == "training" and progress.done >= 16:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        medgan.train(xray_classes, modality="xray", out=tmp_path / "broken", settings=settings, seed=3, progress=stop)
    medgan.train(out=tmp_path / "broken", resume=True)
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    plain = medgan.train(xray_classes, modality="xray", out=tmp_path / "plain", seed=3,
                         settings=settings | {"training.from": None})
    other = load_file(plain.path / "weights.safetensors")
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("change", "code"), [
    ({"training.from": "nowhere"}, "RUN_NOT_FOUND"), ({"data.dims": 3}, "RUN_TASK"),
])
def test_a_run_that_cannot_be_begun_with_is_refused_before_anything_is_written(
        xray_classes: Path, image_run: Path, tmp_path: Path, tiny: dict[str, object], change: dict[str, object],
        code: str) -> None:
    with pytest.raises(Refused) as refused:
        medgan.train(xray_classes, modality="xray", out=tmp_path / "run",
                     settings=tiny | {"training.from": str(image_run)} | change)
    assert refused.value.code == code and not (tmp_path / "run").exists()


def test_other_tasks_channels_and_unfinished_runs_are_refused(image_run: Path, tmp_path: Path) -> None:
    def start(modality: str, task: str, run: Path, channels: int) -> str:
        config = Config.resolve(modality, task, settings={"training.from": str(run)})
        with pytest.raises(Refused) as refused:
            check_start(config, channels)
        return refused.value.code

    assert start("mr", "lesion", image_run, 1) == "RUN_TASK"
    assert start("xray", "image", image_run, 2) == "RUN_CHANNELS"
    shutil.copytree(image_run, tmp_path / "run")
    (tmp_path / "run" / "weights.safetensors").unlink()
    assert start("xray", "image", tmp_path / "run", 1) == "RUN_UNFINISHED"
    assert check_start(Config.resolve("xray", "image", settings={"training.from": str(image_run)}), 1) is not None


@pytest.mark.slow
def test_volumes_of_real_data_are_read_with_their_label_maps(shared_data: Path) -> None:
    source = _source(shared_data / "hippocampus", modality="mr", data__dims=3, data__crop=48, network__label_maps=True)
    assert source.interface["maps"] == ["background", "anterior", "posterior"]
    shares = np.array([np.mean(source.maps == number) for number in range(3)])
    assert shares[0] > 0.8 and (shares[1:] > 0.005).all()
    assert any("sizes" in warning for warning in source.warnings)
