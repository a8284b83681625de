"""Run folders: settings and weights that load without running anything, and states that resume exactly.

A run folder holds `config.json` (settings, what the data looks like to the networks, which data set), `state/`
(networks, average, optimisers: what resume needs), `weights.safetensors` (the averaged generator), `log.jsonl`,
`samples/*.png` and `MODEL_CARD.md`. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
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
from medgan.datasets.tables import parse_json, read_json
from medgan.errors import Refused
from medgan.imaging.archives import PICKLES, is_pickle
from medgan.learning.health import Health
from medgan.learning.loop import State
from medgan.storage import append_line, atomic_path, write_json, write_text

CONFIG, WEIGHTS, STATE, LOG, SAMPLES = "config.json", "weights.safetensors", "state", "log.jsonl", "samples"
#: Where the phantoms of a run without a data set lie in its folder.
PHANTOM_FOLDER = "phantoms"
#: Bytes an element of each safetensors type that is loaded takes; others are no type of a network of medgan.
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
#: No header of a network of medgan is larger; a bomb is.
_MAX_HEADER = 16 * 2**20
#: No image has more channels.
_MAX_CHANNELS = 4096


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

    @property
    def gave_up(self) -> bool:
        """Whether training ran away, so that the weights are those of its last good report."""
        try:
            return self.finished and "gave_up" in parse_json(_load(self.path / WEIGHTS)[1].get("medgan", "{}"))
        except Refused:
            return False

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
        file = self.path / WEIGHTS
        tensors, _ = _load(file)
        try:
            generator = TASKS[self.config.task](self.config, self.interface).generator
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise Refused("CKPT_CORRUPT", self.path / CONFIG, "no network can be made of what it says "
                          f"({type(error).__name__})", "Restore it, or train again") from None
        _fill(generator, tensors, file)
        return generator.to(device).eval().requires_grad_(False)


def open_run(path: str | Path) -> Run:
    """Reads a run folder's description.

    Raises:
        Refused: `RUN_NOT_FOUND`, `CKPT_CORRUPT`, `CKPT_UNSAFE` or `CFG_*`.
    """
    path = Path(path)
    _refuse_pickles(path)
    file = path / CONFIG
    if not file.is_file():
        raise Refused("RUN_NOT_FOUND", path, "there is no config.json, so this is no run folder",
                      "Give the folder that medgan train wrote")
    try:
        data = read_json(file)
        settings, interface, dataset = data["settings"], data["interface"], dict(data["dataset"])
        _check_interface(interface)
        if not isinstance(settings, dict) or not all(isinstance(dataset.get(key, ""), str)
                                                     for key in ("name", "path", "fingerprint")):
            raise ValueError("settings or dataset")
    except Refused as refused:
        if refused.code == "CFG_UNSAFE":
            raise
        raise Refused("CKPT_CORRUPT", file, refused.why, "Restore it, or train again") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise Refused("CKPT_CORRUPT", file, f"it is not a run's description ({type(error).__name__})",
                      "Restore it, or train again") from None
    recorded, inside = Path(str(dataset.get("path", ""))), path / PHANTOM_FOLDER
    if recorded.name == PHANTOM_FOLDER and not recorded.exists() and inside.is_dir():
        dataset = dataset | {"path": str(inside.resolve())}  # the run folder was moved
    return Run(path, Config.checked(settings, where=str(file)), interface, dataset)


def _refuse_pickles(path: Path) -> None:
    """Refuses a pickle that is given as a run, or that lies where a run's weights belong."""
    folder = path if path.is_dir() else path.parent
    given = [path] if path.is_file() else []
    if path.is_dir() and not (path / WEIGHTS).is_file():
        given = [each for each in sorted(folder.iterdir()) if each.name.lower().endswith(PICKLES)]
    for each in given:
        if is_pickle(each, _start(each)):
            raise _unsafe(each)


def _check_interface(interface: Any) -> None:
    """What networks are built from: numbers that a file may name must not ask for any amount of memory."""
    if not isinstance(interface, dict):
        raise TypeError("interface")
    channels = interface.get("channels")
    if channels is not None and not (isinstance(channels, int) and 1 <= channels <= _MAX_CHANNELS):
        raise ValueError("channels")
    for key, kind in (("labels", dict), ("classes", list), ("maps", list), ("channel_names", list), ("textures", dict)):
        if key in interface and not isinstance(interface[key], kind):
            raise TypeError(key)
    for edge in interface.get("size", ()):
        if not (isinstance(edge, int) and 1 <= edge <= _MAX_CHANNELS):
            raise ValueError("size")
    latent = interface.get("latent", 0)
    if not (isinstance(latent, int) and 0 <= latent <= _MAX_CHANNELS):
        raise ValueError("latent")


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
    _fill(module, tensors, path)


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in module.state_dict().items()}
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    if wanted != found:
        odd = min(name for name, _ in set(wanted.items()) ^ set(found.items()))
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
               "health": state.health.numbers()} | ({"at_once": state.at_once} if state.at_once else {})
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
        numbers = parse_json(metadata["numbers"])
        counts = [numbers[key] for key in ("step", "images", "rollbacks", "rate_scale")]
        counts += [numbers[key] for key in ("total", "next_report") if numbers[key] is not None]
        counts += [numbers.get("at_once", 1) - 1]
        if not all(isinstance(count, (int, float)) and count >= 0 for count in counts):
            raise ValueError("a negative count")
        _fill(state.task, _below(tensors, "task."), path)
        _fill(state.average, _below(tensors, "average."), path)
        for player, optimiser in state.optimisers.items():
            full = optimiser.state_dict()
            parameters = [each for group in optimiser.param_groups for each in group["params"]]
            saved: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _below(tensors, f"optimiser.{player}.").items():
                index, _, key = name.partition(".")
                if tensor.ndim and tensor.shape != parameters[int(index)].shape:
                    raise ValueError(f"{name} has another shape than its parameter")
                saved.setdefault(int(index), {})[key] = tensor
            optimiser.load_state_dict({**full, "state": saved})
        state.step, state.images, state.total = numbers["step"], numbers["images"], numbers["total"]
        state.rate_scale, state.rollbacks = numbers["rate_scale"], numbers["rollbacks"]
        state.next_report, state.health = numbers["next_report"], Health.of(numbers["health"])
        state.at_once = numbers.get("at_once")
    except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise Refused("CKPT_MISMATCH", path, f"the state is another model's ({type(error).__name__})",
                      "Start a new run") from None
    return True


def append_log(run: Path, entry: Mapping[str, Any]) -> None:
    """Adds one line to `log.jsonl`."""
    append_line(run / LOG, json.dumps(entry))


def trim_log(run: Path, images: int) -> None:
    """Drops lines beyond `images`, written after the state that a resumed run starts from."""
    path = run / LOG
    if path.is_file():
        write_text(path, "".join(f"{json.dumps(entry)}\n" for entry in read_log(run) if entry["images"] <= images))


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of `log.jsonl`; what a killed process left half-written, and what is no line of a log, is left out."""
    path, entries = run / LOG, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and isinstance(entry.get("images"), (int, float)):
            entries.append(entry)
    return entries


def tensors_of(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin with `prefix`, without it; none where there is no such file.

    Raises:
        Refused: `CKPT_CORRUPT` or `CKPT_NONFINITE`.
    """
    return _below(_load(path)[0], prefix) if path.is_file() else {}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    _refuse_nonfinite(tensors, path)
    # Contiguous copies: safetensors refuses shared storage, and bytes must not depend on a view's layout.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata))


def check_weights(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a file, which is read and checked as weights are.

    Raises:
        Refused: `FILE_MISSING`, `CKPT_UNSAFE`, `CKPT_CORRUPT` or `CKPT_NONFINITE`.
    """
    return {name: tuple(tensor.shape) for name, tensor in _load(path)[0].items()}


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.suffix != ".safetensors" or is_pickle(path, _start(path)):
        raise _unsafe(path)
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused("CKPT_CORRUPT", path, f"the file cannot be read ({error})",
                      "Restore it, or train again") from None
    _refuse_nonfinite(tensors, path)
    return tensors, metadata


def _refuse_nonfinite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Neither loaded nor saved: what was saved before stays."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refused("CKPT_NONFINITE", path, f"{name} holds values that are not finite", "Train again")


def _check_header(path: Path) -> None:
    """Checks what a safetensors header claims against the file before anything is allocated for it.

    Tensors must lie one behind the other and fill the file: none shares bytes with another, and nothing hides between
    or behind them.

    Raises:
        ValueError: Or whatever a header that is none runs into.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = parse_json(file.read(length).decode("utf-8"))
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is no text")
    spans = []
    for name, told in header.items():
        begin, end = told["data_offsets"]
        if not all(isinstance(number, int) and number >= 0 for number in (begin, end, *told["shape"])):
            raise ValueError(f"{name}: a shape or place that is none")
        if math.prod(told["shape"]) * _ITEM_BYTES[told["dtype"]] != end - begin:
            raise ValueError(f"{name}: {end - begin:,} bytes for a shape of {told['shape']}")
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise ValueError("tensors that overlap, or bytes that belong to none")
        reached = end
    if reached != size - 8 - length:
        raise ValueError(f"{size - 8 - length - reached:,} bytes too many")


def _start(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(512)


def _unsafe(path: Path) -> Refused:
    return Refused("CKPT_UNSAFE", path, "only .safetensors can be loaded without running code",
                   "Convert the weights to safetensors")


def newest_run(root: Path, fingerprint: str, task: str, modality: str | None = None, *,
               finished: bool = True) -> Run | None:
    """The last run below `root` for this task (and modality) on the data set with this fingerprint.

    A run that was given up because it diverged has weights, but is no finished one: it must be named to be used.

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
        if run.config.task == task and run.dataset.get("fingerprint") == fingerprint and not (finished and run.gave_up):
            found.append((file.stat().st_mtime, str(run.path), run))
    return max(found)[2] if found else None
