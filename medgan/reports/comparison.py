"""The report of a comparison of training arms, in words and tables: what was measured, and whether it helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medgan.reports.tables import estimate, signed, table

#: Arms that need no training; a generator has to beat them to be worth it.
CONTROLS = ("duplicated", "copy-paste", "paste", "procedural")
ARMS = {
    "nothing": "real, no augmentation",
    "real": "real + usual augmentation",
    "duplicated": "real repeated to the same number",
    "copy-paste": "real + plain copy-paste",
    "paste": "real + paste",
    "procedural": "real + procedural lesions",
    "gan": "real + GAN",
    "gan+paste": "real + half GAN, half paste",
    "auto": "as augment --factor auto chooses",
}
MEASURES = {"dice": "Dice", "sensitivity": "lesions found", "false_positives": "false positives a case",
            "slice_auroc": "slice AUROC (segmenter)", "auroc": "AUROC (classifier)",
            "balanced_accuracy": "balanced accuracy (classifier)"}
#: What a method is judged by: the first of these that was measured.
PRIMARY = ("dice", "auroc")
#: Below this many test patients an interval over patients is itself uncertain, and on the narrow side.
FEW_PATIENTS = 10

#: Where real images alone reach this AUROC, nothing that is added can show its worth.
CEILING = 0.98
#: And where something that needs no look at a lesion comes this near to it, the task says little about lesions.
NEAR = 0.05
#: With fewer patients not even the same sign in all of them is significant (two-sided sign test at 5 %).
ENOUGH_PATIENTS = 6
#: What an interval that does not come from patients comes from.
SOURCES = {"blocks": "blocks of neighbouring slices and seeds", "folds": "folds (choices of training patients) and "
           "seeds", "seeds": "seeds alone"}

Finding = Literal["better", "worse", "no difference shown"]


def finding(difference: Mapping[str, Any], measure: str = "") -> Finding:
    """What an interval allows to say of a difference."""
    sign = -1 if measure == "false_positives" else 1
    low, high = sorted((sign * difference["low"], sign * difference["high"]))
    if not low < high:
        return "no difference shown"  # Nothing was drawn anew: that is no certainty.
    if low > 0:
        return "better"
    return "worse" if high < 0 else "no difference shown"


def primary(test: Mapping[str, Any]) -> str:
    """The measure that a test's arms are judged by."""
    return next(measure for measure in PRIMARY if measure in test["arms"]["real"])


def verdict(tests: Mapping[str, Any], method: str) -> str:
    """A plain sentence a test set on whether a method's synthetic images helped, by its primary measure."""
    return " ".join(f"{_sentence(name, test, method)}." for name, test in tests.items())


def _sentence(name: str, test: Mapping[str, Any], method: str) -> str:
    measure = primary(test)
    against = {other: test["differences"][f"{method} - {other}"][measure]
               for other in ("real", *CONTROLS) if f"{method} - {other}" in test["differences"]}
    change = against.pop("real")
    said = {"better": "helped", "worse": "hurt", "no difference shown": "were not shown to help"}[finding(change)]
    if finding(change) != "no difference shown" and test["patients"] < ENOUGH_PATIENTS:
        said += (f" on these {test['patients']} patients" if test["patients"] > 1 else " on this one patient") + \
            ", too few to claim it of others"
    text = (f"On {name}, {method} images {said}: {MEASURES[measure].partition(' (')[0]} {signed(change)} against real "
            f"images with the usual augmentation")
    if finding(change) == "no difference shown" and change.get("detectable"):
        text += f" (a difference under {change['detectable']:.3f} would mostly go unseen)"
    if against:
        best = max(against, key=lambda other: test["arms"][other][measure]["mean"])
        text += f"; against the best control ({best}) {signed(against[best])}: {finding(against[best])}"
    if measure != "auroc":
        return text
    if (alone := test["arms"]["real"][measure]["mean"]) >= CEILING:
        text += f". With {alone:.3f} for real images alone there was nothing left to gain"
    blind = max(test["trivial"], key=test["trivial"].__getitem__)
    if test["trivial"][blind] >= alone - NEAR:
        text += f". The {blind} alone reaches {test['trivial'][blind]:.3f}, so this says little about lesions"
    return text


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown; `report` is what `report.json` holds."""
    lines = [f"# Does it help? {report['data'][0]['name']}", ""]
    for text in report["verdict"].values():
        lines += [f"**{text}**", ""]
    lines += ["```", report["command"], "```", "", *_protocol(report), "", "![differences](differences.png)"]
    for name, test in report["tests"].items():
        lines += ["", f"## Tested on {name}", "", _size(test), "", *_arms(test), "", *_differences(test),
                  *_by_fold(test)]
    lines += ["", "## What each arm was trained on", "", *_training(report["folds"])]
    lines += ["", "## What this does not show", "",
              "The tasks are stand-ins (a small network that outlines lesions, and one that says whether a picture "
              "shows one); another task, network or number of patients may answer differently. Each fold has one "
              "generator and one draw of synthetic cases, so how much results vary from one to the next is not in the "
              "intervals, nor, where patients are resampled, is the choice of training patients. The intervals are not "
              "corrected for the number of comparisons. Research only, not for diagnosis.", ""]
    return "\n".join(lines)


def _protocol(report: Mapping[str, Any]) -> list[str]:
    models, folds, plan = report["models"], report["folds"], report["plan"]
    held = f"{len(folds)} folds by patient" if len(folds) > 1 else "one division by patient"
    length = [f"{plan['minutes']:g} minutes a fold"] if plan["minutes"] is not None else []
    generator = ", ".join([*length, *plan["settings"]]) or "the preset's settings"
    grid = "the data's own grid" if models["spacing_mm"] is None else f"a grid of {models['spacing_mm']:g} mm"
    what = {"segmenter": f"The segmenter: a 2D U-Net, on {grid}, patches of {models['crop']}×{models['crop']}, "
                         f"{models['batch']} a step, half of them around a lesion; one label, the whole lesion.",
            "classifier": f"The classifier: {models['pictures']} pictures of {models['size']}×{models['size']} a step, "
                          f"half of them positive; a picture is positive when {models['positive']}."}
    return [
        f"{report['data'][0]['patients']} patients, {held}; the generator and the lesion library of a fold saw its "
        f"training patients only. Channels read: {', '.join(models['channels'])}. Every arm: the same networks and "
        f"start, {models['steps']} optimiser steps, {models['seeds']} seeds, and but for the first the same usual "
        "augmentation (flips, rotation, scale, brightness; for the segmenter gamma too). "
        + " ".join(what[name] for name in models["names"])
        + f" Augmented to {plan['factor']:g} times the cases; generator: {generator}."]


def _size(test: Mapping[str, Any]) -> str:
    text = (f"{test['patients']} real patients, {test['images']} pictures, {test['positive']} of them positive"
            + (f"; {test['left_out']} with too little lesion to be called either way were left out" if test["left_out"]
               else ""))
    if test.get("trivial"):
        text += ". Without a look at any lesion, " + " and ".join(
            f"the {name} alone reaches an AUROC of {value:.3f}" for name, value in test["trivial"].items())
    sources = {test[key] for key in ("resampled_cases", "resampled") if key in test}
    others = [SOURCES[source] for source in ("folds", "seeds", "blocks") if source in sources]
    text += ". Intervals: 95 %, "
    if others:
        what = " and ".join(others) if len(others) == 1 else f"{others[0]} (AUROC: {others[1]})"
        return text + (f"from {what}, **not from patients**: there are too few. They say how certain the figure is for "
                       "these patients and nothing about others.")
    few = test["patients"] < FEW_PATIENTS
    return text + "bootstrap over patients and seeds" + ("; so few patients make them rough, and too narrow." if few
                                                         else ".")


def _measured(test: Mapping[str, Any]) -> list[str]:
    return [measure for measure in MEASURES if measure in test["arms"]["real"]]


def _arms(test: Mapping[str, Any]) -> list[str]:
    rows = [["arm", *(f"{MEASURES[measure]} (sd of seeds) [interval]" for measure in _measured(test))]]
    rows += [[ARMS.get(arm, arm), *(estimate(values[measure]) for measure in _measured(test))]
             for arm, values in test["arms"].items()]
    return table(rows)


def _differences(test: Mapping[str, Any]) -> list[str]:
    first = primary(test)
    rows = [["paired difference", *(MEASURES[measure] for measure in _measured(test)),
             f"by {MEASURES[first]}", "smallest that 8 of 10 such studies show"]]
    rows += [[pair, *(signed(values[measure]) for measure in _measured(test)), finding(values[first]),
              f"{values[first]['detectable']:.3f}"] for pair, values in test["differences"].items()]
    return table(rows)


def _by_fold(test: Mapping[str, Any]) -> list[str]:
    """How far the choice of training patients alone moves a difference of Dice."""
    folds = test.get("by_fold", {})
    count = max(map(len, folds.values()), default=0)
    if count < 2:
        return []
    rows = [["Dice, paired difference", *(f"fold {n}" for n in range(1, count + 1))]]
    rows += [[pair, *(f"{value:+.3f}" for value in values)] for pair, values in folds.items()
             if pair.endswith(" - real")]
    return ["", *table(rows)]


def _training(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    arms = list(folds[0]["arms"])
    rows = [["fold", "training patients", "held back", *(f"{arm}: cases, slices without lesion" for arm in arms)]]
    for number, fold in enumerate(folds, 1):
        counts = [f"{fold['arms'][arm]['cases']}, {fold['arms'][arm]['free_share']:.0%}" for arm in arms]
        rows.append([str(number), str(len(fold["training_patients"])), _names(fold["held_back"]), *counts])
    made = {method: (sum(fold["made"][method]["cases"] for fold in folds),
                     sum(len(fold["made"][method]["skipped"]) for fold in folds)) for method in folds[0]["made"]}
    said = [f"{method} {cases}" + (f" (and {skipped} that failed)" if skipped else "")
            for method, (cases, skipped) in made.items()]
    if "auto" in folds[0]["made"]:
        factors = ", ".join(f"{fold['made']['auto']['factor']:g}" for fold in folds)
        said.append(f"where auto chose a factor of {factors} in the folds")
    shares = {arm: [fold["arms"][arm]["free_share"] for fold in folds] for arm in made}
    apart = max((max(each) - min(each) for each in zip(*shares.values(), strict=True)), default=0.0)
    against = [share - fold["arms"]["real"]["free_share"] for each in shares.values()
               for fold, share in zip(folds, each, strict=True)]
    moved = f" and, with the real cases, from that of the real ones by {max(against, key=abs):+.1%}" if against else ""
    return [*table(rows), "", f"Synthetic cases made, all folds: {', '.join(said)}. The share of slices without a "
            f"lesion differs at most by {apart:.1%} between the ways of making them{moved}.{_same_places(folds)}"]


def _same_places(folds: Sequence[Mapping[str, Any]]) -> str:
    """How many of the lesions all methods put at the same places, which a gate that has one redrawn may prevent."""
    methods = [name for name in ("paste", "procedural", "gan") if name in folds[0]["made"]]
    if len(methods) < 2:
        return ""
    shared = every = 0
    for fold in folds:
        places = [set(fold["made"][method].get("places", ())) for method in methods]
        shared += len(set.intersection(*places))
        every += max(map(len, places))
    return f" Of at most {every} lesions {shared} lie at the same places in {', '.join(methods)}." if every else ""


def _names(patients: Sequence[str], most: int = 4) -> str:
    if not patients:
        return "none"
    return ", ".join(patients[:most]) + (f" and {len(patients) - most} more" if len(patients) > most else "")
