"""Beginning a run with the weights of another one (`training.from`).

A generator that has learned one set of images draws another one sooner than one that has learned nothing, which counts
most where there are few images (Wang et al. 2018, "Transferring GANs: generating images from limited data").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medgan.config import Config
from medgan.errors import Refused
from medgan.learning.checkpoints import STATE, WEIGHTS, Run, open_run, tensors_of
from medgan.learning.loop import State

#: Where the players besides the generator are; a run may have lost it.
STATE_FILE = f"{STATE}/state.safetensors"


def check_start(config: Config, channels: int | None = None) -> Run | None:
    """The run that a new one begins with, refused where it cannot; None where none is named.

    Args:
        config: Settings of the new run.
        channels: Its image channels; None: not known yet.

    Raises:
        Refused: `RUN_NOT_FOUND`, `RUN_UNFINISHED`, `RUN_TASK`, `RUN_CHANNELS` or `CKPT_*`.
    """
    if config.training.start is None:
        return None
    run = open_run(config.training.start)
    theirs = run.config
    for what, own, other in (("of the task", config.task, theirs.task),
                             ("in dimensions of", config.data.dims, theirs.data.dims)):
        if own != other:
            raise Refused("RUN_TASK", run.path, f"it is a run {what} {other}, not {own}",
                          "Name a run of the same task and data.dims with training.from")
    if channels is not None and channels != run.interface["channels"]:
        raise Refused("RUN_CHANNELS", run.path,
                      f"it was trained on {run.interface['channels']} channels, not {channels}",
                      "Name a run on images with as many channels with training.from")
    if not run.finished:
        raise Refused("RUN_UNFINISHED", run.path, "training did not reach its end, so there are no weights",
                      f"Finish it with medgan train --out {run.path} --resume")
    run.generator()  # what is wrong with its weights is said before anything is written
    tensors_of(run.path / STATE_FILE)
    return run


def begin_with(state: State, run: Run, interface: Mapping[str, Any]) -> str:
    """Takes from a finished run whatever fits: its averaged generator, and its other players as they ended.

    Tensors of the same name and shape are taken. What belongs to a class goes by the class's name; a class that the
    other run does not know begins anew. Optimisers, buffers and averages begin anew.

    Args:
        state: Of the new run, before its first step; changed in place.
        run: As `check_start` gives it.
        interface: Of the new run.

    Returns:
        What was taken, in a sentence.

    Raises:
        Refused: `CKPT_*`.
    """
    names = {id(module): name for name, module in state.task.named_children()}
    told = []
    for player, module in state.task.players.items():
        own = module is state.task.generator
        file, prefix = (WEIGHTS, "") if own else (STATE_FILE, f"task.{names[id(module)]}.")
        found = tensors_of(run.path / file, prefix)
        taken, total = _take(module, found, run.interface, interface)
        told.append(f"{taken} of {total} tensors of the {player}")
    state.average.load_state_dict(state.task.generator.state_dict())
    known = _shared(run.interface, interface)
    classes = f"; classes known to both: {', '.join(known) or 'none'}" if "classes" in interface else ""
    return f"begun with {', '.join(told)} of {run.path.name} ({run.hash()}){classes}"


def _take(module: nn.Module, found: Mapping[str, Tensor], theirs: Mapping[str, Any], ours: Mapping[str, Any]
          ) -> tuple[int, int]:
    """Copies what fits into a module's parameters; (how many, of how many)."""
    by_class = {f"{name}.weight" for name, part in module.named_modules()
                if isinstance(part, nn.Embedding) and part.num_embeddings == len(ours.get("classes", ()))}
    shared = _shared(theirs, ours)
    taken, total = 0, 0
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            total += 1
            other = found.get(name)
            if other is None:
                continue
            if name in by_class:
                if other.shape[1:] != parameter.shape[1:] or not shared:
                    continue
                for each in shared:
                    parameter[list(ours["classes"]).index(each)] = other[list(theirs["classes"]).index(each)]
            elif other.shape == parameter.shape:
                parameter.copy_(other)
            else:
                continue
            taken += 1
    return taken, total


def _shared(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Sequence[str]:
    return [name for name in ours.get("classes", ()) if name in theirs.get("classes", ())]
