"""CPU time of `import medgan` and of `medgan --help`: each in fresh processes, the median and the range.

    python benchmarks/startup.py [--runs 15]

CPU time (user and system) is what the house promises, since wall time depends on who else uses the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

#: What each of them may cost, in seconds.
LIMIT_S = 0.5
PROGRAMS = {
    "python alone": "pass",
    "import medgan": "import medgan",
    "medgan --help": "import sys; sys.argv = ['medgan', '--help']; from medgan.cli import main; main()",
    "medgan train --help": "import sys; sys.argv = ['medgan', 'train', '--help']; from medgan.cli import main; main()",
}


def cpu_seconds(program: str) -> float:
    """User and system time of a fresh process that runs `program`."""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{program!r} ended with status {status}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Prints a row for each program; ends with 1 where one is over the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    late = False
    print(f"CPU seconds, median of {runs} processes (range)")
    for name, program in PROGRAMS.items():
        cpu_seconds(program)  # the first one fills the disk's cache
        times = sorted(cpu_seconds(program) for _ in range(runs))
        median = statistics.median(times)
        late |= median > LIMIT_S
        print(f"{name:20} {median:.3f} ({times[0]:.3f} to {times[-1]:.3f}), {median / LIMIT_S:.2f} of the limit")
    sys.exit(late)


if __name__ == "__main__":
    main()
