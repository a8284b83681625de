"""`OnlineLesions`: training cases with new lesions at every look, made while a network trains instead of before."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.hashing import hashed_case, hashed_record
from medgan.datasets.layouts import open_dataset
from medgan.datasets.provenance import Provenance
from medgan.errors import Refused
from medgan.imaging.volume import Volume
from medgan.learning.checkpoints import Run, newest_run, open_run
from medgan.learning.loop import pick_device, step_seed
from medgan.lesions.compose import Made
from medgan.lesions.library import Library, build_library
from medgan.lesions.makers import Maker, Paste, Procedural
from medgan.lesions.scans import lesions_and_organs, open_scan
from medgan.lesions.windows import Outline, Ready, compose_once, crop_scan, fitting, ready
from medgan.verbs.augment import Method, check_run, composing
from medgan.verbs.reading import asked_rules
from medgan.verbs.train import RUNS, check_trainable, real_only

if TYPE_CHECKING:
    from monai.data import MetaTensor

#: Cases kept ready by default: about 200 MB each for a brain of two channels at 1 mm, in every worker.
CACHE_CASES = 4
#: Why a case may come back as it was.
NO_PLACE = "no lesion found a place in the tissue and passed the gates"


class Studio:
    """Puts lesions of a data set's training cases into scans: the library, the maker, and scans made ready.

    It can be sent to other processes: the library goes along, what is large or belongs to a device is made anew.

    Args:
        dataset: Only its training cases are learned from.
        config: Settings.
        method: `gan`, `paste` or `procedural`.
        run: The generator's run, for `gan`.
        cache_cases: Whole cases kept ready.
    """

    def __init__(self, dataset: Dataset, config: Config, method: Method, run: Run | None, cache_cases: int) -> None:
        self.dataset, self.config, self.method, self.run = dataset, config, method, run
        self.cache_cases = cache_cases
        self.parents = tuple(case for case in dataset.split("train") if case.mask is not None and not case.synthetic)
        self.library: Library = build_library(dataset.only(self.parents), config)
        self.model = (run.path.name, run.hash()) if run is not None else ("", "")
        self._outlines: dict[str, Outline] = {}
        self._forget()

    def _forget(self) -> None:
        self._maker: Maker | None = None
        self._ready: OrderedDict[str, Ready] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_maker", "_ready")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def maker(self) -> Maker:
        """What draws; the generator is loaded on first use."""
        if self._maker is None:
            if self.method == "gan":
                from medgan.lesions.gan import Gan

                assert self.run is not None
                self._maker = Gan(self.run, self.config.device)
            else:
                self._maker = Paste() if self.method == "paste" else Procedural(self.library)
        return self._maker

    def ready(self, case: Case) -> Ready:
        """A whole case made ready, from the cache where it is there."""
        if case.id not in self._ready:
            # Room is made first, so that there are never more in memory than were asked for.
            while len(self._ready) >= max(1, self.cache_cases):
                self._ready.popitem(last=False)
            self._ready[case.id] = ready(open_scan(self.dataset, case, self.config), self.library, self.config)
        self._ready.move_to_end(case.id)
        return self._ready[case.id]

    def outline(self, case: Case) -> Outline:
        """What crops of a case need to know; read once and kept."""
        if case.id not in self._outlines:
            self._outlines[case.id] = Outline.of(open_scan(self.dataset, case, self.config))
        return self._outlines[case.id]

    def whole(self, case: Case, seed: int) -> Made | None:
        """A training case with new lesions; None when not one found a place and passed."""
        return self.ready(case).compose(self.maker, seed)

    def crop(self, case: Case | None, volume: Volume, mask: Volume, seed: int) -> Made | None:
        """An image, whole or a crop, with new lesions inside it.

        Args:
            case: The training case it is from; None for an image that is not of the data set.
            volume: Raw values, RAS where it is 3D.
            mask: (1, X, Y[, Z]) on the same grid: lesions that are there, values as in the data set.
            seed: The same seed gives the same lesions.
        """
        outline = self.outline(case) if case is not None else None
        known = case if case is not None else Case("", (), patient="")
        labels, organs = self._lesions_and_organs(mask)
        scan = crop_scan(volume, labels, known, outline, self.config, organs=organs)
        library = fitting(self.library, scan)
        if not library.lesions:
            return None
        return compose_once(scan, library, self.maker, self.config, seed)

    def record(self, name: str, case: Case | None, seed: int, made: Made | None) -> str:
        """What was done, as JSON text: equal in kind for every item, so that any loader can put them in a batch."""
        record = Provenance(id=name, parents=(case.id,) if case else (), patient=case.patient if case else "",
                            label=made.lesions[0].label if made else None, seed=seed, model=self.model[0],
                            model_hash=self.model[1], method=self.method, lesions=made.lesions if made else (),
                            gates=made.gates if made else {})
        if self.config.data.hash_ids:
            called = name.replace(case.id, hashed_case(case.id)) if case else name
            record = replace(hashed_record(record), id=called)
        about = record.as_json()
        return json.dumps(about if made else about | {"synthetic": False, "notice": NO_PLACE})

    def _lesions_and_organs(self, mask: Volume) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
        unknown = [value for value in np.unique(mask.array).tolist() if value not in {0, *self.dataset.labels}]
        if unknown:
            raise Refused("LABEL_OUT_OF_RANGE", mask.source or "label", f"it has the value {unknown[0]:g}, which "
                          f"{self.dataset.root} does not name", "Put in lesions before labels are changed")
        values = mask.array[0].reshape((*mask.shape, 1)[:3]).astype(np.int64)
        return lesions_and_organs(values, self.dataset, self.config.data.organs)


def open_studio(run: str | Path | Run | None, dataset: str | Path | Dataset, *, method: Method = "gan",
                cases: Sequence[str] | None = None, modality: str | None = None, config: str | Path | None = None,
                settings: Sequence[str] | Mapping[str, Any] = (), seed: int = 0, device: str = "cpu",
                cache_cases: int = CACHE_CASES) -> tuple[Studio, Dataset]:
    """Checks what is asked for and reads the real lesions.

    Returns:
        The studio, which holds training cases alone, and the data set with all its cases.

    Raises:
        Refused: As `OnlineLesions`.
    """
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, asked_rules(config, settings))
    modality = modality or opened.modality
    check_trainable(opened, "lesion")
    training = real_only(opened.only(opened.split("train")))
    if method not in ("gan", "paste", "procedural"):
        raise Refused("CFG_VALUE", "method", f"{method!r} is not gan, paste or procedural", "Name one of them")
    if method != "gan" and run is not None:
        raise Refused("CFG_VALUE", "method", f"{method} draws without a run, but one was given",
                      "Give None, or method=\"gan\"")
    if modality is None:
        raise Refused("CFG_VALUE", "modality", f"{opened.root} does not say which modality it is",
                      "Give modality=\"ct\", \"mr\", \"xray\" or \"us\"")
    found: Run | None = None
    if method == "gan":
        found = _found(run, opened, modality)
        resolved = composing(found, config, settings, seed, device)
    else:
        resolved = Config.resolve(modality, "lesion", file=config, settings=settings, seed=seed, device=device)
    pick_device(resolved.device)
    if cases is not None:
        chosen = tuple(named(opened, name) for name in sorted(set(cases)))
        everyone = sum(case.mask is not None for case in training.cases)
        if found and len(chosen) < everyone and found.dataset.get("fingerprint") == real_only(opened).fingerprint():
            raise Refused("SPLIT_LEAK", found.path, f"it was trained on all {everyone} training cases, those held out "
                          "here too", "Train a run on these cases alone")
        training = training.only(chosen)
    return Studio(training, resolved, method, found, cache_cases), opened


def _found(run: str | Path | Run | None, dataset: Dataset, modality: str) -> Run:
    opened = open_run(run) if isinstance(run, str | Path) else run
    opened = opened or newest_run(RUNS, real_only(dataset).fingerprint(), "lesion", modality)
    if opened is None:
        raise Refused("RUN_NOT_FOUND", RUNS, f"there is no finished run on {dataset.root}",
                      "Train one with medgan train, or use method=\"paste\" or \"procedural\"")
    check_run(opened, dataset, "lesion")
    if opened.config.modality != modality:
        raise Refused("RUN_TASK", opened.path, f"it was trained on {opened.config.modality}, not {modality}",
                      "Train on data of this modality")
    opened.generator()  # loaded where it is needed; what is wrong with it is said at once
    return opened


def named(dataset: Dataset, name: str) -> Case:
    """The training case of a name.

    Raises:
        Refused: `SPLIT_LEAK` for a validation or test case; `CFG_VALUE`, `LABEL_MISSING`.
    """
    case = next((case for case in dataset.cases if case.id == name), None)
    if case is None:
        known = ", ".join(case.id for case in dataset.split("train")[:5])
        raise Refused("CFG_VALUE", name, f"{dataset.root} has no case of this name", f"Training cases are {known}, ...")
    refuse_held_out(case)
    if case.mask is None or case.synthetic:
        why = "it has no mask" if case.mask is None else "it is synthetic"
        raise Refused("LABEL_MISSING", name, f"{why}, so it cannot be a parent", "Name real cases with masks")
    return case


def refuse_held_out(case: Case) -> None:
    """Refuses a validation or test case: what is judged on must stay real."""
    if case.split != "train":
        raise Refused("SPLIT_LEAK", case.id, f"it is a {'validation' if case.split == 'val' else 'test'} case; lesions "
                      "are put into training cases alone", "Leave synthesis out of validation and test")


class OnlineLesions(torch.utils.data.Dataset[dict[str, Any]]):
    """A torch data set of the training cases, a share of them with new lesions that differ in every epoch.

    Example:
        >>> import medgan
        >>> cases = medgan.OnlineLesions("runs/lesion", "glioma", share=0.5, seed=1)
        >>> loader = torch.utils.data.DataLoader(cases, batch_size=1, shuffle=True, num_workers=2)
        >>> for epoch in range(100):
        ...     cases.set_epoch(epoch)
        ...     for batch in loader:
        ...         ...

    An item is a dictionary. `image`: float32 `MetaTensor` (C, X, Y[, Z]) and `label`: `MetaTensor` (1, X, Y[, Z]), as
    MONAI's reader would give the file of such a case: raw values, the file's orientation, the affine. `id`: the case;
    `synthetic`: whether it got lesions; `record`: what was done, as JSON text.

    An item depends on (seed, epoch, index) alone: not on workers, order, or any global generator. Validation and test
    cases, synthetic ones and cases without masks are left out. Wrap it in `monai.data.Dataset` to have it transformed.

    Args:
        run: A run folder, or what `train` returned; None: the newest run below `runs/` on this data, or for methods
            without one.
        dataset: A data set with masks.
        method: `gan`, or without any training `paste` (real lesions moved) or `procedural` (made-up ones).
        share: Part of the items that get new lesions.
        repeats: How often each case comes up in an epoch, each time drawn anew.
        cases: Ids of the training cases to use, for folds: lesions come from these alone too. None: all.
        modality: None: what the data set says of itself.
        config: A TOML file of settings.
        settings: Single settings; with a run, how lesions are composed (`augment.*`) alone.
        seed: Seed of everything random.
        device: Where a generator runs. Worker processes can use `cuda` only where they are spawned.
        cache_cases: Whole cases kept in memory, in every worker.

    Raises:
        Refused: `SPLIT_LEAK` where a validation or test case is named, or a run has seen what `cases` leave out;
            `RUN_*`, `LABEL_*`, `CFG_*`, `DATASET_*` as `medgan.augment`.
    """

    def __init__(self, run: str | Path | Run | None, dataset: str | Path | Dataset, *, method: Method = "gan",
                 share: float = 0.5, repeats: int = 1, cases: Sequence[str] | None = None, modality: str | None = None,
                 config: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (), seed: int = 0,
                 device: str = "cpu", cache_cases: int = CACHE_CASES) -> None:
        if not 0 <= share <= 1 or repeats < 1 or cache_cases < 1:
            raise Refused("CFG_VALUE", "OnlineLesions", f"share {share}, repeats {repeats}, cache_cases {cache_cases}",
                          "share lies between 0 and 1, the others are at least 1")
        self.studio, self._all = open_studio(
            run, dataset, method=method, cases=cases, modality=modality, config=config, settings=settings, seed=seed,
            device=device, cache_cases=cache_cases)
        self.share, self.repeats, self.seed = share, repeats, seed
        # Shared with worker processes, those that live on from epoch to epoch too.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that items are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Makes items those of another epoch, as for torch's `DistributedSampler`; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.studio.parents) * self.repeats

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        case = self.studio.parents[index % len(self.studio.parents)]
        seed = step_seed(step_seed(self.seed, self.epoch), index)
        return self._item(case, seed, np.random.default_rng([seed, 3]).random() < self.share, f".{self.epoch}.{index}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def item(self, name: str, draw: int = 0) -> dict[str, Any]:
        """A named training case with new lesions.

        Args:
            name: Its id.
            draw: Another number gives other lesions; the epoch counts too.

        Raises:
            Refused: `SPLIT_LEAK` for a validation or test case.
        """
        case = named(self._all, name)
        if case not in self.studio.parents:
            raise Refused("SPLIT_LEAK", name, "it is not among the `cases` this was made for", "Name it there")
        seed = step_seed(step_seed(step_seed(self.seed, self.epoch), self.studio.parents.index(case)), draw)
        return self._item(case, seed, True, f".{self.epoch}.{name}.{draw}")

    def _item(self, case: Case, seed: int, wanted: bool, suffix: str) -> dict[str, Any]:
        made = self.studio.whole(case, seed) if wanted else None
        image, mask = (made.image, made.mask) if made else self.studio.ready(case).original()
        record = self.studio.record(case.id + suffix, case, seed, made) if wanted else json.dumps({"synthetic": False})
        return {"image": _tensor(image, np.float32, case.images[0]),
                "label": _tensor(mask, mask.array.dtype, case.mask or case.images[0]),
                "id": case.id, "synthetic": made is not None, "record": record}


def _tensor(volume: Volume, dtype: Any, source: Path) -> MetaTensor:
    """A `MetaTensor` as MONAI's reader makes it: contiguous, its affine as long as it has axes, its file's name."""
    from monai.data import MetaTensor

    array = np.ascontiguousarray(volume.array, dtype=dtype)
    # A copy, where nothing was copied yet: what a caller does to an item must not reach the cache.
    array = array.copy() if np.shares_memory(array, volume.array) else array
    axes = [*range(volume.dims), 3]
    affine = torch.from_numpy(np.array(volume.affine[np.ix_(axes, axes)]))
    return MetaTensor(torch.from_numpy(array), affine=affine,
                      meta={"filename_or_obj": str(source), "spatial_shape": np.asarray(volume.shape)})
