"""Lesions made while a network trains: the same for the same seed, nowhere else, and never in held-out cases."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    LoadImaged,
    RandFlipd,
    ScaleIntensityd,
)
from online_makers import EASY, KEYS, files, load, online, same, transform
from scipy import ndimage
from torch.utils.data import DataLoader

import medgan
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.errors import Refused
from medgan.imaging.files import write
from medgan.lesions.scans import open_scan
from medgan.transforms import RECORD, RandSyntheticLesiond
from medgan.verbs.online import Studio


def split_off(root: Path, **splits: str) -> Dataset:
    """A data set with some cases held out."""
    from dataclasses import replace

    opened = open_dataset(root)
    return opened.only(tuple(replace(case, split=splits.get(case.id, "train")) for case in opened.cases))


# --- the data set ---------------------------------------------------------------------------------------------------


def test_an_item_is_what_monai_reads_with_lesions_in_it(mr_set: Path) -> None:
    cases = online(mr_set, settings=EASY | {"augment.removed": 0})
    assert len(cases) == 3 and len(online(mr_set, repeats=4)) == 12
    for number in range(3):
        item, read = cases[number], load(mr_set, number)
        assert item["synthetic"] and item["id"] == open_dataset(mr_set).cases[number].id
        record = json.loads(item["record"])
        assert record["parents"] == [item["id"]] and record["lesions"] and record["method"] == "paste"
        for key in KEYS:
            assert isinstance(item[key], MetaTensor) and item[key].shape == read[key].shape
            np.testing.assert_allclose(item[key].affine, read[key].affine, atol=1e-5)
        assert item["image"].dtype == read["image"].dtype == torch.float32
        new = (item["label"].numpy() != read["label"].numpy())[0]
        assert new.sum() == sum(lesion["voxels"] for lesion in record["lesions"])
        assert (read["label"].numpy()[0][new] == 0).all(), "no lesion lies over an old one"
        differs = (item["image"].numpy() != read["image"].numpy())[0]
        assert differs[new].mean() > 0.5
        assert not differs[~ndimage.binary_dilation(new, iterations=6)].any()


def test_without_a_draw_an_item_is_the_case_itself(mr_set: Path) -> None:
    cases = online(mr_set, share=0.0)
    for number, item in enumerate(cases):
        assert same(item, load(mr_set, number) | {"label": load(mr_set, number)["label"].to(torch.uint8)})
        assert not item["synthetic"] and json.loads(item["record"]) == {"synthetic": False}
        item["image"] += 1  # which is the caller's own
    assert same(cases[2], load(mr_set, 2) | {"label": load(mr_set, 2)["label"].to(torch.uint8)})


def test_items_are_those_of_seed_epoch_and_index_alone(mr_set: Path) -> None:
    cases, again = online(mr_set, repeats=2), online(mr_set, repeats=2, cache_cases=1)
    torch.manual_seed(1)
    np.random.seed(1)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    cases.set_epoch(3)
    there = {index: cases[index] for index in (0, 3, 5)}
    assert torch.equal(state[0], torch.get_rng_state()) and (np.random.get_state()[1] == state[1]).all()
    assert not same(again[0], there[0]), "epochs differ"
    again.set_epoch(3)
    assert all(same(again[index], there[index]) for index in (5, 0)), "order and cache do not count"
    assert not same(there[0], there[3]), "the same case comes up with other lesions"
    cases.seed = 5
    assert not same(cases[0], there[0])
    cases.seed = 4
    assert same(cases[-1], there[5])
    first, again_first, other = (cases.item(there[0]["id"], draw) for draw in (0, 0, 1))
    assert same(first, again_first) and not same(first, other)
    with pytest.raises(IndexError):
        cases[6]


def test_the_share_of_items_with_lesions(mr_set: Path) -> None:
    cases = online(mr_set, share=0.3, repeats=20)
    drawn = [np.random.default_rng([seed, 3]).random() < 0.3 for seed in range(4000)]
    assert 0.25 < np.mean(drawn) < 0.35
    # What the records say, without making a volume for each.
    wanted = []
    cases._item = lambda case, seed, want, suffix: wanted.append(want) or {}  # type: ignore[method-assign,func-returns-value,return-value]
    for epoch in range(10):
        cases.set_epoch(epoch)
        for index in range(len(cases)):
            cases[index]
    assert 0.25 < np.mean(wanted) < 0.35


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_and_hear_of_the_epoch(context: str, mr_set: Path) -> None:
    cases = online(mr_set)
    loader = DataLoader(cases, batch_size=None, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    for epoch in (0, 1):  # workers live on into the second
        cases.set_epoch(epoch)
        found = list(loader)
        assert [item["id"] for item in found] == [case.id for case in open_dataset(mr_set).cases]
        assert all(same(item, cases[index]) for index, item in enumerate(found))


def test_batches_and_transforms(mr_set: Path) -> None:
    cases = online(mr_set, share=0.5)
    batch = next(iter(DataLoader(cases, batch_size=3, collate_fn=None)))
    assert batch["image"].shape == (3, 1, 56, 64, 28) and len(batch["record"]) == 3
    steps = Compose([ScaleIntensityd(keys="image"), RandFlipd(keys=KEYS, prob=1.0, spatial_axis=0)])
    batch = next(iter(MonaiLoader(MonaiDataset(cases, steps), batch_size=3, num_workers=0)))
    assert batch["image"].shape == batch["label"].shape == (3, 1, 56, 64, 28) and float(batch["image"].max()) <= 1


def test_sent_to_another_process_it_is_the_same_without_what_is_large(mr_set: Path) -> None:
    cases = online(mr_set)
    first = cases[0]
    sent = pickle.dumps(cases)
    again = pickle.loads(sent)
    assert not again.studio._ready and same(again[0], first)
    fresh = len(pickle.dumps(online(mr_set)))
    assert len(sent) < fresh * 1.1, "no scan goes along"


def test_the_cache_is_bounded(mr_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = online(mr_set, cache_cases=2)
    opened: list[str] = []
    real = open_scan
    monkeypatch.setattr("medgan.verbs.online.open_scan", lambda d, case, c: opened.append(case.id) or real(d, case, c))
    for index in (0, 1, 0, 1, 2, 1, 0):
        cases[index]
        assert len(cases.studio._ready) <= 2
    names = [case.id for case in cases.studio.parents]
    assert opened == [names[0], names[1], names[2], names[0]]


def test_own_lesions_are_removed_in_the_share_that_settings_say(mr_set: Path) -> None:
    cases = online(mr_set, settings=EASY | {"augment.removed": 1.0})
    for number in range(3):
        item, read = cases[number], load(mr_set, number)
        voxels = sum(lesion["voxels"] for lesion in json.loads(item["record"])["lesions"])
        assert int((item["label"] > 0).sum()) == voxels, "only new lesions are labelled"
        old = read["label"].numpy()[0] > 0
        assert (item["image"].numpy()[0][old] != read["image"].numpy()[0][old]).mean() > 0.5
        new = item["label"].numpy()[0] > 0
        differs = (item["image"].numpy() != read["image"].numpy())[0]
        assert not differs[~ndimage.binary_dilation(new | old, iterations=7)].any()


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAR"])
def test_a_part_of_the_scan_is_worked_on_and_the_whole_comes_back(orientation: str, tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    from medgan.imaging.geometry import reorient

    monkeypatch.setattr("medgan.lesions.windows.MARGIN", 1)
    write_phantoms(tmp_path, "mr", count=2, seed=3, shape=(56, 64, 28))
    for path in tmp_path.glob("*Tr/*.nii.gz"):
        write(reorient(medgan.read(path), orientation), path)
    dataset = open_dataset(tmp_path)
    studio: Studio = online(dataset, settings=EASY | {"augment.removed": 0}).studio
    for case in dataset.cases:
        kept = studio.ready(case)
        assert np.prod(kept.ground.tissue.shape) < np.prod(kept.volume.shape), "the air is left out"
        image, mask = dataset.load(case)
        for one, other in zip(kept.original(), (image, mask), strict=True):
            assert other is not None and one.orientation == orientation
            np.testing.assert_array_equal(one.array, other.array)
            np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)
        made = studio.whole(case, 7)
        assert made is not None and made.image.array.dtype == image.array.dtype
        np.testing.assert_array_equal(made.image.array[0][~made.changed], image.array[0][~made.changed])
        assert made.changed.any() and mask is not None
        assert made.changed[(made.mask.array != mask.array)[0]].all()
        centre = np.argwhere((made.mask.array != mask.array)[0]).mean(axis=0)
        if len(made.lesions) == 1:
            np.testing.assert_allclose((image.affine @ [*centre, 1])[:3], made.lesions[0].centre_mm, atol=0.5)


def test_flat_images(tmp_path: Path) -> None:
    write_phantoms(tmp_path, "xray", count=3, seed=3, dims=2, shape=(64, 64))
    cases = online(tmp_path, modality="xray")
    item = cases[0]
    assert item["synthetic"] and item["image"].shape == item["label"].shape == (1, 64, 64)
    made = transform(tmp_path, modality="xray")(cases[1])
    assert made["image"].shape == (1, 64, 64) and made["image"].meta[RECORD]


def test_a_generator_draws(mr_set: Path, lesion_run: Path) -> None:
    easy = {name: value for name, value in EASY.items() if name.startswith("augment")}
    cases = online(mr_set, run=lesion_run, method="gan", settings=easy)
    item = cases[0]
    assert item["synthetic"] and json.loads(item["record"])["model"]["name"] == lesion_run.name
    assert same(pickle.loads(pickle.dumps(cases))[0], item)
    assert not same(online(mr_set)[0], item)
    made = transform(mr_set, run=lesion_run, method="gan")(load(mr_set))
    assert json.loads(made["image"].meta[RECORD])["method"] == "gan"


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_validation_and_test_cases_are_left_out_and_refused_by_name(mr_set: Path) -> None:
    names = [case.id for case in open_dataset(mr_set).cases]
    dataset = split_off(mr_set, **{names[1]: "val", names[2]: "test"})
    cases = online(dataset)
    assert [case.id for case in cases.studio.parents] == names[:1]
    assert {lesion.case for lesion in cases.studio.library.lesions} == {names[0]}
    for name, word in ((names[1], "validation"), (names[2], "test")):
        with pytest.raises(Refused, match=word) as refused:
            cases.item(name)
        assert refused.value.code == "SPLIT_LEAK" and refused.value.where == name
        with pytest.raises(Refused, match=word):
            online(dataset, cases=[names[0], name])
        with pytest.raises(Refused, match=word):
            transform(dataset)(load(mr_set, names.index(name)))
        with pytest.raises(Refused, match=word):  # known by its id, and never drawn
            transform(dataset, prob=0.0)({"id": name, "image": load(mr_set)["image"], "label": load(mr_set)["label"]})
    with pytest.raises(RuntimeError) as wrapped:
        Compose([LoadImaged(keys=KEYS, ensure_channel_first=True), transform(dataset)])(files(mr_set, 2))
    assert isinstance(wrapped.value.__cause__, Refused) and wrapped.value.__cause__.code == "SPLIT_LEAK"


def test_folds_take_lesions_from_their_own_cases_alone(mr_set: Path, lesion_run: Path) -> None:
    names = [case.id for case in open_dataset(mr_set).cases]
    cases = online(mr_set, cases=names[:2])
    assert len(cases) == 2 and {lesion.case for lesion in cases.studio.library.lesions} <= set(names[:2])
    with pytest.raises(Refused) as refused:
        cases.item(names[2])
    assert refused.value.code == "SPLIT_LEAK"
    with pytest.raises(Refused, match="held out"):
        transform(mr_set, cases=names[:2])(load(mr_set, 2))
    with pytest.raises(Refused, match="those held out here too") as refused:
        online(mr_set, cases=names[:2], run=lesion_run, method="gan")
    assert refused.value.code == "SPLIT_LEAK"
    assert len(online(mr_set, cases=names, run=lesion_run, method="gan")) == 3
    for unknown in (["gone"], ["gone", names[0]]):
        with pytest.raises(Refused, match="no case of this name"):
            online(mr_set, cases=unknown)


def test_a_run_that_does_not_fit_is_refused_as_augment_does(mr_set: Path, lesion_run: Path, image_run: Path,
                                                            tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    dataset = open_dataset(mr_set)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"run": image_run}, "RUN_TASK"), ({"modality": "ct", "run": lesion_run}, "RUN_TASK"),
        ({"run": tmp_path / "none"}, "RUN_NOT_FOUND"), ({"run": lesion_run, "method": "paste"}, "CFG_VALUE"),
        ({"method": "magic"}, "CFG_VALUE"), ({"share": 1.5}, "CFG_VALUE"), ({"repeats": 0}, "CFG_VALUE"),
        ({"run": lesion_run, "settings": {"data.crop": 48}}, "CFG_VALUE"),
        ({"run": lesion_run, "root": replace(dataset, channels=("FLAIR", "T1"))}, "RUN_CHANNELS"),
        ({"run": lesion_run, "root": replace(dataset, labels={0: "background", 1: "other"})}, "LABEL_UNKNOWN"),
    ]
    for options, code in wrong:
        given = {"root": mr_set, "method": "gan", "settings": {}} | options
        with pytest.raises(Refused) as refused:
            online(given.pop("root"), **given)
        assert refused.value.code == code, options
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused) as refused:
        online(mr_set, method="gan", settings={})
    assert refused.value.code == "RUN_NOT_FOUND"


def test_images_that_do_not_fit_are_refused(mr_set: Path) -> None:
    make, case = transform(mr_set), load(mr_set)
    two = MetaTensor(torch.cat([case["image"], case["image"]]), affine=case["image"].affine)
    for change, code in (({"image": two}, "RUN_CHANNELS"), ({"label": case["label"][:, :-1]}, "LABEL_GRID"),
                         ({"label": case["label"] + 7}, "LABEL_OUT_OF_RANGE"),
                         ({"image": case["image"].as_tensor()}, "GEOM_NO_SPACING")):
        with pytest.raises(Refused) as refused:
            make({**case, **change})
        assert refused.value.code == code
    with pytest.raises(Refused, match="image and its label"):
        RandSyntheticLesiond(keys=("image",), dataset=mr_set, method="paste")
    assert transform(mr_set, allow_missing_keys=True)({"image": 1}) == {"image": 1}
