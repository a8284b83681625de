"""What it costs to decode compressed frames and rasters in a program of its own, against decoding in this one.

    python benchmarks/decoding.py [--odd ../shared/odd] [--rounds 5]

Reads the same files both ways, interleaved, and prints the ratio of CPU time (both programs counted) and of wall time,
least of the rounds, the program already started. PNGs are made: a ramp with noise. Without --odd these alone are read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medgan.imaging import decoders, decoding, files

#: Edge of the PNGs -> how many.
PNGS = {28: 200, 224: 200, 1024: 30}
ISOLATED = decoding.decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--odd", type=Path, help="folder with real/, DICOM files of many transfer syntaxes")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folders = {f"{count} PNG of {edge} x {edge}": made(Path(place) / str(edge), edge, count)
                   for edge, count in PNGS.items()}
        if arguments.odd:
            real = arguments.odd / "real"
            folders["nine transfer syntaxes"] = sorted((real / "dcm_qa_ts_nine_transfer_syntaxes").glob("[1-9].dcm"))
            for folder in sorted((real / "dicom2nifti_generic").glob("compressed_*")):
                folders[folder.name] = [folder / "001"]
        for name, paths in folders.items():
            compared(name, paths, arguments.rounds)


def made(folder: Path, edge: int, count: int) -> list[Path]:
    """Writes PNGs."""
    folder.mkdir()
    rng, ramp = np.random.default_rng(0), np.add.outer(np.arange(edge), np.arange(edge)) * 255 // (2 * edge)
    for number in range(count):
        noisy = (ramp + rng.integers(0, 20, ramp.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def compared(name: str, paths: list[Path], rounds: int) -> None:
    """Prints the ratios for some files."""
    found: dict[Any, list[tuple[float, float]]] = {}
    for _ in range(rounds + 1):
        for way in (direct, ISOLATED):
            decoding.decoded = way
            found.setdefault(way, []).append(timed(paths))
    # The first round starts the program and fills the caches.
    (cpu, wall), (own_cpu, own_wall) = (np.min(found[way][1:], axis=0) for way in (direct, ISOLATED))
    print(f"{name:28} CPU {own_cpu / cpu:.2f}, wall {own_wall / wall:.2f} times; "
          f"{1e3 * (own_cpu - cpu) / len(paths):+.2f} ms of CPU a file", flush=True)


def direct(kind: str, request: dict[str, Any], where: Path, *, limit: int, pixels: int = 0) -> Iterator[Any]:
    """As `decoding.decoded`, in this process."""
    for head, data in decoders.DECODERS[kind]({**request, "limit": limit, "pixels": pixels}):
        if data is not None:
            yield head, np.frombuffer(data, np.dtype(head["dtype"])).reshape(head["shape"])


def timed(paths: list[Path]) -> tuple[float, float]:
    """(CPU, wall) seconds of reading the files."""
    begun = cpu_seconds(), time.perf_counter()
    for path in paths:
        files.read_all(path)
    return cpu_seconds() - begun[0], time.perf_counter() - begun[1]


def cpu_seconds() -> float:
    """Of this process and the decoding programs it keeps."""
    kept = (Path(f"/proc/{program.process.pid}/schedstat") for program in decoding._idle)
    return time.process_time() + sum(int(path.read_text().split()[0]) / 1e9 for path in kept)


if __name__ == "__main__":
    main()
