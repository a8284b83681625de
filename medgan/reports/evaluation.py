"""The report of an evaluation: what it comes to first, then pictures, curves and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgan.reports import charts, page
from medgan.reports.page import Markup, Mood, Tile

#: Pictures of each side of a class, in rows of so many; their edge in pixels, about; pairs of most alike ones.
SAMPLES, COLUMNS, EDGE, PAIRS = 20, 5, 84, 12
#: Edge of the pictures of pairs.
PAIR_EDGE = 112
#: Classes with curves and histograms of their own, at most.
MOST_CLASSES = 8
#: Values of the images that a histogram is made from, at most.
VALUES = 200_000

#: Measure -> what it is called, what it asks, and which way is better.
MEASURES = {
    "mmd2": ("MMD²", "distance of the two sets, 0 in expectation where there is none", "less"),
    "frechet": ("Fréchet distance", "distance of means and covariances; depends on n", "less"),
    "kid": ("KID", "distance with a cubic kernel", "less"),
    "realness": ("Told apart (AUROC)", "a classifier tells synthetic from real; 0.5 cannot", "less"),
    "precision": ("Precision", "share of synthetic images that lie among real ones", "more"),
    "density": ("Density", "how densely real ones lie around them", "more"),
    "recall": ("Recall", "share of real images that lie among synthetic ones", "more"),
    "coverage": ("Coverage", "share of real images with a synthetic one nearby", "more"),
    "vendi_ratio": ("Vendi ratio", "how many different images, over that of real ones", "more"),
    "ms_ssim": ("MS-SSIM of pairs", "likeness of two synthetic images of a class; 1 is the same image", "less"),
}
ARMS = {"real": "real", "classic": "real + classic augmentation", "oversampled": "… and classes drawn evenly",
        "duplicated": "… and real images duplicated", "synthetic added": "… and synthetic images added",
        "synthetic only": "synthetic images only"}
MOODS: dict[str, Mood] = {"good": "good", "fair": "open", "bad": "bad", "helps": "good", "hurts": "bad",
                          "not shown": "open", "copies": "bad", "none found": "good", "unclear": "open"}
WORDS = {"good": "yes", "fair": "not quite", "bad": "no", "unknown": "not known"}
ANSWERS = {
    "utility": {"helps": "They help", "hurts": "They hurt", "not shown": "Not shown", "not asked": "Not asked here"},
    "memorisation": {"copies": "Some are copies", "none found": "No copies found", "unclear": "Not clear",
                     "not asked": "Not asked"},
    "fidelity": {"good": "Yes, within chance", "fair": "Near, but not quite", "bad": "No, far off",
                 "not known": "Not known"},
    "diversity": {"good": "Yes, within 10 %", "fair": "Less varied", "bad": "Far less varied",
                  "not known": "Not known"},
}
QUESTIONS = {"utility": "Do they help a classifier on real patients it has not seen?",
             "memorisation": "Are they copies of training images?",
             "fidelity": "Are they like real images?", "diversity": "Are they as varied as real images?"}


@dataclass(frozen=True, eq=False)
class Shown:
    """What pictures and curves are drawn from.

    Args:
        real: (N, C, X, Y[, Z]) real training images in network values.
        real_labels: (N,) their classes.
        made: (M, C, X, Y[, Z]) synthetic images.
        made_labels: (M,) theirs.
        alike: (synthetic, real, correlation, flagged) of most alike images, most alike first.
        scores: Arm -> (T, K) mean probabilities of the held-out images.
        truth: (T,) their classes as numbers.
        lines_down: Whether the second axis of an image runs down the page.
        seed: Which samples are shown.
    """

    real: NDArray[np.float32]
    real_labels: NDArray[np.str_]
    made: NDArray[np.float32]
    made_labels: NDArray[np.str_]
    alike: Sequence[tuple[int, int, float, bool]]
    scores: Mapping[str, NDArray[np.float64]]
    truth: NDArray[np.intp]
    lines_down: bool
    seed: int


def evaluation_page(figures: Mapping[str, Any], shown: Shown) -> str:
    """The whole report as one HTML file.

    Args:
        figures: What `evaluation.json` holds.
        shown: What pictures are drawn from.
    """
    images = figures["images"]
    counts = " · ".join(f"{sum(images[side].values()):,} {word}" for side, word in (
        ("real", "real"), ("synthetic", "synthetic"), ("heldout", "held-out real")))
    what = "lesion crops" if images["compared"] == "lesions" else "images"
    lead = (f"{figures['synthetic']['name']} against {figures['real']['name']} · {counts} {what} of "
            f"{' × '.join(map(str, images['size']))} · tested on {figures['heldout']['from']}")
    verdict = figures["verdict"]
    tiles = [Tile(question, ANSWERS[key][verdict[key]["answer"]], MOODS.get(verdict[key]["answer"], "plain"),
                  verdict[key]["text"]) for key, question in QUESTIONS.items()]
    parts = [page.tiles(tiles), _conventions(), page.warnings(figures["warnings"]), _samples(figures, shown)]
    parts += [_utility(figures["utility"], shown)]
    parts += [_fidelity(figures), _memory(figures["memorisation"], shown), _values(shown), _settings(figures)]
    return page.page("Are the synthetic images any good?", lead, parts)


def _conventions() -> Markup:
    return page.paragraph(
        "The words in these boxes follow conventions of medgan, not of the field: a distance is good within two "
        "standard deviations of what real images give against other patients' real images at the same n, and bad "
        "beyond ten times that; coverage is good from 90 % of what real images reach; up to 1 % of flagged images, or "
        "as many as of fresh real ones, are chance; synthetic images help where the interval of the difference to the "
        "best control lies above 0, and hurt where it and the one to the same training without them lie below. No "
        "score of likeness says whether images are of use: that is what the first box is for.", note=True)


def _edge(image: NDArray[np.float32], edge: int) -> int:
    """How often a picture is enlarged to come near to an edge."""
    return max(1, edge // max(map(int, image.shape[1:3])))


def _samples(figures: Mapping[str, Any], shown: Shown) -> Markup:
    rng = np.random.default_rng([shown.seed, 0x5A])
    volumes = "; of volumes, the middle slice" if shown.made.ndim == 5 else ""
    parts: list[Markup] = [page.paragraph(f"Drawn at random, not chosen; values mapped as for all figures, in the same "
                                          f"way on both sides{volumes}.", note=True)]
    names = [name for name in figures["images"]["real"] if name in set(shown.made_labels.tolist())]
    for name in names[:MOST_CLASSES]:
        sheets = []
        for side, images, labels in (("real", shown.real, shown.real_labels), ("synthetic", shown.made,
                                                                               shown.made_labels)):
            rows = np.flatnonzero(labels == name)
            drawn = np.sort(rng.choice(rows, min(SAMPLES, len(rows)), replace=False))
            zoom = _edge(images[0], EDGE)
            sheet = charts.grid([charts.picture_of(images[row], lines_down=shown.lines_down, zoom=zoom)
                                 for row in drawn], COLUMNS)
            sheets.append(page.picture(charts.png(sheet), f"{len(drawn)} {side} images of class {name}",
                                       f"{side}: {len(drawn)} of {len(rows):,}"))
        parts += [page.heading(f"Class {name}" if len(names) > 1 else "Samples"), page.side_by_side(*sheets)]
    if len(names) > MOST_CLASSES:
        parts.append(page.paragraph(f"{len(names) - MOST_CLASSES} more classes are not shown.", note=True))
    return page.section("Samples", *parts)


def _number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{'+' if sign else ''}z.{digits}f}"


def _range(value: Mapping[str, Any], digits: int = 3, *, sign: bool = False) -> str:
    ends = ", ".join(_number(value[key], digits, sign=sign) for key in ("low", "high"))
    return f"[{ends}]"


def _utility(utility: Mapping[str, Any], shown: Shown) -> Markup:
    title = "Do they help?"
    if not utility["asked"]:
        return page.section(title, page.paragraph(utility["why"]))
    arms, changes = utility["arms"], utility["differences"]
    trained = utility["trained_on"]
    parts: list[Markup] = [page.paragraph(
        f"The same small classifier, trained from the same starts for the same {utility['steps']} optimiser steps on "
        f"each set, {utility['seeds']} seeds each, and tested on {utility['n']} held-out real images of "
        f"{utility['patients']} patients ({utility['heldout']}). Intervals are 95 % over patients and seeds.")]
    rows = [[ARMS.get(arm, arm), f"{trained[arm]:,}", *(
        f"{_number(arms[arm][measure]['mean'])} {_range(arms[arm][measure])}" for measure in ("auroc",
                                                                                             "balanced_accuracy"))]
            for arm in arms]
    parts.append(page.table(("trained on", "images", "AUROC", "balanced accuracy"), rows, numbers=(1, 2, 3)))
    for measure, label in (("auroc", "AUROC"), ("balanced_accuracy", "balanced accuracy")):
        lines = [charts.Interval(pair.replace("synthetic added", "with synthetic").replace(" - ", " − "),
                                 _known(values[measure]["mean"]), _known(values[measure]["low"]),
                                 _known(values[measure]["high"]), pair.startswith("synthetic added"))
                 for pair, values in changes.items()]
        parts += [page.heading(f"Difference in {label}"), page.figure(
            charts.intervals(lines, f"Differences in {label} with intervals", f"difference in {label}", zero=True),
            "Right of 0: the first is better. Green and red intervals lie off 0; blue ones do not, and show nothing "
            "either way." if measure == "auroc" else "")]
    parts += [_tests(changes), _curves(utility, shown), _confidence(utility)]
    parts += [page.paragraph(text, note=True) for text in utility.get("warnings", ())]
    return page.section(title, *parts)


def _tests(changes: Mapping[str, Any]) -> Markup:
    rows = []
    for pair, values in changes.items():
        exact, tallied = values.get("delong"), values.get("mcnemar")
        rows.append([pair.replace(" - ", " − "), _number(values["auroc"]["mean"], sign=True),
                     _range(values["auroc"], sign=True), _number(values["auroc"]["detectable"]),
                     *(_number(test["p_holm"]) if test else "–" for test in (exact, tallied))])
    return Markup(page.table(("difference", "AUROC", "95 % interval", "smallest detectable", "p, DeLong (Holm)",
                              "p, McNemar (Holm)"), rows, numbers=(1, 2, 3, 4, 5)).html + page.paragraph(
        "Smallest detectable: a true difference of this size would be found in 8 of 10 such studies. Holm: p-values "
        "corrected for as many comparisons as there are lines.", note=True).html)


def _curves(utility: Mapping[str, Any], shown: Shown) -> Markup:
    from medgan.metrics.utility import auroc

    names = utility["classes_named"]
    wanted = range(1, 2) if len(names) == 2 else range(min(len(names), MOST_CLASSES))
    parts = [page.heading("ROC curves")]
    for number in wanted:
        positive = shown.truth == number
        curves = {arm: charts.roc_points(positive, scores[:, number]) for arm, scores in shown.scores.items()}
        texts = [f"{ARMS.get(arm, arm)}: {float(auroc(positive, scores[:, number])[0]):.3f}"
                 for arm, scores in shown.scores.items()]
        drawing = charts.roc(curves, f"ROC curves, class {names[number]} against the others")
        parts.append(page.side_by_side(
            page.figure(drawing, f"Class {names[number]} against {'the others' if len(names) > 2 else names[0]}; "
                        "probabilities are means over seeds."),
            Markup("<h3>AUROC of the mean over seeds</h3>" + charts.legend(texts))))
    return page.joined(parts)


def _confidence(utility: Mapping[str, Any]) -> Markup:
    rows = []
    for side, found in utility["confidence"].items():
        recognised = utility["recognised"][side]
        rows.append([side, f"{found['n']:,}", _number(found["confidence"]), _number(found["score"]),
                     ", ".join(f"{name}: {share:.0%}" for name, share in recognised.items())])
    return page.joined([page.heading("What the classifier trained on real images makes of them"), page.table(
        ("images", "n", "mean confidence", "Inception-style score", "recognised as their class"), rows,
        numbers=(1, 2, 3)),
        page.paragraph("A synthetic class that is recognised far less often than the held-out real one shows something "
                       "else than its label says; far more often: it shows only the clear cases.", note=True)])


def _known(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _fidelity(figures: Mapping[str, Any]) -> Markup:
    parts: list[Markup] = [page.paragraph(
        "Each figure stands beside its floor: the same figure of real images against real images of other patients, at "
        "the same n. In the small drawings the grey band is the floor ± 2 standard deviations, the dot the synthetic "
        "images with their 95 % interval.")]
    for name, entry in figures["classes"].items():
        rows = list(_rows(entry["measures"]))
        told = (f"{entry['n_synthetic']:,} synthetic, {entry['n_real']:,} real images of {entry['patients_real']:,} "
                "patients")
        parts += [page.heading(f"{name[0].upper()}{name[1:]}" if name.startswith("all") else f"Class {name}"),
                  page.paragraph(f"{told}; features: {entry['features']}.", note=True),
                  page.table(("measure", "value", "95 % interval", "floor ± sd", "n a side", "beside the floor",
                              "like real?"), rows, numbers=(1, 2, 3, 4))]
        second = entry.get("second_opinion", {})
        if second.get("measures"):
            parts.append(page.paragraph(
                f"Second opinion, {second['features']}: " + "; ".join(
                    f"{MEASURES[key][0]} {_small(value['value'])} (floor {_small(value['floor'])} ± "
                    f"{_small(value['floor_sd'])}, {WORDS[value['verdict']]})"
                    for key, value in second["measures"].items()) + ".", note=True))
    meanings = [[title, asks, "smaller is better" if better == "less" else "larger is better"]
                for title, asks, better in MEASURES.values()]
    parts += [page.heading("What the measures ask"), page.table(("measure", "asks", ""), meanings)]
    return page.section("Likeness and variety", *parts)


def _rows(measures: Mapping[str, Any]) -> Iterator[list[str | Markup]]:
    for key, (title, _, _) in MEASURES.items():
        if key not in measures:
            continue
        value = measures[key]
        drawn = [_known(value[field]) for field in ("value", "low", "high", "floor", "floor_sd")]
        drawing = charts.against_floor(drawn[0], drawn[1], drawn[2], drawn[3], drawn[4], f"{title} beside its floor")
        yield [title, _small(value["value"]), f"[{_small(value['low'])}, {_small(value['high'])}]",
               f"{_small(value['floor'])} ± {_small(value['floor_sd'])}", str(value["n_made"]), Markup(drawing),
               page.pill(WORDS[value["verdict"]], MOODS.get(value["verdict"], "plain"))]


def _small(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:z.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _memory(memory: Mapping[str, Any], shown: Shown) -> Markup:
    title = "Copies"
    if not memory:
        return page.section(title, page.paragraph("There were too few images to look for copies."))
    drawing = charts.histogram(
        {"synthetic": memory["correlations"], "fresh real": memory["correlations_fresh"]},
        "Correlation with the nearest training image", "correlation with the nearest training image",
        marks={"threshold": memory["threshold"]}, colours=(charts.MADE, charts.REAL))
    parts: list[Markup] = [page.paragraph(
        f"Each synthetic image was held against all {memory['n_train']:,} training images: band-passed, at every flip "
        f"and small shift, so that blur, noise, brightness and mirroring do not hide a copy. {memory['n_fresh']:,} "
        "fresh real images of other patients say how alike two different patients can be: an image is flagged where "
        "its correlation with the nearest training image, or how far that stands out from the next ones, lies above "
        "the 99.5th percentile of theirs."),
        page.figure(drawing + charts.legend(("synthetic", "fresh real"), (charts.MADE, charts.REAL)))]
    rows = [[name, f"{found['n']:,}", str(found["flagged"]), f"{found['flagged'] / max(1, found['n']):.1%}"]
            for name, found in memory["by_class"].items()]
    parts.append(page.table(("class", "synthetic images", "flagged", "share"), rows, numbers=(1, 2, 3)))
    pairs = []
    for row, nearest, value, flagged in shown.alike[:PAIRS]:
        zoom = _edge(shown.made[0], PAIR_EDGE)
        both = charts.grid([charts.picture_of(image, lines_down=shown.lines_down, zoom=zoom)
                            for image in (shown.made[row], shown.real[nearest])], 2)
        flag = " · flagged" if flagged else ""
        pairs.append(page.picture(charts.png(both), f"synthetic image and the training image most like it, {value:.2f}",
                                  f"{value:.2f}{flag}"))
    parts += [page.heading("Most alike: synthetic on the left, nearest training image on the right"),
              page.side_by_side(*pairs, kind="pairs")]
    return page.section(title, *parts)


def _values(shown: Shown) -> Markup:
    rng = np.random.default_rng([shown.seed, 0xA1])

    def some(images: NDArray[np.float32]) -> NDArray[np.float32]:
        flat = images[:, 0].ravel()
        return flat if flat.size <= VALUES else flat[rng.integers(0, flat.size, VALUES)]

    parts = []
    names = sorted(set(shown.made_labels.tolist()) & set(shown.real_labels.tolist()))
    for name in names[:MOST_CLASSES]:
        drawing = charts.histogram(
            {"real": some(shown.real[shown.real_labels == name]),
             "synthetic": some(shown.made[shown.made_labels == name])},
            f"Intensities, class {name}", "value, mapped to −1 … 1", within=(-1.0, 1.0))
        parts.append(page.figure(drawing, f"class {name}" if len(names) > 1 else ""))
    return page.section("Intensities", Markup(f'<div class="flat">{charts.legend(("real", "synthetic"))}</div>'),
                        page.side_by_side(*parts))


def _settings(figures: Mapping[str, Any]) -> Markup:
    rows = []
    for side in ("real", "synthetic", "heldout"):
        about = figures[side]
        if "name" in about:
            rows.append([side, about["name"], about["layout"], f"{about['cases']:,}", about["fingerprint"],
                         about["path"]])
    settings = {**figures["settings"], "versions": figures["versions"], "medgan": figures["medgan"]}
    return page.section("What was compared", page.table(
        ("side", "data set", "layout", "cases", "fingerprint", "path"), rows, numbers=(3,)),
        page.paragraph("All figures are in evaluation.json beside this page. For research; not for diagnosis.",
                       note=True),
        page.folded("Settings and versions", json.dumps(settings, indent=2, ensure_ascii=False)))
