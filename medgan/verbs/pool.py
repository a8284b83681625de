"""Work on many cases, one after another or by several processes at once: the bytes are the same."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.errors import Refused
from medgan.verbs.cases import Factory, factory

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Seconds in which a signal that has ended a worker also reaches this process, where it says why.
GRACE = 0.5


@dataclass(frozen=True)
class Work:
    """What a process needs to make cases: small enough to be sent to it."""

    dataset: Dataset
    config: Config
    method: str
    run: Path | None
    out: Path
    seed: int
    balance: bool = False
    gate: Path | None = None


def made(work: Work, todo: Sequence[tuple[int, Case, Case]], workers: int) -> Iterator[tuple[str, str]]:
    """Makes the cases and yields (id, why it was skipped or an empty string) as they are finished.

    Args:
        work: From what, how and where.
        todo: (number, parent, new case) for each.
        workers: Processes.
    """
    if workers == 1 or len(todo) <= 1:
        if todo:
            make = _factory(work)
            for number, parent, new in todo:
                yield new.id, make(number, parent, new)
        return
    yield from in_parallel(_in_worker, todo, workers, _start_worker, (work, workers), where=work.out)


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], workers: int,
                start: Callable[..., None], arguments: tuple[Any, ...], *, where: Path) -> Iterator[Result]:
    """Yields what `function` gives for each item, in whatever order the processes finish them.

    No process outlives this one, or the loop over what is yielded: where either ends early, by an error, Ctrl-C or
    SIGKILL, they end at once, in the middle of their items.

    Args:
        function: Of the top level of a module.
        items: What is sent to it.
        workers: Processes, at most one for each item.
        start: Called once in each process, before any item.
        arguments: For `start`.
        where: The output, for refusals.

    Raises:
        Refused: `WORKER_DIED` where a process ended without a word; else what `function` raises.
    """
    # Fresh processes: a forked one would share torch's thread pool with this one.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    pool = ProcessPoolExecutor(min(workers, len(items)), context, _begin, (theirs, start, arguments))
    try:
        with _deaf():
            futures = [pool.submit(_do, function, item) for item in items]
        for future in as_completed(futures):
            yield future.result()
        pool.shutdown(wait=True)
    except BrokenProcessPool:
        time.sleep(GRACE)
        raise Refused("WORKER_DIED", where, "a worker process was ended from outside, most often for want of memory",
                      "Use fewer --workers, and give the same command again") from None
    finally:
        ours.close()  # which ends those that are not done
        theirs.close()
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are begun in the block do not hear Ctrl-C, which a terminal sends to all; this one does later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(channel: connection.Connection, start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Begins a worker: it ends with the process that began it."""

    def follow() -> None:
        connection.wait([channel])  # nothing is ever sent: what comes is the end
        os._exit(1)

    global _refusal
    threading.Thread(target=follow, daemon=True, name="medgan-follow").start()
    try:
        start(*arguments)
    except Refused as refused:
        _refusal = refused  # told with the first item: what is raised here would only be printed


_refusal: Refused | None = None


def _do(function: Callable[[Item], Result], item: Item) -> Result:
    if _refusal is not None:
        raise _refusal
    return function(item)


def _factory(work: Work) -> Factory:
    return factory(work.dataset, work.config, work.method, work.run, work.out, work.seed,
                   balance=work.balance, gate=work.gate)


_worker_factory: Factory | None = None


def _start_worker(work: Work, workers: int) -> None:
    import torch

    global _worker_factory
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    _worker_factory = _factory(work)


def _in_worker(item: tuple[int, Case, Case]) -> tuple[str, str]:
    number, parent, new = item
    assert _worker_factory is not None
    return new.id, _worker_factory(number, parent, new)
