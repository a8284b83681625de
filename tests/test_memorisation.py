"""Copies of training images are flagged, whatever was done to hide them, and fresh images are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from medgan.errors import Refused
from medgan.metrics import memorisation as module
from medgan.metrics.memorisation import memorisation
from medgan.metrics.utility import auroc

Images = NDArray[np.float32]
#: Noise (sd), largest shift (pixels), blur (sd, pixels) and contrast of a copy; network values span 2.
LIGHT, MEDIUM, HEAVY = (0.03, 1, 0.0, 0.95), (0.1, 3, 0.6, 0.8), (0.2, 3, 1.0, 0.6)


def patterns(count: int, seed: int, shape: tuple[int, ...] = (24, 24), channels: int = 1) -> Images:
    """Smooth random images, no two alike."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, channels, *shape))
    smooth = ndimage.gaussian_filter(noise, 1.2, axes=tuple(range(2, noise.ndim)))
    return (smooth / smooth.std() / 3).astype(np.float32)


def copied(images: Images, kind: tuple[float, int, float, float], seed: int) -> Images:
    """Copies: shifted, flipped, blurred, of another contrast and brightness, and noisy."""
    noise, shift, blur, contrast = kind
    rng = np.random.default_rng(seed)
    copies = []
    for image in images[:, 0]:
        flips = tuple(np.flatnonzero(rng.random(image.ndim) < 0.5))
        moved = ndimage.shift(np.flip(image, flips), rng.integers(-shift, shift + 1, image.ndim), order=0,
                              mode="nearest")
        blurred = ndimage.gaussian_filter(moved, blur) if blur else moved
        copies.append(blurred * contrast + rng.uniform(-0.1, 0.1) + rng.normal(0, noise, image.shape))
    return np.stack(copies)[:, None].astype(np.float32)


def told_apart(copies: Images, train: Images, fresh: Images, patients: list[int] | None = None
               ) -> tuple[float, module.Memorisation]:
    found = memorisation(copies, train, fresh, patients=patients)
    values = np.concatenate([found.margin, found.fresh_margin])
    return float(auroc(np.arange(len(values)) < len(copies), values)[0]), found


@pytest.mark.parametrize("shape", [(24, 24), (20, 28), (12, 14, 12)])
def test_copies_are_found_and_new_images_are_not(shape: tuple[int, ...]) -> None:
    train, fresh = patterns(30, 0, shape), patterns(40, 1, shape)
    made = np.concatenate([copied(train[:8], MEDIUM, 2), patterns(12, 3, shape)])
    found = memorisation(made, train, fresh)
    assert found.nearest[:8].tolist() == list(range(8)) and found.flagged[:8].all()
    assert found.flagged[8:].sum() <= 1 and found.share == found.flagged.mean()
    assert (found.n_made, found.n_train, found.n_fresh) == (20, 30, 40)
    interval = stats.binomtest(int(found.flagged.sum()), 20).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert any("Only 40 fresh" in warning for warning in found.warnings)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 1)])
def test_a_flipped_shifted_copy_correlates_perfectly(axes: tuple[int, ...]) -> None:
    """Cut from a larger image, so that what is shifted in is not made up; brightness and contrast do not count."""
    whole = patterns(3, 0, (40, 40))
    train, made = whole[:, :, 6:30, 6:30], np.flip(whole[:, :, 4:28, 9:33], tuple(2 + axis for axis in axes))
    found = memorisation(np.ascontiguousarray(made) * 0.4 + 0.3, train, patterns(10, 1))
    # The margin of a filter that is cut off at the edge differs a little.
    assert (found.correlation > 0.9).all() and found.nearest.tolist() == [0, 1, 2]
    assert memorisation(train * 0.4 + 0.3, train, patterns(10, 1)).correlation == pytest.approx(1, abs=1e-4)


def test_the_search_is_exact() -> None:
    """Against a slow search written anew: every flip, every shift, the correlation of what overlaps."""
    one, other = module._band(patterns(3, 0, (9, 11), 2)), module._band(patterns(4, 1, (9, 11), 2))
    found, _ = module._search(one, other)
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            best = -1.0
            for turned in (left, left[:, ::-1], left[:, :, ::-1], left[:, ::-1, ::-1]):
                for dx in range(-3, 4):
                    for dy in range(-3, 4):
                        pairs = [(turned[:, x, y], right[:, x - dx, y - dy]) for x in range(9) for y in range(11)
                                 if 0 <= x - dx < 9 and 0 <= y - dy < 11]
                        a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
                        norm = max(a @ a, (left ** 2).sum() / 2) * max(b @ b, (right ** 2).sum() / 2)
                        best = max(best, float(a @ b / np.sqrt(norm)))
            assert found[i, j] == pytest.approx(best, abs=1e-5)


def test_large_images_are_searched_from_coarse_to_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, fresh = patterns(12, 0, (40, 40)), patterns(12, 1, (32, 32))
    train, made = whole[:, :, 2:34, 2:34], np.flip(whole[:5, :, 8:40, 7:39], 2)
    monkeypatch.setattr(module, "REACH", 0.2)
    exact = memorisation(made, train, fresh)
    monkeypatch.setattr(module, "EXACT_EDGE", {2: 20, 3: 20})
    found = memorisation(made, train, fresh)
    assert found.nearest.tolist() == exact.nearest.tolist() == list(range(5))
    assert found.correlation == pytest.approx(exact.correlation, abs=1e-4) and (found.correlation > 0.9).all()


def test_without_fresh_images_other_patients_stand_in() -> None:
    """Two images of a patient are the same up to noise: only those of other patients may be compared."""
    base = patterns(30, 0)
    train = np.repeat(base, 2, axis=0) + patterns(60, 1) * 0.1
    patients = [f"p{n // 2}" for n in range(60)]
    found = memorisation(copied(base[:6], LIGHT, 2), train, patients=patients)
    assert found.flagged.all() and found.n_fresh == 30 and found.threshold < 0.8
    assert "of other patients, stand in" in found.warnings[0]
    # Taken for different patients, they make copies look like nothing special.
    assert memorisation(copied(base[:6], LIGHT, 2), train).threshold > 0.9


def test_fresh_images_that_were_trained_on_are_left_out() -> None:
    train = patterns(20, 0)
    found = memorisation(copied(train[:5], LIGHT, 2), train, np.concatenate([patterns(20, 1), train[:3]]))
    assert found.n_fresh == 20 and found.flagged.all()
    assert any("3 of the 23 fresh real images are training images too" in warning for warning in found.warnings)


def test_empty_images_resemble_nothing() -> None:
    made = np.full((3, 1, 24, 24), -1, np.float32)
    found = memorisation(made, patterns(9, 0), patterns(9, 1))
    assert found.share == 0 and (found.correlation == 0).all()
    assert any("3 made images are empty" in warning for warning in found.warnings)


def test_the_control_is_about_one_in_a_hundred() -> None:
    found = memorisation(patterns(300, 5, (12, 12)), patterns(60, 0, (12, 12)), patterns(400, 1, (12, 12)))
    assert 0 < found.control < 0.035 and found.low <= 0.01 <= found.high


def test_what_does_not_fit_is_refused() -> None:
    images = patterns(4, 0)
    with pytest.raises(Refused, match="of one grid"):
        memorisation(patterns(4, 0, (20, 20)), images, images)
    with pytest.raises(Refused, match="too few"):
        memorisation(images[:1], images, images)
    with pytest.raises(Refused, match="not finite"):
        memorisation(images * np.float32(np.nan), images, images)
    with pytest.raises(Refused, match="3 names for 4"):
        memorisation(images, images, patients=["a", "b", "c"])
    with pytest.raises(Refused, match="no control"):
        memorisation(images, images, patients=["a"] * 4)


@pytest.mark.parametrize(("kind", "area"), [(LIGHT, 0.99), (MEDIUM, 0.99)])
def test_copies_of_radiographs_are_flagged(shared_data: Path, kind: tuple[float, int, float, float], area: float
                                           ) -> None:
    with np.load(shared_data / "pneumonia" / "pneumonia.npz") as stored:
        train, fresh = ((stored[f"{split}_images"][:count].astype(np.float32) / 127.5 - 1)[:, None]
                        for split, count in (("train", 400), ("val", 150)))
    reached, found = told_apart(copied(train[:50], kind, 0), train, fresh)
    assert reached >= area and found.share >= 0.9
    assert (found.nearest == np.arange(50)).all() and found.control <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LIGHT, MEDIUM])
def test_copies_of_brain_slices_are_flagged(shared_data: Path, kind: tuple[float, int, float, float]) -> None:
    """Slices 4 mm apart of one head look alike; a copy is nearer still."""
    import nibabel as nib

    slices, people = [], []
    for person, path in enumerate(sorted((shared_data / "brain-t1").glob("sub-*/anat/*.nii.gz"))):
        volume = np.asarray(nib.load(path).dataobj, np.float32)  # type: ignore[attr-defined]
        scaled = np.clip(volume / np.percentile(volume[volume > 0], 99), 0, 1) * 2 - 1
        for z in range(60, 140, 4):
            halved = scaled[:, :, z].reshape(144, 2, 144, 2).mean(axis=(1, 3))
            slices.append(ndimage.zoom(halved, 64 / 144, order=1)[None])
            people.append(person)
    images, owners = np.stack(slices).astype(np.float32), np.array(people)
    train, fresh = images[owners < 6], images[owners >= 6]
    reached, found = told_apart(copied(train[::6], kind, 0), train, fresh, owners[owners < 6].tolist())
    assert reached >= 0.99 and found.share >= 0.9 and (found.nearest == np.arange(0, len(train), 6)).all()


def test_fresh_images_count_as_often_as_their_class_is_among_the_made() -> None:
    rng = np.random.default_rng(0)

    def images(count: int, alike: float) -> NDArray[np.float32]:
        own = rng.standard_normal((count, 1, 16, 16))
        return (alike * anatomy + own).astype(np.float32)

    anatomy = rng.standard_normal((1, 1, 16, 16))
    train = np.concatenate([images(120, 3.0), images(120, 0.2)])
    healthy, ill = images(240, 3.0), images(2_000, 0.2)
    fresh = np.concatenate([healthy[:40], ill])
    classes = np.array(["healthy"] * 40 + ["ill"] * 2_000)
    made = healthy[40:]
    blind = memorisation(made, train, fresh)
    told = memorisation(made, train, fresh, classes=(np.array(["healthy"] * len(made)), classes))
    assert blind.share > 0.2, "pooled, what is healthy looks copied here"
    assert told.share < 0.1 and told.n_fresh == 40
    assert any("of the classes that were made" in text for text in told.warnings)
    same = memorisation(made, train, fresh, classes=(classes, classes))
    assert (same.threshold, same.share) == (blind.threshold, blind.share)
    unknown = memorisation(made, train, fresh, classes=(np.array(["other"] * len(made)), classes))
    assert unknown.threshold == blind.threshold and any("class other" in text for text in unknown.warnings)
