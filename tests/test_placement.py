"""Places: in tissue, off other lesions, where real ones lie when asked for, and in the organs where they are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import medgan
from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import open_dataset
from medgan.datasets.phantoms import write_phantoms
from medgan.errors import Refused
from medgan.lesions.density import PlaceDensity, seen
from medgan.lesions.library import Library, build_library, main_label
from medgan.lesions.placement import Ground
from medgan.lesions.scans import Scan, mask_values, open_scan
from medgan.lesions.shapes import without_specks

#: Everything that is off by default, on.
ALL_ON = {"augment.density": 0.5, "augment.made_shapes": 0.5}


@pytest.fixture(scope="module")
def ct_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("places") / "ct", "ct", count=2, seed=5, shape=(72, 64, 24))


def _opened(path: Path, modality: str) -> tuple[Library, list[Scan]]:
    config, dataset = Config.resolve(modality, settings=ALL_ON), open_dataset(path)
    return build_library(dataset, config), [open_scan(dataset, case, config) for case in dataset.cases]


def _ground(scan: Scan, library: Library, density: float = 0.0, taken: np.ndarray | None = None) -> Ground:
    return Ground(scan, library, finest_mm=float(scan.spacing_mm[:2].min()), crop=32, density=density, taken=taken)


@pytest.mark.parametrize("kind", ["mr", "ct"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_over_many_draws_no_voxel_lies_outside_tissue_or_on_a_lesion(
        mr_set: Path, ct_set: Path, kind: str, density: float) -> None:
    library, scans = _opened(mr_set if kind == "mr" else ct_set, kind)
    rng, placed = np.random.default_rng(2), 0
    for scan in scans[:2]:
        ground, tissue, taken = _ground(scan, library, density), scan.tissue(), scan.labels > 0
        for _ in range(12):
            donor = library.shaped(library.lesions[rng.integers(len(library.lesions))], 0.5, rng)
            site = ground.site(donor, rng)
            if site is None:
                continue
            placed += 1
            np.testing.assert_array_equal(without_specks(site.labels), site.labels, "specks")
            changes = site.weight > 0
            assert not (changes & ~tissue[site.box]).any() and (changes[site.labels > 0]).all()
            assert not (changes & taken[site.box]).any(), "the rim of one lesion on another"
            air = scan.air()
            if air is not None and library.surroundings[main_label(donor)][0] > scan.air_value():
                assert not (changes & air[site.box]).any(), "in air"
            taken[site.box] |= changes
            ground.occupy(site)
    assert placed >= 10


def test_places_that_were_emptied_can_be_given_again(mr_set: Path) -> None:
    library, scans = _opened(mr_set, "mr")
    scan = max(scans, key=lambda s: int((s.labels > 0).sum()))
    label = main_label(library.lesions[0])
    kept, emptied = _ground(scan, library), _ground(scan, library, taken=np.zeros(scan.labels.shape, bool))
    assert not (scan.labels[tuple(kept.candidates(label).T)] > 0).any()
    # The lesion's own values may not suit; what is not taken is what is asked here.
    assert kept.taken.any() and not emptied.taken.any()
    assert not _ground(scan, library, taken=np.ones(scan.labels.shape, bool)).candidates(label).size


def _body(shape: tuple[int, int, int] = (40, 40, 20)) -> np.ndarray:
    tissue = np.zeros(shape, bool)
    tissue[5:35, 5:35, 2:18] = True
    return tissue


def _dots(*where: tuple[int, int, int], shape: tuple[int, int, int] = (40, 40, 20)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for x, y, z in where:
        labels[x - 1:x + 2, y - 1:y + 2, z - 1:z + 2] = 1
    return labels


def test_the_density_is_high_where_lesions_lie_whatever_the_grid() -> None:
    places = PlaceDensity.fit([(_body(), _dots((10, 12, 8))), (_body(), _dots((11, 13, 9))),
                               (_body(), _dots((9, 12, 8)))])
    assert places is not None and not places.mirrored and places.gain is not None and places.gain > 0.3
    weights = places.over(_body())
    assert weights[~_body()].max() == 0 and weights[_body()].min() > 0
    assert weights[_body()].mean() == pytest.approx(1, rel=1e-3)
    assert weights[10, 12, 8] > 3 * weights[30, 30, 14]
    # Twice as fine a grid, elsewhere in the picture: the same place in the body.
    fine = np.zeros((90, 90, 40), bool)
    fine[20:80, 10:70, 4:36] = True
    top = np.unravel_index(places.over(fine).argmax(), fine.shape)
    assert np.allclose((np.array(top) - (20, 10, 4)) / (60, 60, 32), (5 / 30, 7.5 / 30, 6.5 / 16), atol=0.12)


def test_sides_are_mirrored_only_where_held_out_lesions_say_so() -> None:
    both = [(_body(), _dots((10, 12, 8))), (_body(), _dots((29, 12, 8))), (_body(), _dots((10, 13, 8))),
            (_body(), _dots((29, 13, 8)))]
    one = PlaceDensity.fit([(_body(), _dots((10, 12, 8))), (_body(), _dots((30, 13, 8)))])
    assert one is not None and one.mirrored
    left = PlaceDensity.fit([(t, _dots((10, 12 + i, 8))) for i, (t, _) in enumerate(both)])
    assert left is not None and not left.mirrored
    assert PlaceDensity.fit([(_body(), np.zeros_like(_dots()))]) is None
    single = PlaceDensity.of([seen(_body(), _dots((10, 12, 8)))])
    assert single is not None and single.gain is None and not single.mirrored


def test_density_draws_places_near_real_ones(mr_set: Path) -> None:
    library, scans = _opened(mr_set, "mr")
    ground = _ground(scans[0], library, 1.0)
    places = ground.candidates(main_label(library.lesions[0]))
    assert library.places is not None
    likely = library.places.over(ground.tissue)[tuple(places.T)]
    weights = ground.weights(places)
    assert weights.sum() == pytest.approx(1) and (weights > 0).all()
    assert (weights * likely).sum() > 1.1 * likely.mean()
    half = _ground(scans[0], library, 0.5).weights(places)
    assert np.allclose(half, 0.5 / len(places) + 0.5 * weights)


def _with_organ(mr_set: Path, out: Path) -> Dataset:
    """The phantoms with a large box of the head labelled as an organ around their lesions."""
    import json

    import nibabel as nib

    source = json.loads((mr_set / "dataset.json").read_text())
    organ = max(source["labels"].values()) + 1
    source["labels"]["organ"] = organ
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).mkdir(parents=True)
        for file in sorted((mr_set / folder).iterdir()):
            (out / folder / file.name).write_bytes(file.read_bytes())
    for file in sorted((out / "labelsTr").glob("*.nii.gz")):
        mask = nib.load(file)
        values = np.asarray(mask.dataobj).copy()
        box = np.zeros(values.shape, bool)
        box[10:46, 12:52, 6:22] = True
        values[box & (values == 0)] = organ
        nib.Nifti1Image(values, mask.affine, mask.header).to_filename(file)
    (out / "dataset.json").write_text(json.dumps(source))
    return open_dataset(out)


def test_organs_hold_the_lesions_and_keep_their_labels(mr_set: Path, tmp_path: Path) -> None:
    dataset = _with_organ(mr_set, tmp_path / "set")
    organ = next(value for value, name in dataset.labels.items() if name == "organ")
    assert organ in mask_values(dataset) and organ not in mask_values(dataset, ["organ"])
    settings = {"data.organs": ["organ"], "augment.removed": 1.0}
    config = Config.resolve("mr", settings=settings)
    scan = open_scan(dataset, dataset.cases[0], config)
    assert scan.organs is not None and scan.labels.max() < organ
    tissue = scan.tissue()
    assert tissue.any() and (scan.organs[tissue] == organ).all() and tissue.sum() < (scan.organs > 0).sum()
    for removed in (0.0, 1.0):
        out = tmp_path / f"made-{removed}"
        made = medgan.augment(dataset.root, factor=2, out=out, method="paste", modality="mr",
                              settings=settings | {"augment.removed": removed})
        assert made.synthetic
        for case in (case for case in open_dataset(out).cases if case.synthetic):
            parent = next(c for c in dataset.cases if case.id.startswith(c.id))
            _, old = dataset.load(parent)
            _, new = open_dataset(out).load(case)
            assert old is not None and new is not None
            lesion = (new.array > 0) & (new.array != organ)
            fresh = lesion & (new.array != old.array)
            assert fresh.any() and (old.array[fresh] > 0).all(), "a new lesion outside the organ"
            assert (new.array[(old.array == organ) & ~lesion] == organ).all(), "the organ lost its label"
            assert not (new.array[old.array == 0]).any()


@pytest.mark.parametrize("organ", ["liver", "background"])
def test_an_unknown_organ_is_refused_by_name(mr_set: Path, organ: str) -> None:
    config = Config.resolve("mr", settings={"data.organs": [organ]})
    with pytest.raises(Refused) as refused:
        build_library(open_dataset(mr_set), config)
    assert refused.value.code == "LABEL_UNKNOWN" and organ in str(refused.value)


def test_all_labels_as_organs_leave_nothing_to_learn(mr_set: Path) -> None:
    dataset = open_dataset(mr_set)
    names = [name for value, name in dataset.labels.items() if value]
    with pytest.raises(Refused, match="no training case has a lesion"):
        build_library(dataset, Config.resolve("mr", settings={"data.organs": names}))


def test_lesions_made_online_keep_the_organs(mr_set: Path, tmp_path: Path) -> None:
    from monai.transforms import LoadImaged

    from medgan.transforms import RandSyntheticLesiond

    dataset = _with_organ(mr_set, tmp_path / "set")
    organ = next(value for value, name in dataset.labels.items() if name == "organ")
    settings = {"data.organs": ["organ"], "augment.visibility": -1e9, "augment.sigmas": 1e9}
    online = [medgan.OnlineLesions(None, dataset, method="paste", modality="mr", settings=settings, share=share)
              for share in (0.0, 1.0)]
    transform = RandSyntheticLesiond(dataset=dataset, method="paste", modality="mr", prob=1.0,
                                     settings=settings | {"augment.removed": 0.0}).set_random_state(1)
    keys = ("image", "label")
    for number, case in enumerate(dataset.cases):
        old = LoadImaged(keys=keys, ensure_channel_first=True)({"image": case.images[0], "label": case.mask})
        before = old["label"].numpy()
        np.testing.assert_array_equal(online[0][number]["label"].numpy(), before)
        assert online[1][number]["synthetic"]
        for item in (online[1][number], transform(dict(old))):
            after = item["label"].numpy()
            np.testing.assert_array_equal(after == 0, before == 0)
            lesion = (after > 0) & (after != organ)
            assert (after[(before == organ) & ~lesion] == organ).all()


def test_specks_are_cut_off_a_lesion_and_its_own_parts_stay() -> None:
    labels = np.zeros((20, 20, 4), np.uint8)
    labels[2:8, 2:8, 1:3] = 1  # The lesion, with another label in its middle.
    labels[4:6, 4:6, 1:3] = 2
    labels[12:14, 12:14, 1:3] = 1  # A part as large as real ones that are learned from: SMALLEST_VOXELS.
    whole = labels.copy()
    labels[17, 17, 1] = labels[10:12, 3, 3] = 1  # Specks.
    np.testing.assert_array_equal(without_specks(labels), whole)


def test_a_lesion_of_few_voxels_keeps_its_largest_part() -> None:
    labels = np.zeros((9, 9, 1), np.uint8)
    labels[1:3, 1:3, 0] = 1
    alone = labels.copy()
    labels[6, 6, 0] = 1
    np.testing.assert_array_equal(without_specks(labels), alone)
    assert not without_specks(np.zeros((3, 3, 3), np.uint8)).any()
