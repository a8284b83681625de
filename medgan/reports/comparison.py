"""The report of a comparison of training arms, in words and tables: what was measured, and whether it helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from medgan.reports.tables import estimate, signed, table

#: Arms that need no training; a generator has to beat them to be worth it.
CONTROLS = ("duplicated", "paste", "procedural")
ARMS = {
    "real": "real images alone",
    "duplicated": "real images repeated to the same number",
    "gan": "real + GAN",
    "paste": "real + copy-paste",
    "procedural": "real + procedural lesions",
}
MEASURES = {"auroc": "AUROC", "balanced_accuracy": "balanced accuracy"}
#: Below this many test patients an interval over patients is itself uncertain, and on the narrow side.
FEW_PATIENTS = 10

#: Where real images alone reach this AUROC, nothing that is added can show its worth.
CEILING = 0.98
#: And where something that needs no look at a lesion comes this near to it, the task says little about lesions.
NEAR = 0.05
#: With fewer patients not even the same sign in all of them is significant (two-sided sign test at 5 %).
ENOUGH_PATIENTS = 6

Finding = Literal["better", "worse", "no difference shown"]


def finding(difference: Mapping[str, Any]) -> Finding:
    """What an interval allows to say of a difference."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "no difference shown"


def verdict(tests: Mapping[str, Any], method: str) -> str:
    """A plain sentence a test set on whether a method's synthetic images helped, by AUROC."""
    sentences = []
    for name, test in tests.items():
        against = {other: test["differences"][f"{method} - {other}"]["auroc"]
                   for other in ("real", *CONTROLS) if f"{method} - {other}" in test["differences"]}
        change = against.pop("real")
        said = {"better": "helped", "worse": "hurt", "no difference shown": "were not shown to help"}[finding(change)]
        if finding(change) != "no difference shown" and test["patients"] < ENOUGH_PATIENTS:
            said += f" on these {test['patients']} patients, too few to claim it of others"
        text = f"On {name}, {method} images {said}: AUROC {signed(change)} against real images alone"
        if against:
            best = max(against, key=lambda other: test["arms"][other]["auroc"]["mean"])
            text += f"; against the best control ({best}) {signed(against[best])}: {finding(against[best])}"
        if (alone := test["arms"]["real"]["auroc"]["mean"]) >= CEILING:
            text += f". With {alone:.3f} for real images alone there was nothing left to gain"
        blind = max(test["trivial"], key=test["trivial"].__getitem__)
        if test["trivial"][blind] >= alone - NEAR:
            text += f". The {blind} alone reaches {test['trivial'][blind]:.3f}, so this says little about lesions"
        sentences.append(text + ".")
    return " ".join(sentences)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown; `report` is what `report.json` holds."""
    lines = [f"# Does it help? {report['data'][0]['name']}", ""]
    for text in report["verdict"].values():
        lines += [f"**{text}**", ""]
    lines += ["```", report["command"], "```", "", *_protocol(report)]
    for name, test in report["tests"].items():
        lines += ["", f"## Tested on {name}", "", _size(test), "", *_arms(test), "", *_differences(test)]
    lines += ["", "## What each arm was trained on", "", *_training(report["folds"])]
    lines += ["", "## What this does not show", "",
              "The task is a stand-in (does this picture show a lesion or not, at low resolution, by a small network); "
              "another task, network or number of patients may answer differently. Each fold has one generator, so how "
              "much results vary from one generator to the next is not in the intervals. The intervals are not "
              "corrected for the number of comparisons. Research only, not for diagnosis.", ""]
    return "\n".join(lines)


def _protocol(report: Mapping[str, Any]) -> list[str]:
    classifier, folds, plan = report["classifier"], report["folds"], report["plan"]
    held = f"{len(folds)} folds by patient" if len(folds) > 1 else "one division by patient"
    length = [f"{plan['minutes']:g} minutes a fold"] if plan["minutes"] is not None else []
    generator = ", ".join([*length, *plan["settings"]]) or "the preset's settings"
    return [
        f"{report['data'][0]['patients']} patients, {held}; the generator and the lesion library of a fold saw its "
        f"training patients only. Channels read by the classifier: {', '.join(classifier['channels'])}. A picture is "
        f"positive when {classifier['positive']}. Every arm: the same network and start, {classifier['steps']} "
        f"steps of {classifier['batch']} pictures of {classifier['size']}×{classifier['size']}, half of them positive, "
        f"the same light augmentation, {classifier['seeds']} seeds. Augmented to {plan['factor']:g} times the cases; "
        f"generator: {generator}."]


def _size(test: Mapping[str, Any]) -> str:
    text = (f"{test['patients']} real patients, {test['images']} pictures, {test['positive']} of them positive"
            + (f"; {test['left_out']} with too little lesion to be called either way were left out" if test["left_out"]
               else "") + ". Without a look at any lesion, " + " and ".join(
                f"the {name} alone reaches an AUROC of {value:.3f}" for name, value in test["trivial"].items())
            + ". Intervals: 95 %, ")
    if test["resampled"] == "blocks":
        return text + ("from blocks of neighbouring slices and seeds, **not from patients**: there are too few. They "
                       "say how certain the figure is for these patients and nothing about others.")
    few = test["patients"] < FEW_PATIENTS
    return text + "bootstrap over patients and seeds" + ("; so few patients make them rough, and too narrow." if few
                                                         else ".")


def _arms(test: Mapping[str, Any]) -> list[str]:
    rows = [["arm", *(f"{title} (sd of seeds) [interval]" for title in MEASURES.values())]]
    rows += [[ARMS.get(arm, arm), *(estimate(values[measure]) for measure in MEASURES)]
             for arm, values in test["arms"].items()]
    return table(rows)


def _differences(test: Mapping[str, Any]) -> list[str]:
    rows = [["paired difference", *MEASURES.values(), "by AUROC"]]
    rows += [[pair, *(signed(values[measure]) for measure in MEASURES), finding(values["auroc"])]
             for pair, values in test["differences"].items()]
    return table(rows)


def _training(folds: Sequence[Mapping[str, Any]]) -> list[str]:
    arms = list(folds[0]["arms"])
    rows = [["fold", "training patients", "held back", *(f"{arm}: pictures (positive)" for arm in arms)]]
    for number, fold in enumerate(folds, 1):
        counts = [f"{fold['arms'][arm]['images']} ({fold['arms'][arm]['positive']})" for arm in arms]
        rows.append([str(number), str(len(fold["training_patients"])), _names(fold["held_back"]), *counts])
    made = {method: (sum(fold["made"][method]["cases"] for fold in folds),
                     sum(len(fold["made"][method]["skipped"]) for fold in folds)) for method in folds[0]["made"]}
    said = [f"{method} {cases}" + (f" (and {skipped} that failed)" if skipped else "")
            for method, (cases, skipped) in made.items()]
    return [*table(rows), "", f"Synthetic cases made, all folds: {', '.join(said)}."]


def _names(patients: Sequence[str], most: int = 4) -> str:
    if not patients:
        return "none"
    return ", ".join(patients[:most]) + (f" and {len(patients) - most} more" if len(patients) > most else "")
