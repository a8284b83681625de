"""Synthetic cases made one after another, or by several processes at once: the bytes are the same."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medgan.config import Config
from medgan.datasets.cases import Case, Dataset
from medgan.verbs.cases import Factory, factory


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
    # Fresh processes: a forked one would share torch's thread pool with this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, (work, workers)) as pool:
        yield from pool.map(_in_worker, todo)


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
