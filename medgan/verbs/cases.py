"""Making and saving one synthetic case after another: what `augment` and `synthesize` have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.datasets.layouts import LAYOUTS
from medgan.datasets.provenance import Provenance, handed_on
from medgan.imaging.volume import Volume

if TYPE_CHECKING:
    from medgan.learning.checkpoints import Run

#: Multiples of it, without their whole part, fill [0, 1) evenly.
GOLDEN = (5**0.5 - 1) / 2
#: (number, parent, new case) -> why it could not be made, or an empty string.
Factory = Callable[[int, Case, Case], str]


def factory(dataset: Dataset, config: Config, method: str, run: Path | None, out: Path, seed: int, *,
            label: str | None = None, size_mm: float | None = None, count: int | None = None,
            balance: bool = False, gate: Path | None = None) -> Factory:
    """A function that makes one synthetic case under `out`; its side-car is written last and marks it as done.

    Args:
        dataset: Where parents come from.
        config: Settings.
        method: `gan`, `paste` or `procedural`.
        run: The run folder of the generator, for `gan`.
        out: Root of the data set that is written.
        seed: Seed of the whole; each case mixes in its number.
        label: Lesion label every lesion must contain.
        size_mm: Wanted equivalent diameter.
        count: Lesions a case; None: as in the data.
        balance: As many places without a lesion are filled with tissue.
        gate: Weights of the task network that has to see each lesion; None: no such gate.
    """
    from medgan.learning.checkpoints import open_run
    from medgan.learning.loop import pick_device, step_seed

    opened = open_run(run) if run is not None else None
    layout = LAYOUTS[dataset.layout]
    model, model_hash = (opened.path.name, opened.hash()) if opened else ("", "")

    def save(number: int, parent: Case, new: Case, image: Volume, mask: Volume | None, **what: Any) -> None:
        placed = layout.place(out, dataset, new)
        record = Provenance(id=new.id, patient=new.patient, seed=step_seed(seed, number), method=method, model=model,
                            model_hash=model_hash, **what)
        layout.save(dataset, placed, image, mask, parent, provenance=record)
        record.write(layout.sidecar(placed))

    if config.task == "image":
        assert opened is not None
        from medgan.learning.tasks.image_source import label_map, made_volume

        generator = opened.generator(pick_device(config.device))
        truncation = config.augment.truncation
        follows = config.network.label_maps

        def make_image(number: int, parent: Case, new: Case) -> str:
            template, mask = dataset.load(parent)
            if follows and mask is None:
                return f"its parent {parent.id} has no mask to follow"
            maps = label_map(mask, list(dataset.labels), opened.interface["size"]) if follows and mask else None
            image = made_volume(generator, opened, parent.label, template, step_seed(seed, number),
                                truncation=truncation, maps=maps)
            save(number, parent, new, image, mask if follows else None, parents=(parent.id,) if follows else (),
                 label=parent.label, settings={"truncation": truncation},
                 parent_notes=handed_on(template.notes))
            return ""

        return make_image

    from medgan.lesions.compose import compose
    from medgan.lesions.controls import add_controls
    from medgan.lesions.library import build_library
    from medgan.lesions.makers import Maker, Paste, Procedural
    from medgan.lesions.placement import Ground
    from medgan.lesions.removal import Filler, Tissue, without_lesions
    from medgan.lesions.scans import open_scan
    from medgan.lesions.seer import Seer

    library = build_library(dataset, config)
    maker: Maker
    filler = Tissue()
    control_filler: Filler = filler
    if method == "gan":
        assert opened is not None
        from medgan.lesions.gan import Gan

        maker = Gan(opened, config.device)
        if balance:
            from medgan.lesions.filling import GanFiller

            # The generator's own seam, which is what must not give its lesions away.
            control_filler = GanFiller(opened, config.device)
    else:
        maker = Paste() if method == "paste" else Procedural(library)

    seer = Seer.load(gate) if gate is not None else None

    def make_lesions(number: int, parent: Case, new: Case) -> str:
        original = scan = open_scan(dataset, parent, config)
        emptied = None
        # Spread evenly, not at random, so that a small set has the share that was asked for.
        if (number + 1) * GOLDEN % 1 < config.augment.removed and scan.labels.any():
            scan, emptied = without_lesions(scan, filler, step_seed(seed, number))
        finest = config.data.spacing_mm or float(np.min(scan.spacing_mm[:2]))
        ground = Ground(scan, library, finest_mm=finest, crop=config.data.crop, density=config.augment.density)
        own = int(ndimage.label(original.labels > 0, np.ones((3, 3, 3)))[1]) if emptied is not None else 0
        made = compose(ground, maker, config.augment, step_seed(seed, number), count=count, label=label,
                       size_mm=size_mm, original=original, emptied=emptied, seer=seer)
        if made is None:
            return "no lesion found a place in the tissue and passed the gates"
        if balance:
            made = add_controls(made, ground, control_filler, step_seed(seed, number), len(made.lesions))
        save(number, parent, new, made.image, made.mask, parents=(parent.id,),
             label=label or made.lesions[0].label, lesions=made.lesions, gates=made.gates | {"removed": float(own)},
             parent_notes=handed_on(original.volume.notes))
        return ""

    return make_lesions


def fits_layout(run: Run, dataset: Dataset) -> bool:
    """Whether what a run makes can be written as cases of a data set: images of as many axes, masks where due."""
    if run.config.task != "image":
        return True
    case = dataset.split("train")[0]
    if (case.mask is not None) != run.config.network.label_maps:
        return False
    return dataset.load(case)[0].dims == run.config.data.dims


def synthetic_case(parent: Case, number: int) -> Case:
    """The new case of a parent: with lesions put in it stays its patient, a whole made image is nobody's."""
    new_id = f"{parent.id}syn{number:04d}"
    return replace(parent, id=new_id, synthetic=True, patient=parent.patient if parent.mask is not None else new_id)
