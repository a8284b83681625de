"""Kills `train` and `augment` with SIGKILL at random moments, and looks at what is left.

    python benchmarks/kills.py --verb train --kills 200 --seed 0 --out DIR
    python benchmarks/kills.py --verb augment --kills 200 --seed 0 --out DIR

One run that nobody kills is the reference. Then the same command is killed one to four times in a row, each time going
on with what the kill before it left, and is at last let through to its end. After every kill (`kills_checks.py`):

- every file under a final name is whole: JSON parses, safetensors load, NIfTI, PNG and CSV read to their end;
- every such file has the bytes that it has in the reference (a run's state, which moves on, and its log apart);
- nothing that was there before is gone, and the state of training has not gone back;
- nothing else is left but files that bear the mark of what is being written.

At the end all files have the reference's bytes, with no file more or less; before the first kill a second run that
nobody kills shows that these bytes can be had. In a run's `log.jsonl` two figures of speed honestly differ,
`images_per_second` and `waiting`; the rest of each line is compared.

Most kills spare the seconds of starting Python: a process that has imported everything, and computed nothing, forks a
child for each attempt, which runs the command and is killed. Half of those are killed at a random time of the
reference's duration; the other half directly before or after a random one of their calls that change folders (rename,
flush, make, remove) or open a file to write. `--real` kills are of the command itself, in a process group of its own.
One thread computes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kills_checks import LOG, Left, compare, digest, final_files, leftovers, log_lines, look

os.environ["OMP_NUM_THREADS"] = "1"

#: Calls that change what a folder holds, or that say that it is on the disk.
CALLS = ("replace", "fsync", "mkdir", "unlink", "rmdir")
#: Kills in a row, at most, before a command is let through to its end.
IN_A_ROW = 4
#: Settings of runs of a few seconds.
TRAIN = {"training.images": 32, "training.batch": 4, "training.report_images": 8, "data.crop": 16, "network.width": 8,
         "data.crops_per_case": 4, "training.precision": "fp32"}
AUGMENT = {"augment.seen": 0, "augment.visibility": -1e9, "augment.sigmas": 1e9}
#: Seconds after which a command that should end is taken for stuck.
STUCK = 120.0


@dataclass
class Found:
    """What a campaign of kills came to.

    Args:
        verb: `train` or `augment`.
        kills: Commands that were killed before they ended.
        by: How they were killed -> how many.
        ends: Chains of killed commands that were let through to their end.
        leftovers: Kills that left a file or folder half-written, under the mark of such.
        unbegun: Kills before anything was there under a final name.
        lost: What was found that must not be, in words.
    """

    verb: str
    kills: int = 0
    by: Counter[str] = field(default_factory=Counter)
    ends: int = 0
    leftovers: int = 0
    unbegun: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Command:
    """A command, how it is gone on with, and where it writes.

    Args:
        verb: `train` or `augment`.
        begin: Arguments of the first call, the output left out.
        again: Arguments of a call that goes on.
    """

    verb: str
    begin: Sequence[str]
    again: Sequence[str]

    def arguments(self, out: Path) -> list[str]:
        """What to call next on an output: `train` wants to be told to go on, once there is something to go on with."""
        begun = self.verb == "train" and (out / "config.json").is_file()
        return [*(self.again if begun else self.begin), "--out", str(out)]


def command(verb: str, data: Path) -> Command:
    """The command that is killed."""
    sets = [text for key, value in (TRAIN if verb == "train" else AUGMENT).items()
            for text in ("--set", f"{key}={json.dumps(value)}")]
    if verb == "train":
        return Command(verb, ("train", str(data), "--modality", "mr", *sets), ("train", "--resume"))
    begin = ("augment", str(data), "--modality", "mr", "--method", "paste", "--factor", "2", *sets)
    return Command(verb, begin, begin)


def write_data(folder: Path) -> Path:
    """Four small phantoms with lesions."""
    from medgan.datasets.phantoms import write_phantoms

    return write_phantoms(folder, "mr", count=4, seed=5, shape=(48, 56, 20))


@dataclass(frozen=True)
class Plan:
    """How a command is killed: at a time, or at a call; neither: not at all."""

    after: float | None = None
    call: int | None = None
    before_it: bool = False


def run_forked(arguments: Sequence[str], log: Path, plan: Plan) -> tuple[int, dict[str, Any]]:
    """Runs a command in a fork of this process; gives what `wait` says of it, and what it told at its end."""
    told = log.with_name("told.json")
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _be_the_command(arguments, log, plan, told)
    status = _wait(child, plan.after)
    return status, json.loads(told.read_text()) if told.is_file() else {}


def _be_the_command(arguments: Sequence[str], log: Path, plan: Plan, told: Path) -> None:
    """Never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        calls = _watched(plan)
        sys.argv = ["medgan", *arguments]
        from medgan.cli import main

        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if plan == Plan():
            told.write_text(json.dumps({"calls": calls(), "modules": sorted(sys.modules)}))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watched(plan: Plan) -> Callable[[], int]:
    """Counts the calls that change the disk's folders, and ends this process at the one that was chosen."""
    made = 0

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*given: Any, **named: Any) -> Any:
            nonlocal made
            number, made = made, made + 1
            if number == plan.call and plan.before_it:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*given, **named)
            finally:
                if number == plan.call:
                    os.kill(os.getpid(), signal.SIGKILL)
        return around

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    opened = io.open

    def opening(file: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        return (opened if mode.startswith("r") else watched(opened))(file, mode, *given, **named)

    io.open = opening  # what pathlib calls; a kill after it leaves an empty file
    return lambda: made


def run_real(arguments: Sequence[str], log: Path, plan: Plan) -> int:
    """Runs the command itself as the leader of a process group; gives what `wait` says of it."""
    with log.open("ab") as sink:
        child = subprocess.Popen([sys.executable, "-m", "medgan.cli", *arguments], stdout=sink, stderr=sink,
                                 start_new_session=True)
    return _wait(child.pid, plan.after)


def _wait(child: int, after: float | None) -> int:
    """Waits for a process, killing its group after some seconds."""
    begun = time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - begun
        if passed > STUCK:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"the command did not end within {STUCK:g} seconds")
        if after is not None and passed >= after:
            try:
                os.killpg(child, signal.SIGKILL)
            except ProcessLookupError:  # it has not made its group yet
                os.kill(child, signal.SIGKILL)
            after = None
        time.sleep(0.0005)


def campaign(verb: str, kills: int, seed: int, out: Path, *, real: int = 0, tell: Callable[[str], None] = print
             ) -> Found:
    """Kills a command until it was killed so many times, and lets each chain of kills end.

    Args:
        verb: `train` or `augment`.
        kills: How many.
        seed: Of the moments.
        out: A new folder for everything; what a fault was found in stays there.
        real: How many of them are of the command in a process of its own.
        tell: Told of each chain.
    """
    out.mkdir(parents=True)
    data, chance, found = write_data(out / "data"), random.Random(seed), Found(verb)
    order, log = command(verb, data), out / "log.txt"
    _import_first()
    # All outputs have one name, which is in their model cards.
    reference = out / "reference" / "out"
    reference.parent.mkdir()
    status, told = run_forked(order.arguments(reference), log, Plan())
    if status != 0:
        raise RuntimeError(f"the reference ended with {status}: {log.read_text()[-2000:]}")
    calls = int(told["calls"])
    digests = {name: digest(path) for name, path in final_files(reference).items()}
    lines = log_lines(reference / LOG) if LOG in digests else []
    _import_also(told["modules"])
    begun = time.monotonic()
    second = out / "second" / "out"
    second.parent.mkdir()
    run_forked(order.arguments(second), log, Plan())
    duration = time.monotonic() - begun
    if differing := compare(second, digests):
        raise RuntimeError(f"two runs that nobody kills differ, so that nothing can be said: {differing}")
    tell(f"{verb}: {len(digests)} files in {duration:.1f} s, {calls} calls that change folders")
    start_up = _start_up(log) if real else 0.0
    chain = 0
    while found.kills < kills:
        chain += 1
        target = out / f"chain-{chain}" / "out"
        target.parent.mkdir()
        before: Left | None = None
        wrong: list[str] = []
        for _ in range(chance.randint(1, IN_A_ROW)):
            if found.kills == kills or wrong:
                break
            way, status = _kill(order.arguments(target), log, chance, duration, calls,
                                start_up if found.by["real"] < real else None)
            if status != -signal.SIGKILL:
                if status != 0:
                    wrong.append(f"a command that was not killed yet ended with {status}")
                break
            found.kills += 1
            found.by[way] += 1
            found.leftovers += bool(leftovers(target))
            found.unbegun += not final_files(target)
            before, wrong = look(target, digests, lines, before)
        if not wrong:
            status, _ = run_forked(order.arguments(target), log, Plan())
            wrong = [f"the command could not go on: it ended with {status}"] if status != 0 else []
            wrong += compare(target, digests)
            found.ends += 1
        found.lost += [f"chain {chain}: {text}" for text in wrong]
        tell(f"{found.kills} kills, {found.ends} ends, {len(found.lost)} faults")
        if not wrong:
            shutil.rmtree(target.parent)
    return found


def _kill(arguments: Sequence[str], log: Path, chance: random.Random, duration: float, calls: int,
          start_up: float | None) -> tuple[str, int]:
    """Runs a command and kills it at a random moment, if it is not through by then."""
    if start_up is not None:
        return "real", run_real(arguments, log, Plan(after=start_up * 0.8 + chance.uniform(0, duration * 1.2)))
    if chance.random() < 0.5:
        return "time", run_forked(arguments, log, Plan(after=chance.uniform(0, duration)))[0]
    return "call", run_forked(arguments, log, Plan(call=chance.randrange(calls), before_it=chance.random() < 0.5))[0]


def _import_first() -> None:
    import torch

    torch.set_num_threads(1)


def _import_also(modules: Sequence[str]) -> None:
    """Imports what the reference did, which computes nothing: forks of what has computed would share its threads."""
    for name in modules:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError):  # some exist in their parents only
                importlib.import_module(name)


def _start_up(log: Path) -> float:
    """Seconds until the command has imported what it needs."""
    begun = time.monotonic()
    with log.open("ab") as sink:
        subprocess.run([sys.executable, "-c", "import medgan.learning.checkpoints, medgan.learning.tasks"], check=True,
                       stdout=sink, stderr=sink)
    return time.monotonic() - begun


def main() -> None:
    """Runs a campaign and says what it found; the exit code is 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verb", choices=("train", "augment"), required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--real", type=int, default=10, help="how many of them in a process of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    found = campaign(options.verb, options.kills, options.seed, options.out, real=options.real,
                     tell=lambda text: print(text, file=sys.stderr, flush=True))
    told = {**vars(found), "by": dict(found.by)}
    (options.out / "found.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told))
    sys.exit(1 if found.lost else 0)


if __name__ == "__main__":
    main()
