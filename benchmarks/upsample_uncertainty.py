"""How well the maps in the report of `medgan.upsample` say where the result is wrong: sparsification curves.

    python benchmarks/upsample_uncertainty.py --data ../shared/data [--quick]

Voxels of the foreground are left out, the most doubtful first, and the root mean square error of the rest is taken, as
a share of that of all. A map that knows where the errors are lets it fall quickly. `oracle` leaves out by the error
itself, the best possible; `chance` at random stays at 1. `gradient`, the steepness of the result, is what anybody
can compute without medgan: a map that does no better says nothing of its own. Volumes and thick slices are those of
`upsample.py` (told the profile); intervals are 95 % bootstrap over people.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import upsample as bench
import upsample_tables as tables
from numpy.typing import NDArray
from scipy import ndimage, stats

import medgan

#: Shares of the voxels that are left out.
LEFT_OUT = (0.05, 0.1, 0.25, 0.5)
INPUTS = ("gauss3", "noise4")


def curve(error: NDArray[np.float64], doubt: NDArray[np.float32]) -> list[float]:
    """Error of what is left over that of all, for each share left out."""
    squares = np.square(error)[np.argsort(-doubt, kind="stable")]
    return [float(np.sqrt(squares[round(share * squares.size) :].mean() / squares.mean())) for share in LEFT_OUT]


def measure(scan: bench.Scan, kind: bench.Input, data: Path, quick: bool) -> dict[str, list[float]]:
    """The curve of each map, followed by its rank correlation with the absolute error."""
    factors = kind.factors(scan.axis)
    truth = bench.truth_of(scan, data, factors, quick)
    scale = bench.Scale.of(truth.array[0])
    thick = bench.thicken(truth, scan.axis, kind, kind.noise * (scale.high - scale.low))
    result, report = medgan.upsample(thick, factor=factors, report=True, **kind.told(truth, scan.axis))
    image = result.array[0]
    error = np.abs(image - truth.array[0])[scale.mask].astype(np.float64)
    steep = np.sqrt(sum(np.square(ndimage.sobel(image, axis)) for axis in range(3)))
    doubts = {"oracle": error.astype(np.float32), "spread": report.spread[0][scale.mask],
              "deviation": np.abs(report.deviation[0][scale.mask]), "gradient": steep[scale.mask]}
    return {name: [*curve(error, doubt), float(stats.spearmanr(doubt[::17], error[::17]).statistic)]
            for name, doubt in doubts.items()}


def main() -> None:
    asked = bench.parser(__doc__)
    arguments = asked.parse_args()
    for key in INPUTS:
        kind = bench.INPUTS[key]
        found: dict[str, dict[tuple[str, str], list[float]]] = {}
        for scan in bench.real_scans(arguments.only):
            for name, values in measure(scan, kind, arguments.data, arguments.quick).items():
                found.setdefault(name, {})[scan.person, scan.name] = values
        count = len(next(iter(found.values())))
        print(f"\n{kind.title}, n = {count} volumes: error of what is left over that of all\n")
        print("| left out, the most doubtful by | " + " | ".join(f"{share:.0%}" for share in LEFT_OUT)
              + " | rank correlation |\n|---|" + "---|" * (len(LEFT_OUT) + 1))
        for name, curves in found.items():
            cells = []
            for column in range(len(LEFT_OUT) + 1):
                values = {who: curve[column] for who, curve in curves.items()}
                low, high = tables.interval(values)
                cells.append(f"{np.mean(list(values.values())):.2f} ({low:.2f} to {high:.2f})")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
