"""What the gates let through, whether rims betray made lesions, and how much samples of one request differ.

    python benchmarks/lesion_quality.py --data ../shared/data --only ms --model runs/ms --sheet docs/images

For each data set and maker, by folds over patients: the task network learns from some patients and judges real and
made lesions, and masks over untouched tissue, in the others. The rim probe compares real lesions with made ones
where the tool puts them and, for makers that can draw any mask, with the same lesions drawn anew in their own place,
where everything but the drawing is the same. A --model has usually seen all patients; that flatters `gan`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import open_dataset
from medgan.imaging.geometry import reorient
from medgan.lesions.compose import compose
from medgan.lesions.crops import working_spacing
from medgan.lesions.gates import judge
from medgan.lesions.library import Library, build_library
from medgan.lesions.looks import Look, sections
from medgan.lesions.makers import Maker, Paste, Procedural, surroundings
from medgan.lesions.placement import Ground, Site
from medgan.lesions.scans import Scan, open_scan
from medgan.lesions.seer import Seer
from medgan.lesions.shapes import RIM_NATIVE, RIM_VOXELS, Lesion, find_lesions, soft_mask
from medgan.metrics.rims import Rim, rim_probe, rims, unroll
from medgan.metrics.variety import Patch, Variety, mean_variety, patch_of, patches, variety
from medgan.reports.makers import Shown, makers_sheet, shown
from medgan.reports.sheets import save

#: Data set -> modality.
SETS = {"glioma": "mr", "ms": "mr", "lung-nodule": "ct"}
#: Samples of one request whose differences are measured, and requests of each case.
SAMPLES, REQUESTS = 3, 6
METHODS = ("paste", "procedural", "gan")
#: Voxels around a lesion drawn anew in its own place.
PAD = 10


@dataclass
class Found:
    """What was collected for one maker."""

    reasons: Counter[str] = field(default_factory=Counter)
    seen: list[float] = field(default_factory=list)
    rims: list[Rim] = field(default_factory=list)
    own: list[Rim] = field(default_factory=list)
    varieties: list[Variety] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    contrasts: list[NDArray[np.float64]] = field(default_factory=list)
    outside_mask: int = 0
    outside_tissue: int = 0
    composed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--only", choices=sorted(SETS), action="append", help="one of the data sets; may be repeated")
    parser.add_argument("--model", type=Path, help="a finished run on the data set of --only, for gan")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="gan only with --model")
    parser.add_argument("--sites", type=int, default=20, help="lesions made by each maker in each case")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="folder for a picture of each data set")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.only or list(SETS):
        results[name] = study(arguments.data / name, SETS[name], arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1), encoding="utf-8")


def study(path: Path, modality: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Measures one data set and prints its tables."""
    dataset, config = open_dataset(path), Config.resolve(modality)
    gan: Maker | None = None
    if arguments.model:
        from medgan.learning.checkpoints import open_run
        from medgan.lesions.gan import Gan

        gan = Gan(open_run(arguments.model), "cpu")
    cases = [case for case in dataset.split("train") if case.mask is not None]
    folds = [cases[n :: arguments.folds] for n in range(arguments.folds)] if len(cases) > 1 else [cases]
    real = Found()
    real_seen: list[bool] = []
    sham: list[bool] = []
    made: dict[str, Found] = {}
    library = build_library(dataset, config)
    for held in folds:
        train = [case for case in cases if case not in held] or cases
        part = replace(dataset, cases=tuple(train))
        known = build_library(part, config)
        seer = Seer.train(part, config, arguments.seed)
        print(f"{path.name}: learned from {seer.learned.lesions} lesions of {seer.learned.patients} patients, AUROC "
              f"{seer.learned.auroc:.2f}, threshold {seer.threshold(config.augment.seen):.3f} {seer.learned.note}"
              + (" (judged on the same patient)" if train == held else ""), flush=True)
        least = seer.threshold(config.augment.seen)
        makers: dict[str, Maker] = {"paste": Paste(), "procedural": Procedural(known)}
        if gan is not None:
            makers["gan"] = gan
        makers = {name: maker for name, maker in makers.items() if name in arguments.methods}
        for case in held:
            scan = open_scan(dataset, case, config)
            real.rims += rims(scan)
            real.shown += shown(scan)
            real_seen += [seer.look(_real_look(scan, lesion, config, seer)) >= least for lesion in find_lesions(scan)]
            _measure(scan, case, part, known, makers, seer, config, arguments, made, sham)
    report: dict[str, object] = {"real seen": [sum(real_seen), len(real_seen)], "tissue seen": [sum(sham), len(sham)]}
    between = variety(patches(library.lesions))
    print(f"\n{path.name}: real lesions seen {_share(real_seen)}, masks over untouched tissue {_share(sham)}")
    print(f"  real lesions of one size differ by {between.raw:.3f} raw, {between.matched:.3f} matched "
          f"({between.pairs} pairs)")
    for name, found in made.items():
        tried, passed = sum(found.reasons.values()), found.reasons[""]
        looked = passed + found.reasons["unseen"]
        ratio = mean_variety(found.varieties).over(between)
        probe, own = rim_probe(real.rims, found.rims), rim_probe(real.rims, found.own)
        rejected = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items() if reason) or "none"
        print(f"  {name}: {passed} of {tried} pass all gates, {passed} of {looked} the task network; rejected "
              f"{rejected}; seen {np.mean(found.seen or [np.nan]):.2f} in the mean")
        print(f"    rims, places of the tool: {probe}")
        print(f"    rims, own places:         {own}")
        print(f"    same request, other seeds, over real lesions of a size: raw {ratio[0]:.2f}, matched {ratio[1]:.2f}")
        contrast = np.mean(found.contrasts, axis=0).round(3).tolist()
        print(f"    contrast to the tissue around, by channel: {contrast}")
        print(f"    {found.composed} cases: {found.outside_mask} voxels changed outside the dilated mask, "
              f"{found.outside_tissue} lesion voxels outside tissue", flush=True)
        report[name] = {"reasons": dict(found.reasons), "seen": found.seen, "rims": str(probe), "own": str(own),
                        "variety": ratio, "contrast": contrast, "outside_mask": found.outside_mask,
                        "outside_tissue": found.outside_tissue}
    if arguments.sheet:
        rows = {"real": real.shown} | {name: found.shown for name, found in made.items()}
        save(makers_sheet(rows), arguments.sheet / f"makers-{path.name}.png")
    return report


def _measure(scan: Scan, case: Case, part: Dataset, library: Library, makers: dict[str, Maker], seer: Seer,
             config: Config, arguments: argparse.Namespace, made: dict[str, Found], sham: list[bool]) -> None:
    """Lesions of every maker at the same sites of one scan."""
    finest = config.data.spacing_mm or float(scan.spacing_mm[:2].min())
    ground = Ground(scan, library, finest_mm=finest, crop=config.data.crop)
    for number in range(arguments.sites):
        rng = np.random.default_rng([arguments.seed, 41, number])
        site = ground.site(library.lesions[rng.integers(len(library.lesions))], rng)
        if site is None:
            continue
        before = scan.image[(slice(None), *site.box)]
        untouched = seer.sight(scan.image, before, site)
        sham.append(untouched.before >= seer.threshold(config.augment.seen))
        assert not seer.passes(untouched, config.augment.seen) or not seer.learned.usable
        for name, maker in makers.items():
            found = made.setdefault(name, Found())
            after = _drawn(maker, scan, site, number)
            verdict = judge(before, after, site, library, config.augment, seer=seer, image=scan.image)
            found.reasons[verdict.reason] += 1
            found.contrasts.append(_contrast(scan, site, after))
            found.seen += [verdict.seen] if verdict.seen is not None else []
            found.rims += _rims(scan, site, after, f"{name}/{case.id}/{number}", case)
            if number < REQUESTS and name != "paste":
                samples = [after] + [_drawn(maker, scan, site, 1000 * n + number) for n in range(1, SAMPLES)]
                found.varieties.append(variety([_patch(sample, site) for sample in samples]))
    for number, lesion in enumerate(find_lesions(scan)):
        own = _own_site(scan, lesion, finest, config.data.crop)
        for name, maker in makers.items():
            if name != "paste":
                made.setdefault(name, Found()).own += _rims(scan, own, _drawn(maker, scan, own, number),
                                                            f"{name}/{case.id}/{number}", case)
    for name, maker in makers.items():
        fresh = _Noting(scan, library, finest_mm=finest, crop=config.data.crop)
        result = compose(fresh, maker, config.augment, arguments.seed)
        if result is not None:
            found = made.setdefault(name, Found())
            found.composed += 1
            image, mask = (v if scan.planar else reorient(v) for v in (result.image, result.mask))
            new = mask.array[0].reshape(scan.labels.shape) > 0
            new &= scan.labels == 0
            changed = (image.array != scan.volume.array).any(axis=0).reshape(scan.labels.shape)
            found.outside_mask += _beyond_rim(changed, fresh.sites, scan)
            found.outside_tissue += int((new & ~scan.tissue()).sum())
            again = replace(scan, image=np.where(changed, _values(scan, image.array), scan.image),
                            labels=np.where(new, 1, 0).astype(np.uint8))
            found.shown += shown(again)


def _values(scan: Scan, array: NDArray[np.generic]) -> NDArray[np.float32]:
    flat = array.reshape(scan.image.shape)
    return np.stack([m.forward(channel, np.float32) for m, channel in zip(scan.maps, flat, strict=True)])


class _Noting(Ground):
    """Ground that remembers which sites were taken."""

    def occupy(self, site: Site) -> None:
        self.sites = [*getattr(self, "sites", []), site]
        super().occupy(site)


def _beyond_rim(changed: NDArray[np.bool_], sites: Sequence[Site], scan: Scan) -> int:
    """Changed voxels further from every new lesion than the rim at the spacing it was worked on."""
    near = np.zeros_like(changed)
    for site in sites:
        rim = max(RIM_VOXELS * site.spacing_mm, RIM_NATIVE * float(scan.spacing_mm[:2].min()))
        near[site.box] |= ndimage.distance_transform_edt(site.labels == 0, sampling=scan.spacing_mm) <= rim
    return int((changed & ~near).sum())


def _drawn(maker: Maker, scan: Scan, site: Site, seed: int) -> NDArray[np.float32]:
    before = scan.image[(slice(None), *site.box)]
    return np.asarray(before + site.weight * (maker.draw(scan, site, seed) - before), np.float32)


def _contrast(scan: Scan, site: Site, after: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C,) how much a made lesion differs from the tissue around, in network values."""
    return np.asarray(np.abs(after[:, site.labels > 0].mean(axis=1) - surroundings(scan, site)))


def _rims(scan: Scan, site: Site, after: NDArray[np.float32], name: str, case: Case) -> list[Rim]:
    x, y, z = site.box
    slab = scan.image[..., z].copy()
    slab[:, x, y] = after
    mask = np.zeros(slab.shape[1:], bool)
    mask[x, y] = site.labels > 0
    return unroll(slab, mask, name, case.patient)


def _patch(after: NDArray[np.float32], site: Site) -> Patch:
    return patch_of(after, site.labels > 0, site.voxel_mm)


def _own_site(scan: Scan, lesion: Lesion, finest: float, crop: int) -> Site:
    """The place and mask of a real lesion as a request."""
    low = np.maximum(lesion.corner - PAD, 0)
    high = np.minimum(lesion.corner + lesion.labels.shape + PAD, scan.labels.shape)
    box = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])), slice(int(low[2]), int(high[2])))
    labels = np.zeros(tuple(high - low), np.uint8)
    inner = tuple(slice(int(c - b), int(c - b) + n) for c, b, n in
                  zip(lesion.corner, low, lesion.labels.shape, strict=True))
    labels[inner] = lesion.labels
    working = working_spacing(lesion.extent_mm, finest, crop)
    rim = max(RIM_VOXELS * working, RIM_NATIVE * float(scan.spacing_mm[:2].min()))
    return Site(box, labels, soft_mask(labels, scan.spacing_mm, rim), lesion, scan.image[(slice(None), *box)].copy(),
                working, scan.planar, scan.spacing_mm)


def _real_look(scan: Scan, lesion: Lesion, config: Config, seer: Seer) -> Look:
    low = int(lesion.corner[2])
    slab = scan.image[..., low : low + lesion.labels.shape[2]]
    mask = np.zeros(slab.shape[1:], bool)
    x, y = (slice(int(c), int(c) + n) for c, n in zip(lesion.corner[:2], lesion.labels.shape[:2], strict=True))
    mask[x, y] = lesion.labels > 0
    finest = config.data.spacing_mm or float(scan.spacing_mm[:2].min())
    return sections(slab, mask, scan.spacing_mm, working_spacing(lesion.extent_mm, finest, seer.learned.size),
                    seer.learned.size, 5)


def _share(passed: Sequence[bool]) -> str:
    return f"{sum(passed)} of {len(passed)}" + (f" ({100 * sum(passed) / len(passed):.0f} %)" if passed else "")


if __name__ == "__main__":
    main()
