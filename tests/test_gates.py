"""The gates: the task network sees real lesions and nothing in mere tissue, and says why a lesion is rejected."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.lesions.compose import Made, compose
from medgan.lesions.gates import REASONS, Verdict, judge, tally
from medgan.lesions.library import Library, build_library, main_label
from medgan.lesions.looks import sections
from medgan.lesions.makers import Paste
from medgan.lesions.placement import Ground, Site
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.seer import Seer, Sight

STEPS = 120


@pytest.fixture(scope="module")
def config(tiny: dict[str, object]) -> Config:
    return Config.resolve("mr", settings=tiny)


@pytest.fixture(scope="module")
def seer(mr_set: Path, config: Config) -> Seer:
    return Seer.train(open_dataset(mr_set), config, 0, steps=STEPS)


@pytest.fixture(scope="module")
def library(mr_set: Path, config: Config) -> Library:
    return build_library(open_dataset(mr_set), config)


@pytest.fixture(scope="module")
def placed(mr_set: Path, config: Config, library: Library) -> tuple[Scan, list[Site]]:
    dataset = open_dataset(mr_set)
    scan = open_scan(dataset, dataset.cases[0], config)
    ground = Ground(scan, library, finest_mm=float(scan.spacing_mm[:2].min()), crop=32)
    largest = sorted(library.lesions, key=lambda lesion: -lesion.size_mm)[:4]
    sites = [site for seed in range(4) for donor in largest
             if (site := ground.site(donor, np.random.default_rng(seed))) is not None]
    assert len(sites) >= 4
    return scan, sites


def _before(scan: Scan, site: Site) -> np.ndarray:
    return scan.image[(slice(None), *site.box)]


def test_the_network_sees_pasted_lesions_and_nothing_in_tissue(seer: Seer, placed: tuple[Scan, list[Site]]) -> None:
    assert seer.learned.usable and seer.learned.auroc > 0.9
    scan, sites = placed
    least = seer.threshold(0.3)
    assert 0 < least <= 0.3
    seen = []
    for site in sites:
        before = _before(scan, site)
        made = before + site.weight * (Paste().draw(scan, site, 0) - before)
        untouched, sight = seer.sight(scan.image, before, site), seer.sight(scan.image, made, site)
        assert untouched.before == untouched.after == sight.before
        assert not seer.passes(untouched, 0.3), "a mask over untouched tissue passed"
        seen.append(seer.passes(sight, 0.3))
    assert np.mean(seen) >= 0.75


def test_the_scan_that_is_looked_at_keeps_its_values(seer: Seer, placed: tuple[Scan, list[Site]]) -> None:
    scan, sites = placed
    kept = scan.image.copy()
    seer.sight(scan.image, _before(scan, sites[0]) + 1, sites[0])
    assert np.array_equal(scan.image, kept)


def test_the_same_seed_learns_the_same_and_another_does_not(mr_set: Path, config: Config) -> None:
    dataset = open_dataset(mr_set)
    one, same, other = (Seer.train(dataset, config, seed, steps=3) for seed in (1, 1, 2))
    weights = [np.concatenate([p.numpy().ravel() for p in seer.network.parameters()]) for seer in (one, same, other)]
    assert np.array_equal(weights[0], weights[1]) and one.learned == same.learned
    assert not np.array_equal(weights[0], weights[2])


def test_a_saved_network_says_the_same(seer: Seer, placed: tuple[Scan, list[Site]], tmp_path: Path) -> None:
    seer.save(tmp_path / "seer.safetensors")
    again = Seer.load(tmp_path / "seer.safetensors")
    scan, sites = placed
    after = _before(scan, sites[0]) + np.float32(0.3)
    assert again.learned == seer.learned
    assert again.sight(scan.image, after, sites[0]) == seer.sight(scan.image, after, sites[0])


def test_files_that_are_no_task_network_are_refused(seer: Seer, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(Refused) as refused:
        Seer.load(tmp_path / "none.safetensors")
    assert refused.value.code == "FILE_MISSING"
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00\x00")
    save_file(seer.network.state_dict(), tmp_path / "bare.safetensors")
    for name in ("torn", "bare"):
        with pytest.raises(Refused) as refused:
            Seer.load(tmp_path / f"{name}.safetensors")
        assert refused.value.code == "CKPT_CORRUPT"


def test_the_threshold_yields_to_real_lesions_but_not_to_tissue(seer: Seer) -> None:
    def known(reach: float, floor: float) -> Seer:
        return Seer(seer.network, replace(seer.learned, reach=reach, floor=floor, auroc=0.95))

    assert known(0.8, 0.05).threshold(0.3) == 0.3
    assert known(0.1, 0.05).threshold(0.3) == 0.1
    assert known(0.01, 0.05).threshold(0.3) == 0.05
    weak = known(0.1, 0.05)
    assert weak.passes(Sight(0.02, 0.12), 0.3) and not weak.passes(Sight(0.02, 0.09), 0.3)
    assert not weak.passes(Sight(0.4, 0.42), 0.3), "it was seen there before"


def test_a_network_that_learned_nothing_opens_its_gate_and_says_so(seer: Seer) -> None:
    blind = Seer(seer.network, replace(seer.learned, auroc=0.6))
    assert blind.passes(Sight(0.0, 0.0), 0.3) and "gate is open" in blind.learned.note
    assert seer.passes(Sight(0.0, 0.0), 0.0), "0 opens the gate"
    few = replace(seer.learned, auroc=0.95, patients=2, lesions=2)
    assert few.usable and few.note.endswith("learned from 2 lesions only")
    assert not replace(few, patients=3, lesions=9).note
    assert "one patient" in replace(few, patients=1, auroc=0.0).note


def test_each_gate_gives_its_reason(seer: Seer, placed: tuple[Scan, list[Site]], library: Library) -> None:
    scan, sites = placed
    gates = Config.resolve("mr").augment
    site = sites[0]
    before = _before(scan, site)
    inside = site.labels > 0

    def verdict(after: np.ndarray, **changed: float) -> Verdict:
        return judge(before, after.astype(np.float32), site, library, gates.model_copy(update=changed), seer=seer,
                     image=scan.image)

    assert verdict(before + 50 * inside).reason == "intensity"
    assert verdict(before * np.nan).reason == "intensity"
    unchanged = verdict(before)
    assert unchanged.reason == "contrast" and unchanged.seen is None, "the network is asked last"
    unseen = verdict(before, visibility=-1e9)
    assert unseen.reason == "unseen" and unseen.seen is not None and unseen.seen < seer.threshold(gates.seen)
    assert verdict(before, visibility=-1e9, seen=0.0).passed
    known = library.statistics[main_label(site.donor)]
    fitting = before + site.weight * (known.mean[0] - before)
    assert judge(before, fitting.astype(np.float32), site, library, gates).seen is None


def test_the_tally_counts_by_reason() -> None:
    verdicts = [Verdict("", 1.0, 0.9, 0.2, 0.7), Verdict("unseen", 1.0, 0.9, 0.2, 0.01),
                Verdict("", 2.0, 0.5, 0.4, 0.6), Verdict("contrast", 1.0, 0.0, 0.0), Verdict("unseen", 0, 1, 1, 0.1)]
    assert tally(verdicts) == {"deviation": 2.0, "visibility": 0.5, "contrast": pytest.approx(0.3), "seen": 0.6,
                               "rejected": 3.0, "rejected_intensity": 0.0, "rejected_contrast": 1.0,
                               "rejected_unseen": 2.0}
    assert "seen" not in tally([Verdict("", 1.0, 1.0, 1.0)])
    assert {f"rejected_{reason}" for reason in REASONS} <= set(tally([Verdict("", 1.0, 1.0, 1.0)]))


def test_composing_keeps_only_what_the_network_sees(seer: Seer, placed: tuple[Scan, list[Site]],
                                                     library: Library) -> None:
    scan, _ = placed
    gates = Config.resolve("mr").augment

    def composed(judging: Seer | None) -> Made | None:
        ground = Ground(scan, library, finest_mm=float(scan.spacing_mm[:2].min()), crop=32)
        return compose(ground, Paste(), gates, 3, count=2, seer=judging)

    made = composed(seer)
    assert made is not None and made.gates["seen"] >= seer.threshold(gates.seen)
    assert made.gates["rejected"] == sum(made.gates[f"rejected_{reason}"] for reason in REASONS)
    without = composed(None)
    assert without is not None and "seen" not in without.gates
    blind = Seer(copy.deepcopy(seer.network), seer.learned)
    blind.network.out.weight.zero_()
    blind.network.out.bias.fill_(-10)
    assert composed(blind) is None, "a network that sees nothing lets nothing pass"


def test_sections_lie_within_the_lesion_and_thin_masks_are_not_lost() -> None:
    image = np.zeros((1, 40, 40, 12), np.float32)
    mask = np.zeros((40, 40, 12), bool)
    mask[10:20, 12:22, 1:11] = True
    image[0, mask] = 1
    look = sections(image, mask, np.ones(3), 1.0, 32, 5)
    assert look.images.shape == (5, 1, 32, 32) and (look.masks.reshape(5, -1).sum(axis=1) == 100).all()
    assert (look.images[:, 0][look.masks] == 1).all()
    thin = np.zeros((40, 40, 12), bool)
    thin[10, 10, 3] = True
    assert sections(image, thin, np.ones(3), 4.0, 32, 5).masks.any()
