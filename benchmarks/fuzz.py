"""Runs a reader of medgan on damaged and hostile input, guided by the branches it takes, and counts what goes wrong.

    python benchmarks/fuzz.py --reader dicom|nifti|planar|npz|tables|checkpoints|config
        [--executions 100000] [--seed 0] [--corpus DIR] [--findings DIR] [--out FILE.json]

It starts from small right files that are made in code (`fuzz_seeds.py`), changes them with knowledge of their format
(`fuzz_mutators.py`), and keeps what reaches new branches (atheris, which is libFuzzer). An execution is right when it
ends in a `Refused` or in a result that is finite, rigid and sane (`fuzz_targets.py`). Everything else is a finding:
any other exception, BaseException included, a signal, more than --timeout seconds, more than --memory MiB. The reader
runs in a process of its own, which is started again where it died, so that every execution counts. Findings are put
together by kind and place; the first input of each is kept. Ends with 1 where there is any.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import fuzz_seeds

#: libFuzzer's exit codes for what is no exception, and what they are called here.
EXITS = {70: "timeout", 71: "memory", 77: "signal"}
#: A reader that dies more often than this is not fuzzed to the end.
MOST_DEATHS = 200
#: One in so many mutations starts from a seed: what was kept for a new branch is mostly wrong in many ways by then.
FRESH = 3
#: Executions between two notes of how often which answer came.
NOTED_EVERY = 500


def main() -> None:
    """Fuzzes one reader and tells what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=sorted(fuzz_seeds.SEEDS), required=True)
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=int, default=60, help="seconds an execution may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may hold")
    parser.add_argument("--corpus", type=Path, help="inputs to start from besides the seeds; new ones are added")
    parser.add_argument("--findings", type=Path, help="where inputs of findings are kept; default: a folder in /tmp")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)  # given by this script to its child
    arguments = parser.parse_args()
    if arguments.work:
        child(arguments)
        return
    result = fuzz(arguments)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    sys.exit(1 if result["findings"] or result["executions"] < arguments.executions else 0)


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """Starts the child until all executions are done; returns what is printed."""
    kept = arguments.findings or Path(tempfile.mkdtemp(prefix=f"fuzz-{arguments.reader}-"))
    kept.mkdir(parents=True, exist_ok=True)
    begun, deaths = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        work = Path(folder)
        corpus = arguments.corpus or work / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in fuzz_seeds.SEEDS[arguments.reader]():
            (corpus / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)
        (work / "files").mkdir()
        (work / "count").write_bytes(bytes(8))
        findings: dict[str, dict[str, Any]] = {}
        while (done := _count(work)) < arguments.executions and deaths < MOST_DEATHS:
            with (work / "log").open("wb") as log:
                code = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--reader", arguments.reader, "--corpus", str(corpus),
                     "--seed", str(arguments.seed + deaths), "--work", str(work)],
                    stdout=log, stderr=subprocess.STDOUT, check=False, env={**os.environ, "PYTHONHASHSEED": "0"},
                ).returncode
            if code == 0 and _count(work) > done:
                continue
            said = (work / "log").read_text(errors="replace")[-4000:]
            if _count(work) == done and not (work / "last").exists():
                raise SystemExit(f"the fuzzed process did not start:\n{said}")
            deaths += 1
            _died(code, said, work, findings, kept)
        for line in (work / "found.jsonl").read_text().splitlines() if (work / "found.jsonl").exists() else ():
            entry = json.loads(line)
            _note(findings, entry["bucket"], entry["said"], bytes.fromhex(entry["data"]), kept)
        answers: Counter[str] = Counter()
        for file in work.glob("answers-*"):
            answers.update(json.loads(file.read_text()))
        seconds = time.monotonic() - begun
        return {"reader": arguments.reader, "executions": _count(work), "seed": arguments.seed,
                "seconds": round(seconds, 1), "per_second": round(_count(work) / seconds, 1),
                "findings": sum(found["times"] for found in findings.values()), "places": findings,
                "corpus": len(list(corpus.iterdir())), "answers": dict(answers.most_common())}


def _count(work: Path) -> int:
    return int(struct.unpack("<Q", (work / "count").read_bytes())[0])


def _died(code: int, said: str, work: Path, findings: dict[str, dict[str, Any]], kept: Path) -> None:
    """Notes a child that ended other than by itself; its last input is passed over from now on."""
    kind = EXITS.get(code, f"signal {-code}" if code < 0 else f"exit {code}")
    lines = [line for line in said.splitlines() if "File \"" in line or "==ERROR" in line]
    data = (work / "last").read_bytes()
    _note(findings, f"{kind} {lines[-1].strip() if lines else ''}".strip(), said[-2000:], data, kept)
    with (work / "deadly").open("a") as file:
        file.write(hashlib.sha256(data).hexdigest() + "\n")
    (work / "count").write_bytes(struct.pack("<Q", _count(work) + 1))


def _note(findings: dict[str, dict[str, Any]], bucket: str, said: str, data: bytes, kept: Path) -> None:
    found = findings.setdefault(bucket, {"times": 0, "input": "", "said": said})
    found["times"] += 1
    if data and not found["input"]:
        path = kept / hashlib.sha256(bucket.encode() + data).hexdigest()[:16]
        path.write_bytes(data)
        found["input"] = str(path)


def child(arguments: argparse.Namespace) -> None:
    """Executes inputs until enough are done; never returns."""
    import atheris
    import fuzz_mutators
    from fuzz_targets import TARGETS

    target, work = TARGETS[arguments.reader], arguments.work
    with atheris.instrument_imports(include=list(target.include)):
        target.load()
    from medgan.errors import Refused

    deadly = set((work / "deadly").read_text().split()) if (work / "deadly").exists() else set()
    shared = mmap.mmap(os.open(work / "count", os.O_RDWR), 8)
    seen: set[str] = set()
    answers: Counter[str] = Counter()
    notes = work / f"answers-{os.getpid()}"

    def one(data: bytes) -> None:
        if deadly and hashlib.sha256(data).hexdigest() in deadly:
            return
        (work / "last").write_bytes(data)
        try:
            target.run(data, work / "files")
            answers["read"] += 1
        except Refused as refused:
            answers[refused.code] += 1
            try:
                str(refused).encode()
            except UnicodeEncodeError as error:
                found(error, data)
        except BaseException as error:  # all of them: that is what is looked for
            found(error, data)
        count = struct.unpack("<Q", shared[:])[0] + 1
        shared[:] = struct.pack("<Q", count)
        if count % NOTED_EVERY == 0 or count >= arguments.executions:
            notes.write_text(json.dumps(answers))
        if count >= arguments.executions:
            os._exit(0)

    def found(error: BaseException, data: bytes) -> None:
        answers["finding"] += 1
        bucket, said = _place(error), ""
        if bucket in seen:
            data = b""
        else:
            seen.add(bucket)
            said = "".join(traceback.format_exception(error))[-3000:]
        with (work / "found.jsonl").open("a") as file:
            file.write(json.dumps({"bucket": bucket, "said": said, "data": data.hex()}) + "\n")

    seeds = fuzz_seeds.SEEDS[arguments.reader]()

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if seed % FRESH == 0:
            data = seeds[seed // FRESH % len(seeds)]
        try:
            return fuzz_mutators.mutate(arguments.reader, data, most, seed, atheris.Mutate)
        except Exception:  # a mutation that cannot read what another one made
            return bytes(atheris.Mutate(data, most))

    atheris.Setup(
        [sys.argv[0], f"-seed={arguments.seed + 1}", f"-max_len={target.largest}", f"-timeout={arguments.timeout}",
         f"-rss_limit_mb={arguments.memory}", f"-artifact_prefix={work}/", "-len_control=0", "-reload=0",
         "-handle_int=0", "-mutate_depth=2", str(arguments.corpus)],
        one, custom_mutator=mutator, internal_libfuzzer=True)
    atheris.Fuzz()


def _place(error: BaseException) -> str:
    """The kind of an exception, the last line of medgan that it passed, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/medgan/" in frame.filename]
    names = [f"{Path(frame.filename).stem}.{frame.name}" for frame in (own[-1:] + frames[-1:])]
    return f"{type(error).__name__} in {' < '.join(dict.fromkeys(names))}" + (
        f": {error}"[:80] if type(error).__name__ == "Wrong" else "")


if __name__ == "__main__":
    main()
