"""What long work shows while it runs: a bar on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from medgan.verbs.progress import Progress


class Bar:
    """A progress bar with rate and time left on a terminal; a line a stage elsewhere."""

    def __enter__(self) -> Bar:
        self.stage, self.started, self.first = "", 0.0, 0
        self.bar: Bars | None = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, progress: Progress) -> None:
        if progress.stage != self.stage:
            self._begin(progress)
        if self.bar is not None:
            self.bar.update(self.task, completed=progress.done, total=progress.total,
                            text=" · ".join(part for part in (self._rate(progress), progress.text) if part))

    def _begin(self, progress: Progress) -> None:
        self.stage, self.started, self.first = progress.stage, time.monotonic(), progress.done
        if not sys.stderr.isatty():
            print(": ".join(part for part in (progress.stage, progress.text) if part), file=sys.stderr, flush=True)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars

        if self.bar is not None:
            self.bar.stop()
        self.bar = Bars(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                        TextColumn("{task.fields[text]}"), console=Console(stderr=True))
        self.task = self.bar.add_task(progress.stage, total=progress.total, text="")
        self.bar.start()

    def _rate(self, progress: Progress) -> str:
        elapsed, done = time.monotonic() - self.started, progress.done - self.first
        if elapsed < 1 or done <= 0:
            return ""
        rate = done / elapsed
        left = f", {_duration((progress.total - progress.done) / rate)} left" if progress.total else ""
        shown = f"{rate:.0f} {progress.unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {progress.unit.rstrip('s')}"
        return shown + left


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
