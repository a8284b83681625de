"""What a run has learned, as pictures: `medgan inspect RUN --pictures DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgan.datasets.cases import Dataset
from medgan.datasets.layouts import open_dataset
from medgan.datasets.subset import as_training
from medgan.errors import Refused
from medgan.imaging.rules import Rules
from medgan.storage import write_json
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.train import real_only

if TYPE_CHECKING:
    from torch import Tensor

    from medgan.learning.checkpoints import Run
    from medgan.learning.task import Batch, Task
    from medgan.learning.understanding import Draw, Noise

#: Pictures of a row, and rows of walks for each class.
WIDE, WALKS = 10, 3
#: How far samples are pulled towards the mean in the row of each.
DIAL = (1.0, 0.75, 0.5, 0.25, 0.0)
#: Samples by which variety and means are measured.
SAMPLES = 64
#: What the figures of the pictures are written to.
FIGURES = "pictures.json"
#: Splits whose real images no generator saw.
UNSEEN = ("val", "test")
RED, BLUE = (255, 70, 40), (60, 140, 255)


@dataclass
class Pictures:
    """What was drawn.

    Args:
        out: The folder.
        files: Names of the PNG files in it.
        figures: Numbers that go with them, as in `pictures.json`.
        notes: What could not be drawn, and why.
    """

    out: Path
    files: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pictures(run: str | Path | Run, out: str | Path, *, seed: int = 0, progress: Report = silent) -> Pictures:
    """Draws what a run of the task image or lesion has learned.

    - `walks.png`: from one sample to another. Smooth changes are a generator that has understood something; jumps
      between training images, one that has learned them by heart.
    - `means.png`: each class's mean sample, mean of samples, and mean real image.
    - `dial.png`: the same samples pulled towards their mean (`augment.truncation`), with their variety beside.
    - `projection.png`: real images and the nearest that the generator can make, seen and unseen ones.
    - `attention.png`: where the discriminator looks (Grad-CAM): red speaks for real, blue for made.

    A lesion run has walks, dial and attention; for the others the data set must lie where the run was trained on it.

    Args:
        run: A finished run.
        out: A folder, made if it is not there; it must be empty.
        seed: Of the samples.
        progress: Told of each picture.

    Raises:
        Refused: `RUN_*`, `CKPT_*`, `OUT_EXISTS`; `RUN_TASK` for up-sampling.
    """
    from medgan.learning.checkpoints import open_run

    opened = open_run(run) if isinstance(run, str | Path) else run
    if opened.config.task == "upscale":
        raise Refused("RUN_TASK", opened.path, "a run of the task upscale draws nothing of its own",
                      "Look at its samples/*.png")
    if not opened.finished:
        raise Refused("RUN_UNFINISHED", opened.path, "training did not reach its end, so there are no weights",
                      f"Finish it with medgan train --out {opened.path} --resume")
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused("OUT_EXISTS", target, "it exists and is not empty", "Choose another folder")
    drawn = Pictures(target)
    gallery = _Gallery(opened, drawn, seed, progress)
    target.mkdir(parents=True, exist_ok=True)
    (_images if opened.config.task == "image" else _lesions)(gallery)
    write_json(target / FIGURES, {"run": opened.path.name, "weights": opened.hash(), "seed": seed,
                                  **drawn.figures, "notes": drawn.notes})
    return drawn


class _Gallery:
    """A run's players, its data where they are, and what is drawn so far."""

    def __init__(self, run: Run, drawn: Pictures, seed: int, progress: Report) -> None:
        from medgan.learning.checkpoints import load_state
        from medgan.learning.loop import State
        from medgan.learning.tasks import TASKS

        self.run, self.drawn, self.seed, self.progress = run, drawn, seed, progress
        self.generator = run.generator()
        task = TASKS[run.config.task](run.config, run.interface)
        self.task: Task | None = task if load_state(State.fresh(task, run.config.training), run.path) else None
        if self.task is None:
            drawn.notes.append("no attention: the run folder has no state/, so the discriminator is not known")
        else:
            self.task.eval().requires_grad_(False)
        try:
            self.data: Dataset | None = real_only(open_dataset(run.dataset["path"],
                                                                       Rules.of(run.config.data)))
            if self.data.fingerprint() != run.dataset["fingerprint"]:
                self.data = None
                drawn.notes.append("no real images: the data set is no longer the one that the run was trained on")
        except Refused as refused:
            self.data = None
            drawn.notes.append(f"no real images: {refused}")

    def source(self) -> Any:
        """The training images, as training reads them; None where the data set is not there."""
        from medgan.learning.tasks import TASKS

        return None if self.data is None else TASKS[self.run.config.task].source(self.data, self.run.config)

    def unseen(self) -> Any:
        """Images of the run's classes and size that it did not learn from; None, and a note, where there are none."""
        from medgan.learning.tasks.image_source import ImageSource

        cases = [case for case in self.data.cases if case.split in UNSEEN] if self.data is not None else []
        if self.data is None or not cases:
            self.drawn.notes.append("no unseen images: the data set has no validation or test cases")
            return None
        try:
            return ImageSource(as_training(self.data, cases), self.run.config, self.run.interface)
        except Refused as refused:
            self.drawn.notes.append(f"no unseen images: {refused}")
            return None

    def shown(self, images: Tensor) -> list[NDArray[np.uint8]]:
        """(N, C, X, Y[, Z]) as pictures of the first channel, in 3D of the middle slice."""
        from medgan.reports.sheets import grey

        return [grey(self.flat(image)) for image in images.float().cpu().numpy()]

    def flat(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, X, Y[, Z]) as one slice whose second axis goes up."""
        from medgan.reports.sheets import plane

        return plane(image, lines_down=bool(self.run.interface.get("lines_down")))

    def save(self, name: str, rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]) -> None:
        from medgan.reports.sheets import save, sheet

        edge = max(picture.shape[0] for _, row in rows for picture in row)
        save(sheet(rows, zoom=max(1, 64 // edge)), self.drawn.out / name)
        self.drawn.files.append(name)
        self.progress(Progress("drawing", len(self.drawn.files), None, "pictures", name))


def _images(gallery: _Gallery) -> None:
    import torch

    run, generator = gallery.run, gallery.generator
    names = list(run.interface["classes"])
    latent = run.config.network.latent
    chance = torch.Generator().manual_seed(gallery.seed)

    def draw_of(index: int) -> Draw:
        def draw(noise: Noise) -> Tensor:
            made: Tensor = generator(noise[0], torch.full((len(noise[0]),), index))
            return made

        return draw

    if run.config.network.label_maps:
        gallery.drawn.notes.append("a run that follows label maps is shown by its samples/*.png alone")
        return
    draws = {name: draw_of(index) for index, name in enumerate(names)}
    starts = [[torch.randn(WALKS, latent, generator=chance)] for _ in range(2)]
    fixed = [torch.randn(SAMPLES, latent, generator=chance)]
    source = gallery.source()
    real = {name: torch.from_numpy(source.of_class(index)) if source is not None else None
            for index, name in enumerate(names)}
    _walks(gallery, draws, starts)
    _means(gallery, draws, fixed, real)
    _dial(gallery, draws, fixed, real)
    if source is not None:
        _projection(gallery, draws, latent, source)
    if gallery.task is not None:
        _attention(gallery, [(name, real[name], draw(fixed)[:WIDE], torch.full((WIDE,), index))
                             for index, (name, draw) in enumerate(draws.items())])


def _lesions(gallery: _Gallery) -> None:
    import torch

    from medgan.learning.tasks.lesion import paint

    source = gallery.source()
    if source is None:
        return
    requests = source.requests(WIDE)
    shapes = gallery.generator.noise_shapes(requests["image"].shape[2:])  # type: ignore[operator]
    chance = torch.Generator().manual_seed(gallery.seed)

    def noise(count: int) -> Noise:
        return [torch.randn(count, *shape, generator=chance) for shape in shapes]

    def draw_into(batch: Batch) -> Draw:
        return lambda noise: paint(gallery.generator, batch, list(noise))

    few = {name: tensor[:WALKS] for name, tensor in requests.items()}
    _walks(gallery, {"lesions": draw_into(few)}, [noise(WALKS), noise(WALKS)])
    one = {name: tensor[:1].expand(WIDE, *tensor.shape[1:]) for name, tensor in requests.items()}
    _dial(gallery, {"one request": draw_into(one)}, noise(WIDE), {"one request": None})
    if gallery.task is not None:
        real = source.lesions_only(WIDE)
        with torch.no_grad():
            made = draw_into(requests)(noise(WIDE))
        _attend(gallery, [("real lesions", real["image"], _context(real)), ("made lesions", made, _context(requests))])


def _context(batch: Batch) -> list[Tensor]:
    return [batch["void"], batch["labels"], batch["condition"]]


def _walks(gallery: _Gallery, draws: dict[str, Draw], starts: Sequence[Noise]) -> None:
    """Each row goes from one sample to another; the steps' sizes say how evenly."""
    import torch

    from medgan.learning.understanding import between

    rows = []
    for name, draw in draws.items():
        with torch.no_grad():
            steps = torch.stack([draw(noise) for noise in between(starts[0], starts[1], WIDE)])
        moved = (steps[1:] - steps[:-1]).flatten(2).square().mean(dim=2).sqrt()
        gallery.drawn.figures.setdefault("walks", {})[name] = {
            "largest_step_over_mean": round(float((moved.max(dim=0).values / moved.mean(dim=0).clamp(min=1e-9)).mean()),
                                            4)}
        rows += [(f"{name}: from one sample to another" if not number else "", gallery.shown(steps[:, number]))
                 for number in range(steps.shape[1])]
    gallery.save("walks.png", rows)


def _means(gallery: _Gallery, draws: dict[str, Draw], fixed: Noise, real: dict[str, Tensor | None]) -> None:
    """What a class looks like in the mean, made and real."""
    import torch

    captions, columns = [], []
    for name, draw in draws.items():
        with torch.no_grad():
            made = [draw([torch.zeros_like(fixed[0][:1])])[0], draw(fixed).mean(dim=0)]
        own = real[name]
        if own is not None:
            made.append(own.mean(dim=0))
            gallery.drawn.figures.setdefault("means", {})[name] = {
                "difference_of_mean_images": round(float((made[1] - made[2]).square().mean().sqrt()), 5)}
        captions.append(name)
        columns.append(gallery.shown(torch.stack(made)))
    kinds = ["sample at the mean latent vector", f"mean of {SAMPLES} samples", "mean of the real images"]
    gallery.save("means.png", [(f"{kind} ({', '.join(captions)})", [column[n] for column in columns])
                               for n, kind in enumerate(kinds) if n < len(columns[0])])


def _dial(gallery: _Gallery, draws: dict[str, Draw], fixed: Noise, real: dict[str, Tensor | None]) -> None:
    """The same samples, ever closer to their mean."""
    import torch

    from medgan.learning.understanding import truncated, variety

    rows = []
    for name, draw in draws.items():
        own = real[name]
        whole = variety(own[:SAMPLES]) if own is not None else None
        for psi in DIAL:
            with torch.no_grad():
                made = draw(truncated(fixed, psi))
            spread = variety(made)
            figure = {"variety": round(spread, 5)} | ({"over_real": round(spread / whole, 4)} if whole else {})
            gallery.drawn.figures.setdefault("dial", {}).setdefault(name, {})[f"{psi:g}"] = figure
            told = f"variety {spread:.3f}" + (f", {spread / whole:.0%} of the real images'" if whole else "")
            rows.append((f"{name}, truncation {psi:g}: {told}", gallery.shown(made[:WIDE])))
    gallery.save("dial.png", rows)


def _projection(gallery: _Gallery, draws: dict[str, Draw], latent: int, seen: Any) -> None:
    """Real images and the nearest samples; unseen ones show what the generator can make, not what it has seen."""
    from medgan.learning.understanding import project

    rows = []
    rng = np.random.default_rng([gallery.seed, 29])
    for told, source in (("seen in training", seen), ("unseen", gallery.unseen())):
        if source is None:
            continue
        for index, (name, draw) in enumerate(draws.items()):
            stored = source.of_class(index)
            if not len(stored):
                continue
            import torch

            images = torch.from_numpy(stored[rng.permutation(len(stored))[:WIDE]])
            found = project(draw, images, latent, seed=gallery.seed)
            gallery.drawn.figures.setdefault("projection", {}).setdefault(name, {})[told] = {
                "n": len(images), "median_error": round(float(np.median(found.error)), 5)}
            rows += [(f"{name}, {told}: real", gallery.shown(images)),
                     (f"nearest made: median difference {np.median(found.error):.3f}", gallery.shown(
                         torch.from_numpy(found.made)))]
    gallery.save("projection.png", rows)


def _attention(gallery: _Gallery, kinds: Sequence[tuple[str, Tensor | None, Tensor, Tensor]]) -> None:
    sets: list[tuple[str, Tensor, list[Tensor]]] = []
    for name, real, made, classes in kinds:
        if real is not None:
            own = real[:WIDE]
            sets.append((f"{name}: real", own, [classes[: len(own)]]))
        sets.append((f"{name}: made", made.detach(), [classes]))
    _attend(gallery, sets)


def _attend(gallery: _Gallery, sets: Sequence[tuple[str, Tensor, list[Tensor]]]) -> None:
    """Pictures, and over them what speaks for real (red) and for made (blue)."""
    from medgan.learning.understanding import attention

    assert gallery.task is not None
    critic: Any = gallery.task.discriminator
    rows: list[tuple[str, Sequence[NDArray[np.uint8]]]] = []
    for name, images, context in sets:
        seen = [attention(critic, images, context, made=made) for made in (False, True)]
        shown = gallery.shown(images)
        rows += [(name, shown), ("where the discriminator looks: red for real, blue for made", [
            _tinted(picture, gallery.flat(red[None]), gallery.flat(blue[None]))
            for picture, red, blue in zip(shown, *seen, strict=True)])]
    gallery.save("attention.png", rows)


def _tinted(picture: NDArray[np.uint8], red: NDArray[np.float32], blue: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A picture with two maps (X, Y) of 0 to 1 laid over it."""
    mixed = picture.astype(np.float32)
    for map_, colour in ((red, RED), (blue, BLUE)):
        share = 0.6 * np.clip(map_.T[::-1], 0, 1)[..., None]
        mixed = mixed * (1 - share) + np.array(colour, np.float32) * share
    return np.rint(mixed).astype(np.uint8)
