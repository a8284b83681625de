"""The figures of `evaluate`, and what they come to in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.config import Evaluate
from medgan.datasets.classes import ONLY_CLASS
from medgan.errors import Refused
from medgan.verbs.looking import Material, Pictures

#: All classes together, in the mix in which there are enough of each.
ALL = "all classes"
#: The encoder asked for a second opinion of the distance: blind to other faults than radiomics.
SECOND = "random"
#: Convention of ours: this share of flagged images is what chance flags too.
COPIES = 0.01
#: With fewer fresh real images nobody knows how alike two patients can be, and only identical images are copies.
FRESH = 50
#: Fewer held-out images of a class than this, and no test of two classifiers is possible.
FEWEST_TESTED = 2
#: Convention of ours: what synthetic images alone should reach of what real ones teach.
TRANSFER = 0.95
#: Training arms of `medgan.metrics.arms`: the one with synthetic images, those it has to beat, synthetic ones alone.
ADDED, CONTROLS, ONLY, TAUGHT = "synthetic added", ("classic", "oversampled", "duplicated"), "synthetic only", "classic"
#: Pairs of most alike images that are kept by name.
PAIRS = 24

Tell = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Evidence:
    """All figures, as plain values and as what pictures are drawn from.

    Args:
        figures: What `evaluation.json` holds of it.
        alike: (synthetic, training, correlation, flagged), numbers into `made` and the training images; flagged ones
            first, then by correlation.
        made: The synthetic images that were looked at.
        scores: Arm -> (N, K) mean probabilities of the held-out images; empty where the question was not asked.
        truth: (N,) their classes as numbers.
    """

    figures: dict[str, Any]
    alike: tuple[tuple[int, int, float, bool], ...]
    made: Pictures
    scores: Mapping[str, NDArray[np.float64]]
    truth: NDArray[np.intp]


def measure_all(material: Material, settings: Evaluate, *, seed: int, device: str, tell: Tell) -> Evidence:
    """All figures of real against synthetic images.

    Args:
        material: The images.
        settings: The table `evaluate`.
        seed: Of everything drawn.
        device: Where classifiers are trained.
        tell: Told what is done, as "stage: what of it".
    """
    warnings = list(material.warnings)
    made = material.made.thinned(settings.most, seed)
    compared = made.take(np.isin(made.labels, material.classes))
    reference = material.train.take(np.isin(material.train.labels, material.classes)).thinned(2 * settings.most, seed)
    figures: dict[str, Any] = {"classes": _by_class(material, reference, compared, settings, seed, tell, warnings)}
    tell("looking for copies")
    memory, alike = _memory(material, made, settings, seed, warnings)
    figures["memorisation"] = memory
    utility, scores, truth = _utility(material, settings, seed, device, tell)
    figures["utility"] = utility
    figures["verdict"] = {"utility": _helps(utility), "memorisation": _copies(memory),
                          "fidelity": _alike(figures["classes"]), "diversity": _varied(figures["classes"])}
    figures["warnings"] = list(dict.fromkeys(warnings))
    return Evidence(plain(figures), alike, made, scores, truth)


def _by_class(material: Material, real: Pictures, made: Pictures, settings: Evaluate, seed: int, tell: Tell,
              warnings: list[str]) -> dict[str, Any]:
    from medgan.metrics.features import encoder

    names = [settings.features] if settings.features == SECOND else [settings.features, SECOND]
    encoders = [encoder(name) for name in names]
    told = []
    for each in encoders:
        tell(f"features: {each.name}")
        told.append((np.asarray(each(real.images), np.float64), np.asarray(each(made.images), np.float64)))
    found: dict[str, Any] = {}
    groups = [(name, np.flatnonzero(real.labels == name), np.flatnonzero(made.labels == name))
              for name in material.classes]
    if len(groups) > 1:
        groups = [(ALL, *_same_mix(real, made, material.classes, seed)), *groups]
    for name, ours, theirs in groups:
        tell(f"comparing: {name}")
        one, other = real.take(ours), made.take(theirs)
        entry: dict[str, Any] = {"n_real": len(one), "n_synthetic": len(other),
                                 "patients_real": len(np.unique(one.patients)), "features": encoders[0].name}
        measured, refused = _measured(told[0][0][ours], told[0][1][theirs], one, other, seed)
        entry["measures"] = measured
        if len(encoders) > 1:
            second, _ = _distances(told[1][0][ours], told[1][1][theirs], one, other, seed)
            entry["second_opinion"] = {"features": encoders[1].name, "measures": second}
        warnings += [f"{name}: {why}" for why in refused]
        found[name] = entry
    return found


def _same_mix(real: Pictures, made: Pictures, classes: Sequence[str], seed: int
              ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of both sides with the same part of each class, real ones twice as many, so that halves are as large."""
    rng = np.random.default_rng([seed, 0x313])
    ours, theirs = [], []
    for name in classes:
        one, other = np.flatnonzero(real.labels == name), np.flatnonzero(made.labels == name)
        count = min(len(one) // 2, len(other))
        ours.append(rng.permutation(one)[: 2 * count])
        theirs.append(rng.permutation(other)[:count])
    return np.sort(np.concatenate(ours)), np.sort(np.concatenate(theirs))


def _distances(ours: NDArray[np.float64], theirs: NDArray[np.float64], real: Pictures, made: Pictures, seed: int
               ) -> tuple[dict[str, Any], list[str]]:
    from medgan.metrics.features import standardised
    from medgan.metrics.fidelity import fidelity

    try:
        one, other = standardised(ours, theirs)
        found = fidelity(one, other, units=real.patients, made_units=made.patients, seed=seed)
    except Refused as refused:
        return {}, [f"distances are not given: {refused.why}"]
    return {name: _as_json(value) for name, value in found.items()}, []


def _measured(ours: NDArray[np.float64], theirs: NDArray[np.float64], real: Pictures, made: Pictures, seed: int
              ) -> tuple[dict[str, Any], list[str]]:
    """Every figure that there are enough images for, and why the others are missing."""
    from medgan.metrics.diversity import diversity, ms_ssim
    from medgan.metrics.features import standardised
    from medgan.metrics.realness import realness

    found, refused = _distances(ours, theirs, real, made, seed)
    one, other = standardised(ours, theirs)
    units: dict[str, Any] = {"units": real.patients, "made_units": made.patients, "seed": seed}
    questions: dict[str, Callable[[], Mapping[str, Any]]] = {
        "realness": lambda: {"realness": realness(one, other, **units)},
        "diversity": lambda: diversity(one, other, **units),
        "MS-SSIM": lambda: {"ms_ssim": ms_ssim(real.images, made.images, units=real.patients, labels=real.labels,
                                               made_labels=made.labels, seed=seed)},
    }
    for name, ask in questions.items():
        try:
            found |= {key: _as_json(value) for key, value in ask().items()}
        except Refused as refusal:
            refused.append(f"{name} is not given: {refusal.why}")
    return found, refused


def _as_json(measured: Any) -> dict[str, Any]:
    return {**asdict(measured), "warnings": list(measured.warnings), "times": measured.times,
            "verdict": measured.verdict}


def _memory(material: Material, made: Pictures, settings: Evaluate, seed: int, warnings: list[str]
            ) -> tuple[dict[str, Any], tuple[tuple[int, int, float, bool], ...]]:
    from medgan.metrics.memorisation import memorisation

    fresh = material.heldout.thinned(settings.most, seed)
    if min(len(material.train), len(made), len(fresh)) < 2:
        warnings.append(f"{len(fresh)} held-out image is too few to look for copies.")
        return {}, ()
    known = {image.tobytes() for image in material.train.images}
    identical = sum(image.tobytes() in known for image in made.images)
    found = memorisation(made.images, material.train.images, fresh.images, patients=material.train.patients,
                         classes=(made.labels, fresh.labels), seed=seed)
    warnings += found.warnings
    order = np.lexsort((-found.correlation, ~found.flagged))[:PAIRS]
    alike = tuple((int(row), int(found.nearest[row]), float(found.correlation[row]), bool(found.flagged[row]))
                  for row in order)
    by_class = {}
    for name in np.unique(made.labels):
        flagged = found.flagged[made.labels == name]
        by_class[str(name)] = {"n": len(flagged), "flagged": int(flagged.sum())}
    return {
        "share": found.share, "low": found.low, "high": found.high, "threshold": found.threshold,
        "margin_threshold": found.margin_threshold, "control": found.control, "identical": identical,
        "n_synthetic": found.n_made, "n_train": found.n_train, "n_fresh": found.n_fresh, "by_class": by_class,
        "warnings": list(found.warnings),
        "most_alike": [{"synthetic": str(made.ids[row]), "training": str(material.train.ids[nearest]),
                        "correlation": round(value, 4), "flagged": flagged}
                       for row, nearest, value, flagged in alike],
        "correlations": np.round(found.correlation, 4).tolist(),
        "correlations_fresh": np.round(found.fresh_correlation, 4).tolist(),
    }, alike


def _utility(material: Material, settings: Evaluate, seed: int, device: str, tell: Tell
             ) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]], NDArray[np.intp]]:
    """What each training arm reaches on the held-out images, or why that was not asked."""
    def unasked(why: str) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]], NDArray[np.intp]]:
        return {"asked": False, "why": why}, {}, np.zeros(0, np.intp)

    if material.crops:
        return unasked("Whether synthetic lesions help is answered on whole scans: medgan run lesion_classifier "
                       "trains a segmenter and a slice classifier with and without them, on patients held back.")
    train, test = material.train, material.heldout
    tested = test.counts()
    names = [name for name in material.names if tested.get(name, 0) >= FEWEST_TESTED]
    if len(names) < 2:
        return unasked(f"It takes two classes, with training images and {FEWEST_TESTED} or more held-out images of "
                       "each, to train and test a classifier.")
    train, test, made = (side.take(np.isin(side.labels, names)) for side in (train, test, material.made))
    if not len(made):
        return unasked(f"No synthetic image is of a class with held-out images ({', '.join(names)}).")
    from medgan.metrics.arms import USUAL_PAIRS, compare_classes, score_classes, usual_arms
    from medgan.metrics.diversity import confidence_and_diversity

    numbered = [np.array([names.index(label) for label in side.labels.tolist()], np.intp)
                for side in (train, test, made)]
    arms = dict(usual_arms(train.images, numbered[0], made.images, numbered[2]))
    if len(set(made.labels.tolist())) < len(names):
        arms.pop(ONLY, None)  # nobody learns a class of which there is no image
    judged = np.concatenate([test.images, made.images])
    scores = score_classes(arms, judged, classes=len(names), seeds=range(seed, seed + settings.seeds),
                           steps=settings.steps, device=device, tell=lambda text: tell(f"training classifiers: {text}"))
    reached = {arm: score[:, : len(test)] for arm, score in scores.items()}
    pairs = [(one, other) for one, other in USUAL_PAIRS if one in arms and other in arms]
    compared = compare_classes(numbered[1], test.patients, reached, pairs, resamples=settings.resamples, seed=seed)
    taught = scores[TAUGHT].mean(axis=0)
    seen = taught[len(test):]
    sides = {"held-out real": (taught[: len(test)], numbered[1]), "synthetic": (seen, numbered[2])}
    return ({
        "asked": True, **compared, "classes_named": names, "heldout": material.heldout_from,
        "trained_on": {arm: len(each.images) for arm, each in arms.items()}, "steps": settings.steps,
        "confidence": {side: asdict(confidence_and_diversity(chances)) for side, (chances, _) in sides.items()},
        "recognised": {side: {name: float((chances[labels == k].argmax(axis=1) == k).mean()) for k, name
                              in enumerate(names) if (labels == k).any()}
                       for side, (chances, labels) in sides.items()},
    }, {arm: score.mean(axis=0) for arm, score in reached.items()}, numbered[1])


def _helps(utility: Mapping[str, Any]) -> dict[str, Any]:
    if not utility["asked"]:
        return {"answer": "not asked", "text": utility["why"]}
    best, change = _against_best(utility, "auroc")
    # Another trick may do better than synthetic images; they hurt where leaving them out does.
    without = utility["differences"][f"{ADDED} - {TAUGHT}"]["auroc"]
    answer = ("helps" if change["low"] > 0 else "hurts" if max(change["high"], without["high"]) < 0 else "not shown")
    found = {"answer": answer, "measure": "auroc", "against": best,
             **{key: change[key] for key in ("mean", "low", "high", "detectable")}}
    second, other = _against_best(utility, "balanced_accuracy")
    text = (f"AUROC {utility['arms'][ADDED]['auroc']['mean']:.3f} with synthetic images against "
            f"{utility['arms'][best]['auroc']['mean']:.3f} of the best control ({best}): {_change(change)}. Balanced "
            f"accuracy against the best control ({second}): {_change(other)}. {utility['n']} held-out images, "
            f"{utility['seeds']} seed{'s' * (utility['seeds'] > 1)}; a true difference in AUROC below "
            f"{change['detectable']:.3f} would mostly go unseen.")
    if answer == "not shown" and change["high"] < 0:
        text += f" That control does better; against the same training without them ({TAUGHT}): {_change(without)}."
    if ONLY in utility["arms"]:
        share = utility["arms"][ONLY]["auroc"]["mean"] / utility["arms"][TAUGHT]["auroc"]["mean"]
        found |= {"synthetic_only_share": share, "synthetic_only_enough": bool(share >= TRANSFER)}
        text += f" Synthetic images alone reach {share:.0%} of what real ones do."
    return {**found, "text": text}


def _against_best(utility: Mapping[str, Any], measure: str) -> tuple[str, Mapping[str, float]]:
    """The control that does best by a measure, and the difference that synthetic images make to it."""
    known = [name for name in CONTROLS if f"{ADDED} - {name}" in utility["differences"]]
    best = max(known, key=lambda name: utility["arms"][name][measure]["mean"])
    return best, utility["differences"][f"{ADDED} - {best}"][measure]


def _change(value: Mapping[str, float]) -> str:
    return f"{value['mean']:+z.3f} [{value['low']:+z.3f}, {value['high']:+z.3f}]"


def _copies(memory: Mapping[str, Any]) -> dict[str, Any]:
    if not memory:
        return {"answer": "not asked", "text": "There are too few images to look for copies."}
    flagged = round(memory["share"] * memory["n_synthetic"])
    text = (f"{flagged} of {memory['n_synthetic']} synthetic images ({memory['share']:.1%} "
            f"[{memory['low']:.1%}, {memory['high']:.1%}]) are more like one training image than 99 of 100 fresh real "
            f"images are; of the fresh real ones themselves {memory['control']:.1%} are.")
    if memory["identical"]:
        text = f"{memory['identical']} are training images, pixel by pixel. {text}"
    chance = max(COPIES, memory["control"])
    known = memory["n_fresh"] >= FRESH
    if not known:
        text += f" But {memory['n_fresh']} fresh real images are too few to say how alike two patients can be."
    answer = ("copies" if memory["identical"] or (known and memory["low"] > chance)
              else "none found" if known and memory["share"] <= chance else "unclear")
    return {"answer": answer, "text": text, "share": memory["share"], "low": memory["low"], "high": memory["high"]}


#: From the best to the worst.
ORDER = ("good", "fair", "bad")


def _alike(classes: Mapping[str, Any]) -> dict[str, Any]:
    """How far the images lie from real ones: the worst class says."""
    known = {name: entry["measures"]["mmd2"] for name, entry in classes.items() if "mmd2" in entry["measures"]}
    known = {name: value for name, value in known.items() if value["verdict"] in ORDER}
    if not known:
        return {"answer": "not known", "text": "There are too few images for a distance and its floor."}
    worst = max(known, key=lambda name: (ORDER.index(known[name]["verdict"]), _finite(known[name]["times"])))
    value = known[worst]
    text = (f"{_named(worst)} lies farthest: MMD² {value['value']:z.4f} [{value['low']:z.4f}, {value['high']:z.4f}]; "
            f"real against other real images gives {value['floor']:z.4f} ± {value['floor_sd']:.4f} at the same n of "
            f"{value['n_made']}{_times(value['times'])}.")
    apart = classes[worst]["measures"].get("realness")
    if apart:
        text += f" A classifier tells them from real ones with an AUROC of {apart['value']:.2f}; 0.50 is best."
    return {"answer": value["verdict"], "text": text, "class": worst, "times": value["times"]}


def _varied(classes: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: entry["measures"]["coverage"] for name, entry in classes.items()
             if entry["measures"].get("coverage", {}).get("verdict") in ORDER}
    if not known:
        return {"answer": "not known", "text": "There are too few images for coverage and its floor."}
    worst = min(known, key=lambda name: known[name]["times"])
    value = known[worst]
    text = (f"{_named(worst)} is covered least: {value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}] of real "
            f"images have a synthetic one in their neighbourhood; other real images reach {value['floor']:.2f} at the "
            f"same n of {value['n_made']}.")
    vendi = classes[worst]["measures"].get("vendi_ratio")
    if vendi:
        text += f" Vendi score: {vendi['value']:.2f} times that of real ones."
    return {"answer": value["verdict"], "text": text, "class": worst, "share": value["times"]}


def _named(name: str) -> str:
    return "The whole set" if name in (ALL, ONLY_CLASS) else f"Class {name}"


def _times(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return "; so far off may real images lie by chance" if value <= 1 else f"; {value:.1f} times as far as chance goes"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def plain(value: Any) -> Any:
    """Plain JSON values: numpy's scalars as Python's, what is not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
