"""When memory does not hold a batch: it goes through in smaller parts whose gradients are added up.

A step that runs out of memory is undone as a whole and played again, its batch in parts of half the size, down to one
image at a time. Each part draws from a seed of its own, the same for every player, so that a resumed run draws the
same. The players still move once a step, by the mean over the whole batch:

* Losses that are means over images or over pairs of a real and a made image (all objectives, R1, R2, the slope
  penalty, the distance to the truth) are the same sum in another order, to the rounding of floats. What is taken of
  one in so many images is taken of the same ones (`Task.every`, `Task.first`).
* Means over voxels, as under a lesion's mask, are divided by the whole batch's voxels (`Task.fraction`), and the
  adaptive augmentation looks at the whole batch's margins (`Task.gathered`).
* Not the same is feature matching, which compares means over the images at hand: over fewer, these differ more. In the
  lesion task's warm-up the mean over healthy voxels is taken in each part. No network has batch statistics.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medgan.config import Config
from medgan.errors import Refused
from medgan.learning.health import Finding
from medgan.learning.task import Batch, Parts, Share, Task

if TYPE_CHECKING:
    from medgan.learning.loop import State

#: What asks less of memory.
LESS = "Go on with the run on a machine with more memory, or start one with a smaller data.crop or network.width"
#: What errors say that come of too little memory but are of no class of their own: torch's CPU allocator, C++, CUDA's
#: libraries.
SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "bad allocation",
           "cannot allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
#: All that torch lets through of oneDNN's lack of memory for a convolution's scratch space; a primitive's descriptor is
#: refused for other reasons.
ONEDNN = re.compile(r"could not (create|execute) a primitive(?! descriptor)")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the machine's or the GPU's, did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and (
        any(saying.lower() in told for saying in SAYINGS) or ONEDNN.search(told) is not None)


@contextlib.contextmanager
def memory_named(where: str, fix: str) -> Iterator[None]:
    """Turns running out of memory into a refusal.

    Args:
        where: What was being done.
        fix: What can be done about it.

    Raises:
        Refused: `OUT_OF_MEMORY`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = (str(error).splitlines() or [""])[0].strip()[:200]
    else:
        return
    # Outside the handler: the error holds on to all that was computed.
    release()
    raise Refused("OUT_OF_MEMORY", where, f"memory did not suffice ({said or 'MemoryError'})", fix)


def release() -> None:
    """Gives back the memory of what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def shares(batch: Batch, at_once: int | None) -> list[Share]:
    """The parts that a batch goes through in, in order; one alone where all of it may."""
    count = len(next(iter(batch.values())))
    size = min(at_once or count, count)
    return [Share(batch, start, min(start + size, count)) for start in range(0, count, size)]


def in_parts(draw: Callable[[slice], Tensor], count: int) -> Tensor:
    """Draws rows, all at once, or where memory does not suffice half as many at a time, down to one.

    Args:
        draw: Which rows -> (rows, ...), each row by itself.
        count: How many.

    Raises:
        Refused: `OUT_OF_MEMORY` when not even one row fits.
    """
    size = count
    while size > 1:
        try:
            drawn = [draw(slice(start, min(start + size, count))) for start in range(0, count, size)]
            return drawn[0] if len(drawn) == 1 else torch.cat(drawn)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        release()
        size = -(-size // 2)
    with memory_named("drawing", "Use a machine with more memory, or --device cpu"):
        drawn = [draw(slice(start, start + 1)) for start in range(count)]
        return drawn[0] if count == 1 else torch.cat(drawn)


def gradients(task: Task, player: str, batch: Batch, at_once: int | None, precision: torch.dtype, seed: int
              ) -> tuple[Tensor, Parts]:
    """Adds to a player's gradients those of its loss on a batch.

    Args:
        task: Of the player.
        player: Its name.
        batch: The whole batch, on the device.
        at_once: Images that go through together at most; None: all.
        precision: Of the networks.
        seed: Of the step; used where the batch goes through in parts.

    Returns:
        The loss on the whole batch and its named parts, without gradients.
    """
    device = next(iter(batch.values())).device
    parted = shares(batch, at_once)
    total: Tensor | None = None
    sums: dict[str, Tensor] = {}
    for number, share in enumerate(parted):
        alone = len(parted) == 1
        if not alone:
            torch.manual_seed((seed + 1 + number) % 2**63)
            task.share = share
        try:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
                loss, parts = task.loss(player, batch if alone else share.part())
            if alone:
                loss.backward()  # type: ignore[no-untyped-call]
                return loss.detach(), {name: value.detach() for name, value in parts.items()}
            if loss.requires_grad:
                (loss * share.size).backward()  # type: ignore[no-untyped-call]
        finally:
            task.share = None
        total = share.size * loss.detach() + (0 if total is None else total)
        for name, value in parts.items():
            sums[name] = share.size * value.detach() + sums.get(name, 0)
    assert total is not None
    return total, sums


def halve(state: State, count: int, config: Config) -> Finding:
    """Lets half as many images of a batch of `count` go through together from now on, and says so.

    Raises:
        Refused: `OUT_OF_MEMORY` where that would be less than one.
    """
    now = min(state.at_once or count, count)
    if now == 1:
        raise Refused("OUT_OF_MEMORY", "training", f"memory did not suffice for one image at a time, at {state.images} "
                      "images", f"{LESS} (they are {config.data.crop} and {config.network.width})")
    state.at_once = -(-now // 2)
    parts = -(-count // state.at_once)
    finding = Finding("out of memory", state.images, f"{now} images at once did not fit",
                      f"from here on each batch of {count} goes through in {parts} parts of at most {state.at_once}, "
                      "whose gradients are added up")
    state.health.findings.append(finding)
    return finding


@dataclass
class Undo:
    """What one step changes, as it was before it, so that a step that fails half-way leaves nothing behind.

    Call `begin` before a step, `keep` before each player's move, and `restore` after a failure.

    Args:
        possible: Whether the step can be undone. Only the last move of a step is not copied, once its optimiser has
            what it needs: it takes next to no memory, and a copy at each step takes time.
    """

    possible: bool = True
    _buffers: dict[str, Tensor] = field(default_factory=dict)
    _kept: dict[str, tuple[torch.optim.Optimizer, list[bool]]] = field(default_factory=dict)
    _copies: dict[str, list[Tensor]] = field(default_factory=dict)

    def begin(self, task: nn.Module) -> None:
        """Forgets the step before; copies what is no player's (probabilities of augmentation: a few numbers)."""
        self.possible, self._kept = True, {}
        self._buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}

    @torch.no_grad()
    def keep(self, name: str, optimiser: torch.optim.Optimizer, *, last: bool) -> None:
        """Copies a player's weights and its optimiser's state; not those of the `last` to move, see `possible`."""
        known = [parameter in optimiser.state for parameter in _parameters(optimiser)]
        if last and optimiser.state:
            self.possible = False
            return
        now, copies = _tensors(optimiser), self._copies.get(name, [])
        if len(copies) == len(now):
            torch._foreach_copy_(copies, now)
        else:
            self._copies[name] = [tensor.clone() for tensor in now]
        self._kept[name] = optimiser, known

    @torch.no_grad()
    def restore(self, task: nn.Module) -> None:
        """Brings everything back to where it was at `begin`."""
        for name, buffer in task.named_buffers():
            buffer.copy_(self._buffers[name])
        for name, (optimiser, known) in self._kept.items():
            for parameter, before in zip(_parameters(optimiser), known, strict=True):
                if not before:
                    optimiser.state.pop(parameter, None)
            torch._foreach_copy_(_tensors(optimiser), self._copies[name])
        for parameter in task.parameters():
            parameter.grad = None


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _tensors(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """The weights that an optimiser moves, and what it remembers of each."""
    weights = _parameters(optimiser)
    states: list[Mapping[str, Tensor]] = [optimiser.state[weight] for weight in weights if weight in optimiser.state]
    return [*weights, *(value for state in states for value in state.values())]
