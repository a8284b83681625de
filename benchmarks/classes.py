"""Whether filling a rare class helps a classifier, and what the made images are worth, on PneumoniaMNIST.

    python benchmarks/classes.py --data ../shared/data/pneumonia --out runs/classes [--few 40] [--run RUN] [--minutes M]

Trains a generator on the training images (or takes `--run`, trained on the same ones), fills the rare class until both
are even, and lets `medgan evaluate` compare: likeness, variety, copies, and a classifier with and without, tested on
the validation images, from which nothing was learned. Then as many as `--own-mix` are drawn in the data's own mix of
classes and judged alike, without classifiers. With `--few N` only N images of each class are trained on,
drawn by `--seed`, and there are `--factor` times as many in the end. Prints a line for each figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import medgan
from medgan.datasets.classes import even_factor, training_counts
from medgan.datasets.layouts import open_dataset
from medgan.storage import atomic_path
from medgan.verbs.progress import Progress

#: Figures that are printed, in this order.
SHOWN = ("mmd2", "frechet", "kid", "realness", "precision", "recall", "density", "coverage", "vendi_ratio", "ms_ssim")
#: An evaluation always trains classifiers; these are over at once, and are not shown.
NO_CLASSIFIERS = {"evaluate.seeds": 1, "evaluate.steps": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a MedMNIST-style .npz")
    parser.add_argument("--out", type=Path, required=True, help="gets data, run, augmented data and evaluation")
    parser.add_argument("--few", type=int, help="training images of each class; none: all")
    parser.add_argument("--factor", type=float, help="none: what makes the classes even, with --few 4")
    parser.add_argument("--run", type=Path, help="a finished run on these images; none: one is trained")
    parser.add_argument("--minutes", type=float, help="how long to train; none: as the preset says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5, help="classifiers in each arm")
    parser.add_argument("--own-mix", type=int, default=800, help="images in the data's own mix; 0: none")
    parser.add_argument("--set", action="append", default=[], dest="settings", help="a setting of training, a.b=c")
    arguments = parser.parse_args()
    data = fewer(arguments.data, arguments.few, arguments.out / "data", arguments.seed) if arguments.few else \
        arguments.data
    dataset = open_dataset(data)
    counts = training_counts(dataset)
    factor = arguments.factor or (4.0 if arguments.few else even_factor(counts, sum(counts.values())))
    run = arguments.run or arguments.out / "run"
    if not (run / "config.json").is_file():
        medgan.train(data, modality="xray", task="image", out=run, minutes=arguments.minutes, seed=arguments.seed,
                     settings=arguments.settings, progress=tell)
    out = arguments.out / "augmented"
    made = medgan.augment(data, factor=factor, balance=True, model=run, out=out, seed=arguments.seed, modality="xray")
    print(f"training images {counts}, {len(made.synthetic)} made; "
          f"{training_counts(open_dataset(out), synthetic=True)} together")
    found = medgan.evaluate(data, out, out=arguments.out / "evaluation", modality="xray", seed=arguments.seed,
                            settings={"evaluate.seeds": arguments.seeds}, progress=tell)
    print("\n".join(lines(found.figures)), flush=True)
    if arguments.own_mix:
        mixed = medgan.synthesize(run, arguments.own_mix, out=arguments.out / "own-mix", seed=arguments.seed)
        found = medgan.evaluate(data, mixed.out, out=arguments.out / "own-mix-evaluation", modality="xray",
                                seed=arguments.seed, settings=NO_CLASSIFIERS, progress=tell)
        print("in the data's own mix")
        print("\n".join(likeness(found.figures)))


def fewer(source: Path, count: int, out: Path, seed: int) -> Path:
    """Writes the file with so many training images of each class; validation and test images are kept."""
    archive = next(source.glob("*.npz")) if source.is_dir() else source
    target = out / archive.name
    if not target.is_file():
        rng = np.random.default_rng(seed)
        with np.load(archive, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        labels = arrays["train_labels"].reshape(-1)
        kept = np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == value))[:count]
                                       for value in np.unique(labels)]))
        for name in arrays:
            if name.startswith("train_"):
                arrays[name] = arrays[name][kept]
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return out


def likeness(figures: dict[str, Any]) -> list[str]:
    """How like real images, how various, and how many copies."""
    told = []
    for name, found in figures["classes"].items():
        told.append(f"{name}: n {found['n_synthetic']}, features {found['features']}")
        for key in SHOWN:
            if value := found["measures"].get(key):
                told.append(f"  {key:12} {value['value']:8.4f} [{value['low']:.4f}, {value['high']:.4f}]  real against "
                            f"real {value['floor']:.4f} ± {value['floor_sd']:.4f} (n {value['n_real']})")
    copies = figures["memorisation"]
    told.append(f"flagged as copies {copies['share']:.3f} [{copies['low']:.3f}, {copies['high']:.3f}] of "
                f"{copies['n_synthetic']}, fresh real images {copies['control']:.3f} of {copies['n_fresh']}")
    return told


def lines(figures: dict[str, Any]) -> list[str]:
    """The same, and whether they help."""
    told = likeness(figures)
    used = figures["utility"]
    for arm, found in used["arms"].items():
        told.append(f"{arm:16} " + "  ".join(f"{name} {value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
                                             for name, value in found.items()))
    for pair, found in used["differences"].items():
        told.append(f"{pair:32} " + "  ".join(
            f"{name} {found[name]['mean']:+.3f} [{found[name]['low']:+.3f}, {found[name]['high']:+.3f}]"
            for name in ("auroc", "balanced_accuracy")))
    return told + [f"{key}: {found['answer']}. {found['text']}" for key, found in figures["verdict"].items()]


def tell(progress: Progress) -> None:
    """Only what is begun."""
    if progress.done == 0:
        print(f"{progress.stage}: {progress.text}", flush=True)


if __name__ == "__main__":
    main()
