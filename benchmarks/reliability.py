"""What medgan and other readers make of damaged, inconsistent and odd files, side by side.

    python benchmarks/reliability.py --odd ../shared/odd --out runs/reliability [--readers medgan,MONAI]

Each reader runs in a process of its own, which imports it once and forks a child for every case, with a time limit
and a memory limit; voxels are always fetched, since some readers are lazy. A case ends as `silent` (loaded without a
word), `warned` (loaded with a Python warning, a log record or a word on stderr), `refused` (an exception), `crashed`
(a signal), `hung` (out of time) or `memory` (over the limit). The policy in cases.json says which of them is right.
The readers are in `reliability_readers.py`, each used as its documentation shows.

What a must-accept case has to look like: the truth that lies beside it, where there is one; else nibabel's reading
for NIfTI; else what most of the readers agree on. A reader whose shape, place or values differ has read it `other`.
Data sets, tables and weights are medgan's alone: the others read images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from reliability_readers import OPENERS, Loaded, version_of

#: A case may take this long and use this much memory above what importing the reader took.
SECONDS, GIB = 60, 2.0
#: Values and millimetres that are the same for this comparison.
VALUES_APART, MM_APART = 1e-3, 1e-3
#: What each reader is for.
KINDS = {"medgan": "dnmts", "MONAI": "dn", "SimpleITK": "dn", "nibabel": "n", "highdicom": "d"}
MUST_REFUSE = {"refuse"}
MUST_ACCEPT = {"accept", "accept_warn", "accept_split", "accept_no_leak", "accept_escaped"}
MUST_BE_TOLD = {"accept_warn", "accept_warn_or_refuse", "refuse_or_warn"}
BAD_ENDS = ("crashed", "hung", "memory")
#: medgan sets padding to the lowest real value, as the policy wants; others keep it. Only shape and place compare.
PLACE_ONLY = {"PADDING_MASKED"}
#: Nothing is odd about these: each reader reads them first, and what it says of them it says of every file.
CONTROLS = {"d": "dicom/d_ok", "n": "nifti/n_ok.nii.gz"}
#: Cases that hold the volume of the DICOM control, with an oddity that must change neither values nor place.
SAME_VOLUME = {"d-dup-identical", "d-localizer", "d-jitter", "d-thickness-lies", "d-no-instance", "d-mono1",
               "d-no-rescale", "d-12bit-dirty", "d-junk", "d-sr-in-folder", "d-phi", "d-enhanced"}
#: Table -> which ids are in it.
TABLES = {"DICOM, made odd": r"d-(?!real-)", "DICOM, of real scanners and test suites": r"d-real-", "NIfTI": r"n-",
          "Pairs of image and mask, tables, weights": r"[mts]-"}


# --- the cases ------------------------------------------------------------------------------------------------------


def cases_of(odd: Path) -> list[dict[str, str]]:
    """The cases of cases.json and of the files in real/ whose right answer is beyond doubt."""
    cases: list[dict[str, str]] = json.loads((odd / "cases.json").read_text(encoding="utf-8"))
    for case in cases:
        if case["id"] in SAME_VOLUME:
            case["truth"] = CONTROLS["d"]
    return cases + list(_real(odd))


def _real(odd: Path) -> Iterable[dict[str, str]]:
    def case(path: str, expect: str, what: str, truth: str = "") -> dict[str, str]:
        return {"id": f"d-real-{path.removeprefix('real/')}", "path": path, "odd": what, "expect": expect, "code": "",
                "truth": truth}

    def there(pattern: str) -> list[str]:
        return sorted(str(path.relative_to(odd)) for path in odd.glob(pattern))

    for path in there("real/dcm_qa_ct_Philips_S21610"):
        yield case(path, "refuse", "real tilted CT with variable spacing")
    nine = there("real/dcm_qa_ts_nine_transfer_syntaxes/*.dcm")
    for path in nine:
        yield case(path, "accept", "one of nine transfer syntaxes of one image", nine[0])
    for path in there("real/dicom2nifti_generic/*/001"):
        if "/rgb/" in path:
            yield case(path, "refuse", "a real colour series")
        else:
            yield case(path, "accept", "one of five codecs of one volume", path + "_ground_truth.nii.gz")
    tests = "real/pydicom_tests/"
    small = ("bigendian", "RLE", "jpeg_ls_lossless", "jp2klossless", "implicit", "expb", "padded")
    for name in ("MR_small.dcm", *(f"MR_small_{kind}.dcm" for kind in small)):
        yield case(tests + name, "accept", "one slice of an MR in one of eight encodings", tests + "MR_small.dcm")
    for name in there(tests + "SC_*.dcm") + there(tests + "examples_*_color.dcm") + there(tests + "examples_pal*.dcm"):
        if "jls_lossy" not in name:
            yield case(name, "refuse", "colour")
    for name in ("rtplan.dcm", "rtstruct.dcm", "test-SR.dcm", "reportsi.dcm", "waveform_ecg.dcm",
                 "rtplan_truncated.dcm", "MR_truncated.dcm", "dicomdirtests/DICOMDIR"):
        yield case(tests + name, "refuse", "no image, or half of one")


# --- one reader's process: a child a case -----------------------------------------------------------------------------


def serve(reader: str, odd: Path, kept: Path) -> None:
    """Imports a reader, then reads each case in a forked child; one JSON line a case on stdout."""
    load = OPENERS[reader]()
    usual = _usual(load, [odd / CONTROLS[kind] for kind in KINDS[reader] if kind in CONTROLS])
    for number, case in enumerate(cases_of(odd)):
        if case["id"][0] not in KINDS[reader]:
            continue
        print(json.dumps({"id": case["id"], **_isolated(load, odd / case["path"], kept / f"{number}", usual)}),
              flush=True)


def _usual(load: Callable[[Path], Loaded], controls: list[Path]) -> set[str]:
    """What the reader says of files that nothing is odd about; reading them also imports what it imports late."""
    said: set[str] = set()
    for path in controls:
        with _heard() as words:
            load(path)
        said |= set(words)
    return said


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Warnings and log records, as they come; not those about Python's or a library's future."""
    words: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    future = DeprecationWarning | FutureWarning | PendingDeprecationWarning
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield words
        words += [str(warning.message) for warning in caught if not issubclass(warning.category, future)]
    finally:
        logging.getLogger().removeHandler(handler)


def _isolated(load: Callable[[Path], Loaded], path: Path, kept: Path, usual: set[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        answer, said = Path(folder) / "answer.json", Path(folder) / "said"
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _in_child(load, path, kept, answer, said, usual)
        start, peak, why = _resident(child), 0, ""
        while True:
            ended, status, usage = os.wait4(child, os.WNOHANG)
            if ended:
                break
            now = _resident(child)
            peak = max(peak, now)
            why = "memory" if now - start > GIB * 2**30 else "hung" if time.monotonic() - began > SECONDS else ""
            if why:
                os.kill(child, signal.SIGKILL)
                _, status, usage = os.wait4(child, 0)
                break
            time.sleep(0.002)
        result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 3),
                                  "mib": round(max(0, max(peak, usage.ru_maxrss * 1024) - start) / 2**20, 1)}
        if why:
            return result | {"end": why}
        if os.WIFSIGNALED(status) or not answer.is_file():
            return result | {"end": "crashed", "why": f"wait status {status}"}
        told = json.loads(answer.read_text(encoding="utf-8"))
        noise = said.read_text(encoding="utf-8", errors="replace").strip()
        if told["end"] == "silent" and noise:
            told |= {"end": "warned", "why": noise[-300:]}
        return result | told


def _resident(process: int) -> int:
    """Bytes in memory of a process and of all that it started."""
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
        started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return own + sum(_private(int(child)) for child in started)


def _private(process: int) -> int:
    """Bytes that a process shares with no other; one that has just been forked has its parent's beside them."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _in_child(load: Callable[[Path], Loaded], path: Path, kept: Path, answer: Path, said: Path, usual: set[str]
              ) -> None:
    """Reads one case, and never returns."""
    def done(**what: Any) -> None:
        answer.write_text(json.dumps(what), encoding="utf-8")
        os._exit(0)

    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        with _heard() as words:
            volumes = [_canonical(array, affine) for array, affine in load(path)]
        about = [word for word in dict.fromkeys(words) if word not in usual]
        import numpy as np

        kept.mkdir(parents=True, exist_ok=True)
        for number, (array, affine) in enumerate(volumes):
            np.savez(kept / f"{number}.npz", array=array, affine=affine)
        done(end="warned" if about else "silent", why="; ".join(about)[:300],
             shapes=[list(array.shape) for array, _ in volumes])
    except BaseException as error:  # a panic of a codec is a BaseException
        text = "".join(traceback.format_exception_only(error)).strip()
        done(end="refused", why=text[-300:], error=type(error).__name__)


def _canonical(array: Any, affine: Any) -> tuple[Any, Any]:
    """Every voxel in its place: axes and directions as near to right, front and head as they can be turned."""
    import numpy as np
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    array = np.asarray(array, dtype=np.float64)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    affine = np.asarray(affine, dtype=np.float64)
    if array.ndim != 3 or affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        return array, affine
    turn = io_orientation(affine)
    return apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape)


# --- judging ----------------------------------------------------------------------------------------------------------


def same(one: list[Any], other: list[Any], *, values: bool = True, more: bool = False) -> bool:
    """Whether a reading has the same volumes as another, in any order; with `more`, whether it has them at least."""
    import numpy as np

    def equal(a: Any, b: Any) -> bool:
        if a["array"].shape != b["array"].shape:
            return False
        flat = a["array"].shape[2:] == (1,)  # what a single slice's third axis is worth is nobody's to say
        columns = [0, 1, 3] if flat else [0, 1, 2, 3]
        if not np.allclose(a["affine"][:, columns], b["affine"][:, columns], rtol=0, atol=MM_APART):
            return False
        return not values or np.allclose(a["array"], b["array"], rtol=1e-5, atol=VALUES_APART, equal_nan=True)

    rest = list(one)
    for volume in other:
        match = next((index for index, each in enumerate(rest) if equal(volume, each)), None)
        if match is None:
            return False
        rest.pop(match)
    return more or not rest


def judge(odd: Path, kept: Path, ends: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Adds `as` (`same` or `other`) to every loaded must-accept case of every reader."""
    import numpy as np

    cases = cases_of(odd)
    number_of = {case["path"]: number for number, case in enumerate(cases)}

    def volumes(reader: str, number: int) -> list[Any]:
        return [dict(np.load(file)) for file in sorted((kept / reader / str(number)).glob("*.npz"))]

    for number, case in enumerate(cases):
        if case["expect"] not in MUST_ACCEPT or case["id"][0] not in "dn":
            continue
        loaded = {reader: volumes(reader, number) for reader in ends
                  if ends[reader].get(case["id"], {}).get("end") in ("silent", "warned")}
        if not loaded:
            continue
        values = case["code"] not in PLACE_ONLY
        truth = case.get("truth", "")
        if truth.endswith(".nii.gz"):
            array, affine = _canonical(*OPENERS["nibabel"]()(odd / truth)[0])
            right = [{"array": array, "affine": affine}]
        elif truth:
            # The first file of a family is judged by what most readers make of it, the others by its voxels.
            right = _most({reader: found for reader in ends if (found := volumes(reader, number_of[truth]))}, values)
        elif case["id"][0] == "n" and "nibabel" in loaded:
            right = loaded["nibabel"]
        else:
            right = _most(loaded, values)
        for reader, found in loaded.items():
            # A scout that is kept, but apart, does no harm.
            fits = same(found, right, values=values, more=case["code"] == "LOCALIZER_SKIPPED")
            ends[reader][case["id"]]["as"] = "same" if fits else "other"


def _most(loaded: dict[str, list[Any]], values: bool) -> list[Any]:
    """The reading that most readers agree on; of equals, the first reader's."""
    agreeing = {reader: sum(same(found, other, values=values) for other in loaded.values())
                for reader, found in loaded.items()}
    return loaded[max(agreeing, key=lambda reader: agreeing[reader])]


def rows_of(odd: Path, ends: dict[str, dict[str, dict[str, Any]]], wanted: str) -> list[list[str]]:
    """One row a reader over the cases whose ids a pattern fits."""
    expected = {case["id"]: case["expect"] for case in cases_of(odd) if re.match(wanted, case["id"])}
    rows = []
    for reader, all_found in ends.items():
        found = {name: end for name, end in all_found.items() if name in expected}
        if not found:
            continue
        refuse = Counter(end["end"] for name, end in found.items() if expected[name] in MUST_REFUSE)
        accept = Counter(end["as"] if "as" in end else
                         "refused" if end["end"] == "refused" else "bad" if end["end"] in BAD_ENDS else "same"
                         for name, end in found.items() if expected[name] in MUST_ACCEPT)
        told = Counter(end["end"] != "silent" for name, end in found.items() if expected[name] in MUST_BE_TOLD)
        bad = sum(end["end"] in BAD_ENDS for end in found.values())
        rows.append([reader, str(refuse.total()), str(refuse["refused"]), str(refuse["warned"]), str(refuse["silent"]),
                     str(accept.total()), str(accept["same"]), str(accept["other"]), str(accept["refused"]),
                     f"{told[False]} of {told.total()}", str(bad), f"{max(end['mib'] for end in found.values()):.0f}"])
    return rows


HEAD = ["reader", "must refuse", "refused", "warned", "silent", "must accept", "right", "other", "refused",
        "untold oddities", "crash, hang, memory", "peak MiB"]


def table(rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows))


def main() -> None:
    """Runs every reader over every case, prints the tables, and ends with 1 where medgan breaks its promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--odd", type=Path, default=Path("../shared/odd"))
    parser.add_argument("--out", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--readers", default=",".join(OPENERS))
    parser.add_argument("--serve", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    odd = given.odd.resolve()
    if given.serve:
        serve(given.serve[0], odd, Path(given.serve[1]))
        return
    ends: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder)
        for reader in given.readers.split(","):
            if not version_of(reader):
                print(f"{reader} is not installed, and left out", file=sys.stderr)
                continue
            command = [sys.executable, __file__, "--odd", str(odd), "--serve", reader, str(kept / reader)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                lines = [json.loads(line) for line in process.stdout if line.startswith("{")]
            if process.returncode:
                raise SystemExit(f"the process of {reader} ended with {process.returncode}")
            ends[reader] = {line.pop("id"): line for line in lines}
            print(f"{reader} {version_of(reader)}: {len(lines)} cases", file=sys.stderr, flush=True)
        judge(odd, kept, ends)
    given.out.mkdir(parents=True, exist_ok=True)
    versions = {reader: version_of(reader) for reader in ends}
    cases = [{**case, "found": {reader: ends[reader][case["id"]] for reader in ends if case["id"] in ends[reader]}}
             for case in cases_of(odd)]
    (given.out / "reliability.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1), "utf-8")
    pages = [f"Versions: {', '.join(f'{reader} {version}' for reader, version in versions.items())}"]
    for title, wanted in TABLES.items():
        if rows := rows_of(odd, ends, wanted):
            pages.append(f"{title}\n\n{table(rows)}")
    text = "\n\n".join(pages)
    (given.out / "reliability.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    sys.exit(_broken(cases))


def _broken(cases: list[dict[str, Any]]) -> int:
    """Names each case in which medgan did what it promises not to do."""
    wrong = []
    for case in cases:
        found = case["found"].get("medgan")
        if found is None:
            continue
        silent = found["end"] == "silent" and case["expect"] in MUST_REFUSE | MUST_BE_TOLD
        loaded = found["end"] == "warned" and case["expect"] in MUST_REFUSE
        refused = found["end"] == "refused" and case["expect"] in MUST_ACCEPT
        if silent or loaded or refused or found["end"] in BAD_ENDS or found.get("as") == "other":
            end = f"{found['end']} {found.get('as', '')} {found.get('why', '')}"
            wrong.append(f"{case['id']} ({case['expect']}): {end}")
    for line in wrong:
        print(f"medgan: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    main()
