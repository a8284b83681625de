"""Run folders: settings and weights that load without running anything, and states that resume exactly.

A run folder holds `config.json` (settings, what the data looks like to the networks, which data set), `state/`
(networks, average, optimisers: what resume needs), `weights.safetensors` (the averaged generator), `log.jsonl`,
`samples/*.png` and `MODEL_CARD.md`. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medgan import __version__
from medgan.config import Config
from medgan.errors import Refused
from medgan.learning.health import Health
from medgan.learning.loop import State
from medgan.storage import atomic_path, write_json, write_text

CONFIG, WEIGHTS, STATE, LOG, SAMPLES = "config.json", "weights.safetensors", "state", "log.jsonl", "samples"
#: Where the phantoms of a run without a data set lie in its folder.
PHANTOM_FOLDER = "phantoms"


@dataclass(frozen=True)
class Run:
    """A run folder as it describes itself.

    Args:
        path: The folder.
        config: Its settings.
        interface: What the networks know of the data: channels, labels, sizes.
        dataset: Name, path and fingerprint of the data set it was trained on.
    """

    path: Path
    config: Config
    interface: Mapping[str, Any]
    dataset: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether weights are there."""
        return (self.path / WEIGHTS).is_file()

    def hash(self) -> str:
        """A short hash of the weights, for provenance."""
        return hashlib.sha256((self.path / WEIGHTS).read_bytes()).hexdigest()[:16]

    def generator(self, device: torch.device | str = "cpu") -> nn.Module:
        """The averaged generator, ready for inference.

        Raises:
            Refused: `RUN_UNFINISHED` or `CKPT_*`.
        """
        from medgan.learning.tasks import TASKS

        if not self.finished:
            raise Refused("RUN_UNFINISHED", self.path, "training did not reach its end, so there are no weights",
                          "Finish it with medgan train --out RUN --resume")
        generator = TASKS[self.config.task](self.config, self.interface).generator
        load_weights(generator, self.path / WEIGHTS)
        return generator.to(device).eval().requires_grad_(False)


def open_run(path: str | Path) -> Run:
    """Reads a run folder's description.

    Raises:
        Refused: `RUN_NOT_FOUND`, `CKPT_CORRUPT` or `CFG_*`.
    """
    path = Path(path)
    file = path / CONFIG
    if not file.is_file():
        raise Refused("RUN_NOT_FOUND", path, "there is no config.json, so this is no run folder",
                      "Give the folder that medgan train wrote")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        settings, interface, dataset = data["settings"], data["interface"], dict(data["dataset"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("CKPT_CORRUPT", file, f"it is not a run's description ({type(error).__name__})",
                      "Restore it, or train again") from None
    recorded, inside = Path(str(dataset.get("path", ""))), path / PHANTOM_FOLDER
    if recorded.name == PHANTOM_FOLDER and not recorded.exists() and inside.is_dir():
        dataset = dataset | {"path": str(inside.resolve())}  # the run folder was moved
    return Run(path, Config.checked(settings, where=str(file)), interface, dataset)


def create_run(path: Path, config: Config, interface: Mapping[str, Any], dataset: Mapping[str, Any]) -> Run:
    """Writes the description of a new run."""
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / CONFIG, {"medgan": __version__, "settings": config.model_dump(mode="json"),
                               "interface": dict(interface), "dataset": dict(dataset)})
    return Run(path, config, interface, dataset)


def save_weights(module: nn.Module, path: Path, about: Mapping[str, Any]) -> None:
    """Writes a module's tensors as safetensors, with what they are about as JSON in the header."""
    # One entry alone: safetensors writes several in any order, and the same weights must be the same bytes.
    _save(dict(module.state_dict()), path, {"medgan": json.dumps(dict(about), sort_keys=True)})


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads tensors that must match the module's names and shapes exactly and be finite.

    Raises:
        Refused: `CKPT_CORRUPT`, `CKPT_MISMATCH` or `CKPT_NONFINITE`.
    """
    tensors, _ = _load(path)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise Refused("CKPT_MISMATCH", path, f"its tensors are another model's (first difference: {odd})",
                      "Give weights and config.json of the same run")
    module.load_state_dict(tensors)


def save_state(state: State, run: Path) -> None:
    """Saves everything that resuming needs; the file before it stays until this one is whole."""
    tensors: dict[str, Tensor] = {f"task.{name}": t for name, t in state.task.state_dict().items()}
    tensors |= {f"average.{name}": t for name, t in state.average.state_dict().items()}
    for player, optimiser in state.optimisers.items():
        for index, values in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{player}.{index}.{key}": value for key, value in values.items()}
    numbers = {"step": state.step, "images": state.images, "total": state.total,
               "rate_scale": state.rate_scale, "rollbacks": state.rollbacks, "next_report": state.next_report,
               "health": state.health.numbers()}
    _save(tensors, run / STATE / "state.safetensors", {"numbers": json.dumps(numbers)})


def load_state(state: State, run: Path) -> bool:
    """Brings a fresh state to where `save_state` left it; False when nothing was saved.

    Raises:
        Refused: `CKPT_CORRUPT`, `CKPT_MISMATCH` or `CKPT_NONFINITE`.
    """
    path = run / STATE / "state.safetensors"
    if not path.is_file():
        return False
    tensors, metadata = _load(path)
    try:
        numbers = json.loads(metadata["numbers"])
        state.task.load_state_dict(_below(tensors, "task."))
        state.average.load_state_dict(_below(tensors, "average."))
        for player, optimiser in state.optimisers.items():
            full = optimiser.state_dict()
            saved: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below(tensors, f"optimiser.{player}.").items():
                index, _, key = name.partition(".")
                saved.setdefault(int(index), {})[key] = tensor
            optimiser.load_state_dict({**full, "state": saved})
        state.step, state.images, state.total = numbers["step"], numbers["images"], numbers["total"]
        state.rate_scale, state.rollbacks = numbers["rate_scale"], numbers["rollbacks"]
        state.next_report, state.health = numbers["next_report"], Health.of(numbers["health"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise Refused("CKPT_MISMATCH", path, f"the state is another model's ({type(error).__name__})",
                      "Start a new run") from None
    return True


def append_log(run: Path, entry: Mapping[str, Any]) -> None:
    """Adds one line to `log.jsonl`."""
    with (run / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def trim_log(run: Path, images: int) -> None:
    """Drops lines beyond `images`, written after the state that a resumed run starts from."""
    path = run / LOG
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["images"] <= images))


def tensors_of(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin with `prefix`, without it; none where there is no such file.

    Raises:
        Refused: `CKPT_CORRUPT` or `CKPT_NONFINITE`.
    """
    return _below(_load(path)[0], prefix) if path.is_file() else {}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    # Contiguous copies: safetensors refuses shared storage, and bytes must not depend on a view's layout.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata))


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        raise Refused("CKPT_UNSAFE", path, "only .safetensors can be loaded without running code",
                      "Convert the weights to safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise Refused("CKPT_CORRUPT", path, f"the file cannot be read ({error})",
                      "Restore it, or train again") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refused("CKPT_NONFINITE", path, f"{name} holds values that are not finite", "Train again")
    return tensors, metadata


def newest_run(root: Path, fingerprint: str, task: str, modality: str | None = None, *,
               finished: bool = True) -> Run | None:
    """The last run below `root` for this task (and modality) on the data set with this fingerprint.

    Args:
        root: Folder of run folders.
        fingerprint: Of the data set.
        task: Task of the run.
        modality: Modality of the run; None: any.
        finished: Whether finished runs are looked for, or only begun ones.
    """
    found = []
    for file in root.glob(f"*/{WEIGHTS if finished else CONFIG}"):
        try:
            run = open_run(file.parent)
        except Refused:
            continue
        if modality not in (None, run.config.modality) or run.finished != finished:
            continue
        if run.config.task == task and run.dataset.get("fingerprint") == fingerprint:
            found.append((file.stat().st_mtime, str(run.path), run))
    return max(found)[2] if found else None
