"""`evaluate`: synthetic images against real ones, as figures with intervals and as a report to read."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgan import __version__
from medgan.config import Config
from medgan.datasets.cards import PLAN
from medgan.datasets.cases import Dataset
from medgan.datasets.hashing import has_hashed_ids, with_hashed_ids
from medgan.datasets.layout_base import base_of
from medgan.datasets.layouts import open_dataset
from medgan.errors import Interrupted, Refused
from medgan.storage import claimed, is_unused, os_errors_refused, write_json, write_text
from medgan.verbs.plans import refuse_inside
from medgan.verbs.progress import Progress, Report, silent
from medgan.verbs.reading import asked_rules

if TYPE_CHECKING:
    from medgan.verbs.looking import Material

#: What is written.
FIGURES, REPORT = "evaluation.json", "report.html"
#: Key of the verdict -> what was asked.
QUESTIONS = {"utility": "Do they help?", "memorisation": "Are they copies?", "fidelity": "Are they like real ones?",
             "diversity": "Are they as varied?"}
#: Libraries whose version the figures depend on.
LIBRARIES = ("numpy", "scipy", "torch", "monai")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Args:
        out: The folder with `evaluation.json` and `report.html`.
        figures: What is in the JSON: `verdict`, `classes`, `memorisation`, `utility`, `warnings`, and what was
            compared with which settings.
    """

    out: Path
    figures: Mapping[str, Any]

    @property
    def report(self) -> Path:
        """The report, one file that opens offline."""
        return self.out / REPORT

    def lines(self) -> list[str]:
        """The verdict in plain words, a line for each question."""
        return [f"{QUESTIONS[key]} {found['answer'].capitalize()}. {found['text']}"
                for key, found in self.figures["verdict"].items()]

    def summary(self) -> dict[str, Any]:
        """The verdict and what it rests on, without the long lists."""
        return {"out": str(self.out), "report": str(self.report), "verdict": self.figures["verdict"],
                "images": self.figures["images"], "warnings": self.figures["warnings"]}


@os_errors_refused()
def evaluate(real: str | Path, synthetic: str | Path, *, heldout: str | Path | None = None,
             out: str | Path | None = None, modality: str | None = None, config: str | Path | None = None,
             settings: Sequence[str] | Mapping[str, Any] = (), seed: int | None = None, device: str | None = None,
             progress: Report = silent) -> Evaluation:
    """Compares synthetic images with real ones: likeness, variety, copies, and whether they help.

    Every figure comes with n, with what real images give against other real images at the same n, and with an
    interval; docs/evaluate.md explains them. Both sides are read in one way, and compared in equal numbers.

    Args:
        real: The real data set: images with classes, images alone, or scans with lesion masks.
        synthetic: What `augment` or `synthesize` wrote (its synthetic cases are looked at), or any data set of
            synthetic images with classes or mask labels of the real one.
        heldout: Real images of other patients, to test on; None: the real data set's own test or validation split, or
            else a part of its patients.
        out: A new folder; None: `<synthetic>-evaluation` beside it.
        modality: `ct`, `mr`, `xray` or `us`: how intensities are mapped; None: what the data sets say of themselves.
        config: A TOML file of settings.
        settings: Single settings, mostly of the table `evaluate`.
        seed: Of everything drawn.
        device: `auto`, `cpu` or `cuda`.
        progress: Told of each image read and each question asked.

    Raises:
        Refused: Whatever is wrong with data, settings or output; nothing is written then.
        Interrupted: Stopped by the user; nothing is written.
    """
    from medgan.verbs.judging import roles
    from medgan.verbs.looking import gather

    rules = asked_rules(config, settings, "image")
    opened, made = open_dataset(real, rules), open_dataset(synthetic, rules)
    other = open_dataset(heldout, rules) if heldout is not None else None
    target = _target(made, out)
    for dataset in (opened, made, *([other] if other is not None else [])):
        refuse_inside(target, dataset.root)
    resolved = Config.resolve(_modality(modality, opened, made), "image", file=config, settings=settings, seed=seed,
                              device=device)
    _check_encoder(resolved)
    opened, made, other = _called_alike(opened, made, other, resolved)
    found = roles(opened, made, other, resolved.seed)
    about = {"medgan": __version__, "real": _about(opened), "synthetic": _about(made),
             "heldout": {"from": found.heldout_from, **(_about(other) if other is not None else {})}}
    try:
        with claimed(target):
            _refuse_used(target)
            material = gather(found, resolved,
                              lambda done, total: progress(Progress("reading", done, total, "cases")))
            figures, page = _judged(material, resolved, progress)
            whole = _writable({**about, **_compared(found.kind, material, resolved), **figures})
            _write(target, whole, page(whole))
    except KeyboardInterrupt:
        raise Interrupted("stopped; nothing was written") from None
    return Evaluation(target, whole)


def _compared(kind: str, material: Material, config: Config) -> dict[str, Any]:
    """What was compared, with which settings."""
    return {
        "images": {"compared": kind, "size": list(material.made.images.shape[2:]),
                   "channels": int(material.made.images.shape[1]), "classes": list(material.classes),
                   "real": material.train.counts(), "synthetic": material.made.counts(),
                   "heldout": material.heldout.counts()},
        "settings": {"modality": config.modality, "seed": config.seed,
                     "evaluate": config.evaluate.model_dump(mode="json"),
                     "intensity": config.intensity.model_dump(mode="json")},
        "versions": _versions(),
    }


def _writable(values: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read back from the file; bytes of a path that are no text become question marks."""
    return dict(json.loads(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")))


def _write(target: Path, figures: Mapping[str, Any], report: str) -> None:
    """Both files or none."""
    try:
        write_json(target / FIGURES, figures)
        write_text(target / REPORT, report)
    except BaseException:
        for name in (FIGURES, REPORT):
            (target / name).unlink(missing_ok=True)
        raise


def _judged(material: Material, config: Config, progress: Report) -> tuple[dict[str, Any], Any]:
    """The figures, and a function that writes the page from them."""
    from medgan.learning.loop import pick_device
    from medgan.reports.evaluation import Shown, evaluation_page
    from medgan.verbs.measuring import measure_all

    device = pick_device(config.device)

    def tell(text: str) -> None:
        stage, _, rest = text.partition(": ")
        progress(Progress(stage, 0, None, "", rest))

    evidence = measure_all(material, config.evaluate, seed=config.seed, device=str(device), tell=tell)
    shown = Shown(real=material.train.images, real_labels=material.train.labels, made=evidence.made.images,
                  made_labels=evidence.made.labels, alike=evidence.alike, scores=evidence.scores, truth=evidence.truth,
                  lines_down=material.lines_down, seed=config.seed)
    return evidence.figures, lambda figures: evaluation_page(figures, shown)


def _target(made: Dataset, out: str | Path | None) -> Path:
    base = made.root if made.root.is_dir() else base_of(made) / made.root.name.split(".")[0]
    target = Path(out) if out is not None else base.with_name(f"{base.name}-evaluation")
    _refuse_used(target)
    return target


def _refuse_used(target: Path) -> None:
    if not is_unused(target):
        raise Refused("OUT_EXISTS", target, "it exists and is not empty", "Choose another --out, or remove it")


def _modality(given: str | None, real: Dataset, made: Dataset) -> str:
    """As asked for, as a data set says of itself, or as the settings say that made the synthetic one."""
    plan = base_of(made) / PLAN
    noted = None
    if plan.is_file():
        try:
            noted = json.loads(plan.read_text(encoding="utf-8"))["settings"]["modality"]
        except (ValueError, KeyError, TypeError):
            noted = None
    found = given or real.modality or made.modality or noted
    if found is None:
        raise Refused("CFG_VALUE", "--modality", f"{real.root} does not say which modality it is",
                      "Use --modality ct, mr, xray or us")
    return str(found)


def _called_alike(real: Dataset, made: Dataset, heldout: Dataset | None, config: Config
                  ) -> tuple[Dataset, Dataset, Dataset | None]:
    """With hashed ids all data sets where that is asked for, or where one has them: else no patient is known again."""
    sets = [each for each in (real, made, heldout) if each is not None]
    if not (config.data.hash_ids or any(map(has_hashed_ids, sets))):
        return real, made, heldout
    return with_hashed_ids(real), with_hashed_ids(made), with_hashed_ids(heldout) if heldout is not None else None


def _check_encoder(config: Config) -> None:
    """Refuses an encoder that is none before anything is read."""
    from medgan.metrics.features import encoder

    encoder(config.evaluate.features)


def _about(dataset: Dataset) -> dict[str, Any]:
    from medgan.verbs.train import short_name

    # An .npz that was augmented keeps its file's name; the folders tell the two apart.
    return {"name": short_name(dataset), "path": str(dataset.root), "layout": dataset.layout,
            "fingerprint": dataset.fingerprint(), "cases": len(dataset.cases),
            "marked_synthetic": sum(case.synthetic for case in dataset.cases)}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
