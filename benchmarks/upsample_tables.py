"""Tables of what `upsample.py` measured, in Markdown.

    python benchmarks/upsample_tables.py results.json
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
BOOTSTRAPS = 4000
#: Columns of the table of goals: its heading and the method it is about.
COLUMNS = {"told the profile": "network", "not told (`--profile auto`)": "network auto",
           "`--adapt`, told": "network adapt"}
#: Gain over cubic that is wanted, mean and worst volume, in dB, for each input and column.
WANTED: dict[str, tuple[tuple[float, float], ...]] = {
    "gauss3": ((3.2, 2.0), (2.5, 1.4), (4.0, 2.6)), "rect3": ((2.0, 1.2), (1.2, 0.5), (2.6, 1.6)),
    "gap3": ((2.0, 1.2), (1.2, 0.5), (2.6, 1.6)), "noise4": ((2.0, 1.2), (1.6, 0.9), (2.4, 1.4)),
    "iso2": ((3.6, 2.4), (3.3, 2.2), (4.0, 2.6)),
}
#: What no volume may fall short of: method, against what, and by how many dB it may.
RULES = (("network", "cubic", 0.0), ("network auto", "cubic", 0.0), ("network adapt", "cubic", 0.0),
         ("network", "Tikhonov", 0.05), ("network", "Tikhonov, best", 0.05), ("network adapt", "Tikhonov", 0.05),
         ("Tikhonov", "Tikhonov, best", 0.1), ("network auto", "Tikhonov auto", 0.05),
         ("Tikhonov auto", "cubic", 0.05), ("network", "SOUP-GAN", 0.0))


def gains(rows: Sequence[Row], method: str, base: str) -> dict[tuple[str, str], float]:
    """Gain in dB of a method over another one on each real volume that has both, by (person, volume)."""
    return {(row["person"], row["name"]): row["methods"][method]["psnr"] - row["methods"][base]["psnr"]
            for row in rows if not row["phantom"] and {method, base} <= row["methods"].keys()}


def interval(found: Mapping[tuple[str, str], float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean gain: people are drawn, with all their volumes."""
    people: dict[str, list[float]] = defaultdict(list)
    for (person, _), gain in found.items():
        people[person].append(gain)
    sums = np.array([[sum(values), len(values)] for values in people.values()])
    drawn = sums[np.random.default_rng(0).integers(0, len(sums), (BOOTSTRAPS, len(sums)))].sum(axis=1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return float(low), float(high)


def everything(rows: Sequence[Row], titles: Mapping[str, str], main: str) -> str:
    """All tables of a run."""
    of_input = {key: [row for row in rows if row["input"] == key] for key in titles}
    of_input = {key: found for key, found in of_input.items() if found}
    parts = [goals(of_input, titles), *(gain_table(found, titles[key]) for key, found in of_input.items()),
             *(scan_table(found, titles[key]) for key, found in of_input.items())]
    if main in of_input and any("ssim" in told for row in of_input[main] for told in row["methods"].values()):
        parts.append(quality_table(of_input[main], titles[main]))
    return "\n\n".join([*parts, rules(of_input, titles)])


def goals(of_input: Mapping[str, Sequence[Row]], titles: Mapping[str, str]) -> str:
    """Gain over cubic, mean / worst volume, and in brackets what is wanted."""
    lines = ["\nGain over cubic B-spline in dB, mean / worst volume (wanted)\n",
             "| input | " + " | ".join(COLUMNS) + " | n |", "|---" * (len(COLUMNS) + 2) + "|"]
    for key, rows in of_input.items():
        cells, count = [], 0
        for method, (mean, worst) in zip(COLUMNS.values(), WANTED[key], strict=True):
            found = list(gains(rows, method, "cubic").values())
            count = max(count, len(found))
            cells.append(f"{np.mean(found):+.2f} / {min(found):+.2f} ({mean:+.1f} / {worst:+.1f})" if found
                         else "not measured")
        lines.append(f"| {titles[key]} | " + " | ".join(cells) + f" | {count} |")
    return "\n".join(lines)


def gain_table(rows: Sequence[Row], title: str) -> str:
    """Paired gains over cubic and over Tikhonov with intervals."""
    lines = [f"{title}: gain in dB, mean [95 % interval], worst volume\n",
             "| method | over cubic | worst | over Tikhonov (told) | worst |", "|---|---|---|---|---|"]
    for method in _methods(rows):
        cells = []
        for base in ("cubic", "Tikhonov"):
            found = gains(rows, method, base)
            if method == base or not found:
                cells += ["", ""]
                continue
            low, high = interval(found)
            worst = min(found, key=found.__getitem__)
            cells += [f"{np.mean(list(found.values())):+.2f} [{low:+.2f}, {high:+.2f}]",
                      f"{found[worst]:+.2f} ({worst[1]})"]
        if any(cells):
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    real = [row for row in rows if not row["phantom"]]
    return "\n".join([*lines, f"\nn = {len(real)} volumes of {len({row['person'] for row in real})} people."])


def scan_table(rows: Sequence[Row], title: str) -> str:
    """Foreground PSNR of each volume; a star where the network's result is the linear one."""
    names = _methods(rows)
    lines = [f"{title}: foreground PSNR in dB\n", "| volume | " + " | ".join(names) + " |",
             "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = []
        for name in names:
            told = row["methods"].get(name)
            star = "*" if told and name.startswith("network") and told.get("method") == "linear" else ""
            cells.append(f"{told['psnr']:.2f}{star}" if told else "")
        flag = " (phantom, in no mean)" if row["phantom"] and "phantom" not in row["name"] else ""
        lines.append(f"| {row['name']}{flag} | " + " | ".join(cells) + " |")
    real = [row["methods"] for row in rows if not row["phantom"]]
    if real:
        means = [[told[name]["psnr"] for told in real if name in told] for name in names]
        lines.append("| mean of real volumes | " + " | ".join(f"{np.mean(m):.2f}" if m else "" for m in means) + " |")
    return "\n".join(lines)


def quality_table(rows: Sequence[Row], title: str) -> str:
    """SSIM, HFEN and time of each method, means over real volumes."""
    lines = [f"{title}: means over real volumes; more SSIM is better, and less HFEN\n",
             "| method | PSNR, dB | SSIM | HFEN | s a volume |", "|---|---|---|---|---|"]
    for name in _methods(rows):
        told = [row["methods"][name] for row in rows if not row["phantom"] and name in row["methods"]]
        if told and all("ssim" in one for one in told):
            mean = {key: np.mean([one[key] for one in told]) for key in ("psnr", "ssim", "hfen", "seconds")}
            lines.append(f"| {name} | {mean['psnr']:.2f} | {mean['ssim']:.4f} | {mean['hfen']:.3f} | "
                         f"{mean['seconds']:.1f} |")
    return "\n".join(lines)


def rules(of_input: Mapping[str, Sequence[Row]], titles: Mapping[str, str]) -> str:
    """Which volumes break a rule, by name; rules nothing was measured for are not mentioned."""
    lines = ["Rules that hold for every single volume\n"]
    for method, base, allowed in RULES:
        found = {(titles[key], name): gain for key, rows in of_input.items()
                 for (_, name), gain in gains(rows, method, base).items()}
        broken = [f"{title}, {name}: {gain:+.2f}" for (title, name), gain in found.items() if gain < -allowed]
        if found:
            slack = f" by more than {allowed:g} dB" if allowed else ""
            lines.append(f"- {method} below {base}{slack}: {len(broken)} of {len(found)}"
                         + (f" ({'; '.join(broken)})" if broken else ""))
    return "\n".join(lines)


def _methods(rows: Sequence[Row]) -> list[str]:
    """All methods, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["methods"]))


def main() -> None:
    """Prints the tables of a results file again."""
    from upsample import INPUTS, MAIN

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    rows = json.loads(parser.parse_args().results.read_text(encoding="utf-8"))
    print(everything(rows, {key: kind.title for key, kind in INPUTS.items()}, MAIN))


if __name__ == "__main__":
    main()
