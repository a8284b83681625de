"""The report of a study of enhanced volumes, in words and tables: what was measured, and whether it helped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medgan.reports.comparison import FEW_PATIENTS, finding
from medgan.reports.tables import estimate, signed, table

#: What each arm's volumes are.
ARMS = {"thick": "thick slices, each repeated", "cubic": "cubic spline, the usual way", "linear": "medgan, linear",
        "network": "medgan, network", "original": "original, never thinned"}
#: The mean over the labels decides.
DECIDES = "mean"
PLANES = ("sagittal", "coronal", "axial")
SAID = {"better": "helped", "worse": "hurt", "no difference shown": "was not shown to help"}


def verdict(question: str, test: Mapping[str, Any]) -> str:
    """A plain sentence on whether the network's volumes were better than thick ones and than the other ways."""
    change = test["differences"]["network - thick"][DECIDES]
    lost = -test["differences"]["thick - original"][DECIDES]["mean"]
    rivals = " and ".join(f"{signed(test['differences'][f'network - {rival}'][DECIDES])} against {rival} "
                          f"({finding(test['differences'][f'network - {rival}'][DECIDES])})"
                          for rival in ("cubic", "linear"))
    text = (f"Networks {question}: medgan's network {SAID[finding(change)]}: Dice {signed(change)} against thick "
            f"slices, where thick slices cost {lost:.3f} against original volumes; {rivals}.")
    if test["people"] < FEW_PATIENTS:
        text += f" With {test['people']} people this is rough."
    return text


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report as Markdown; `report` is what `report.json` holds."""
    data, thinned, network = report["data"], report["thinned"], report["network"]
    lines = [f"# Does enhancing help? {data['name']}", ""]
    for text in report["verdict"].values():
        lines += [f"**{text}**", ""]
    if network["quick"]:
        lines += ["This was a quick trial: nothing here is to be believed.", ""]
    pairs = " (two cases numbered one after the other whose values have the same step count as one)"
    lines += ["```", report["command"], "```", "",
              f"{data['volumes']} volumes of {data['people']} people{pairs if data['pairs'] else ''}, "
              f"{len(data['held_back'])} folds by person. {PLANES[thinned['axis']].capitalize()} slices were made "
              f"{thinned['factor']} times thicker with a {thinned['profile']} profile as wide as their spacing, which "
              f"cubic splines and repetition know nothing of and medgan was told; model {report['model'] or 'none'}. "
              f"The masks ({', '.join(data['labels'])}) stay as they were drawn on the original volumes. Every arm: "
              f"the same small 3D U-Net and start, {network['steps']} steps of {network['batch']} patches with an edge "
              f"of {network['crop']} voxels at the same places, {network['seeds']} seeds a fold. Original volumes "
              "and thick ones are each brought to a common intensity range by their own percentiles, and what is made "
              "from thick ones like these. Intervals: 95 %, bootstrap over people and seeds."]
    if report["uncovered"]:
        lines += ["", f"**In {report['uncovered']} of {data['volumes']} volumes the network does not cover this case, "
                  "and its arm is the linear method there.**"]
    lines += [f"\nWarning: {text}." for text in report["warnings"]]
    lines += ["", "Without a look at the image, the place in the volume alone reaches a Dice of " + ", ".join(
        f"{value:.3f} ({label})" for label, value in report["place_alone"].items()) + ". PSNR to the original, mean "
        "over volumes: " + ", ".join(f"{arm} {value:.2f} dB" for arm, value in report["psnr_db"].items()) + "."]
    for question, test in report["tests"].items():
        lines += ["", f"## Networks {question}", "", *_arms(test), "", *_differences(test)]
    lines += ["", "![slices](slices.png)", "",
              "The picture: the first person held back, cut along the thinned axis; the version, the drawn masks, and "
              "what a network trained on this version found.", "", "## What this does not show", "",
              "Thick slices were simulated: no noise, no motion, and the profile is known exactly. The masks were "
              "drawn on the original volumes, as they rarely are where slices are thick. A larger network, more people "
              "or another organ may answer differently. The detectable difference is what 8 of 10 such studies would "
              "show at 5 %. Intervals are not corrected for the number of comparisons. Research only, not for "
              "diagnosis.", ""]
    return "\n".join(lines)


def _arms(test: Mapping[str, Any]) -> list[str]:
    measures = list(next(iter(test["arms"].values())))
    rows = [["volumes", *(f"Dice {name} (sd of seeds) [interval]" for name in measures)]]
    return table(rows + [[ARMS[arm], *(estimate(values[name]) for name in measures)]
                          for arm, values in test["arms"].items()])


def _differences(test: Mapping[str, Any]) -> list[str]:
    measures = list(next(iter(test["arms"].values())))
    rows = [["paired difference", *measures, "detectable (mean)", "by the mean"]]
    return table(rows + [[pair, *(signed(values[name]) for name in measures), f"{values[DECIDES]['detectable']:.3f}",
                           finding(values[DECIDES])] for pair, values in test["differences"].items()])
