"""Every setting of medgan, in frozen models that refuse what they do not know.

Settings come from three places, each stronger than the one before: the preset of the modality
(`configs/<modality>.toml`), a file given with `--config`, and `--set a.b=c`. In a preset or file, a table named
after a task (`[lesion]`, `[image]`, `[upscale]`) holds what differs for that task. Nothing in a file is executed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medgan.errors import Refused
from medgan.resources import resource

Modality = Literal["ct", "mr", "xray", "us"]
TaskName = Literal["lesion", "image", "upscale"]
Objective = Literal["relativistic", "minimax", "non-saturating", "least-squares", "hinge", "wasserstein"]
Penalty = Literal["own", "none", "r1", "r1r2", "gradient-norm"]

#: No settings file is larger, and none nests deeper.
MOST_BYTES, DEEPEST = 2**20, 16
#: Dots in a line: tomllib's memory grows with the square of a dotted name's parts.
MOST_DOTS = 1_000
#: How much of a wrong setting an error shows.
_SHOWN = 80


class Section(BaseModel):
    """A table of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class Intensity(Section):
    """How raw values become network values in [-1, 1]."""

    knots: tuple[tuple[float, float], ...] | None = Field(
        None, description="(raw value, network value) pairs, both rising; linear between. None: percentiles.")
    percentiles: tuple[float, float] = Field(
        (0.1, 99.9), description="Foreground percentiles mapped to -1 and 1, per volume and channel.")


class Data(Section):
    """What is cut from the data set for training."""

    dims: Literal[2, 3] = Field(2, description="2: slices; 3: volumes.")
    crop: int = Field(64, ge=16, le=256, description="Edge of the training crops, in voxels of the working grid.")
    spacing_mm: float | None = Field(
        None, gt=0, description="Finest working spacing; None: the data's own. Large lesions are worked on coarser.")
    crops_per_case: int = Field(48, ge=1, description="Lesion crops kept of each case, and as many lesion-free ones.")
    organs: tuple[str, ...] = Field((), description="Mask labels that are organs: where lesions may lie, not lesions.")
    max_gib: float | None = Field(None, gt=0, description="Most memory reading one image may take; None: half of all.")
    irregular: Literal["refuse", "resample"] = Field(
        "refuse", description="What becomes of tilted and unevenly spaced DICOM series.")
    hash_ids: bool = Field(False, description="Case ids are hashed wherever medgan writes one; false: kept, and said.")


class Network(Section):
    """Sizes of generator and discriminator."""

    width: int = Field(16, ge=4, le=256, description="Channels at full resolution.")
    levels: int = Field(3, ge=2, le=6, description="Resolutions of the lesion networks.")
    noise_channels: int = Field(4, ge=1, description="Noise channels at each level of the lesion generator.")
    textures: int = Field(4, ge=0, le=64, description="Texture clusters that lesions are told apart by; 0: none.")
    latent: int = Field(64, ge=1, description="Size of the latent vector of the image generator.")
    label_maps: bool = Field(False, description="Whole images follow the masks, read as label maps of anatomy (SPADE).")


class Training(Section):
    """The game: objective, optimiser, length."""

    objective: Objective = Field("relativistic", description="The game; see medgan/learning/objectives.py.")
    penalty: Penalty = Field("own", description="On the discriminator's gradients; own: what the objective goes with.")
    start: str | None = Field(None, alias="from", description="A run on other data whose weights this one begins with.")
    images: int = Field(24_000, ge=1, description="Length of the run, in images seen by the discriminator.")
    minutes: float | None = Field(None, gt=0, description="Shortens or lengthens the run to about this wall time.")
    limit_minutes: float | None = Field(None, gt=0, description="Stops the run after this wall time, finished or not.")
    batch: int = Field(16, ge=1)
    rate: float = Field(2e-4, gt=0, description="Learning rate of Adam at the start.")
    rate_end: float = Field(5e-5, gt=0)
    beta1: float = Field(0.0, ge=0, lt=1)
    beta2: tuple[float, float] = (0.9, 0.99)
    gamma: float = Field(0.05, gt=0, description="Weight of R1 and R2 a 4096 voxels, at the start.")
    ada_target: float = Field(0.6, ge=-1, le=1, description="How sure the discriminator may be before the images that "
                                                            "it sees are augmented: mean sign of its margin.")
    ada_cap: float = Field(0.8, ge=0, lt=1, description="Largest probability of that augmentation; 0: none.")
    balance: float = Field(1.0, ge=0, le=1, description="1: classes are drawn evenly; 0: as often as they are.")
    ema_images: float = Field(5_000, gt=0, description="Half-life of the averaged generator, in images.")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    report_images: int = Field(4_000, ge=1, description="Images between reports, contact sheets and checkpoints.")


class Loss(Section):
    """Weights of the generator's losses besides the objective; a task uses those that mean something to it."""

    adversarial: float = Field(1.0, ge=0)
    reconstruction: float = Field(1.0, ge=0, description="L1 to the real image; decays to 0 inside lesions.")
    healthy: float = Field(10.0, ge=0, description="L1 of the fill of lesion-free voids.")
    rim: float = Field(20.0, ge=0, description="L1 in the blended rim around a lesion.")
    histogram: float = Field(1.0, ge=0, description="Distance of sorted values inside the mask.")
    features: float = Field(1.0, ge=0, description="Feature matching in the discriminator.")
    diversity: float = Field(0.5, ge=0, description="Reward for differing under differing noise, up to a bound.")
    healthy_share: float = Field(0.3, ge=0, lt=1, description="Share of lesion-free voids in a batch.")
    seen: float = Field(0.5, ge=0, description="A task network's reading of the made lesion; late in the run.")
    texture: float = Field(2.0, ge=0, description="Distance of the histogram from that of the texture asked for.")
    warmup: float = Field(0.0, ge=0, lt=1, description="First share of the run, in which no lesion is drawn.")


class Augment(Section):
    """How synthetic cases are composed."""

    lesions_per_case: tuple[int, int] | None = Field(
        None, description="Fewest and most new lesions a case; None: drawn from the real cases' counts.")
    max_lesions: int = Field(40, ge=1, description="Most new lesions a case when drawn from the data.")
    tries: int = Field(8, ge=1, description="Redraws before a lesion that a gate rejects is given up.")
    sigmas: float = Field(6.0, gt=0, description="How far from the real lesions' mean intensity a lesion may lie.")
    visibility: float = Field(0.25, description="Least contrast to its surroundings, over that of real lesions.")
    seen: float = Field(0.3, ge=0, le=1, description="Least probability a task network must give it; 0: no such gate.")
    removed: float = Field(0.5, ge=0, le=1, description="Share of cases whose own lesions are removed first.")
    cores: float = Field(0.6, ge=0, le=1, description="Share of lesions whose core is drawn anew.")
    density: float = Field(0.0, ge=0, le=1, description="How far places follow where real lesions lie; 0: not at all.")
    made_shapes: float = Field(0.0, ge=0, le=1, description="Share of lesions whose shape a shape model draws.")
    truncation: float = Field(1.0, gt=0, le=1, description="Pulls whole images towards their class's mean: less "
                                                           "varied below 1.")


class Evaluate(Section):
    """How `evaluate` and the reports in training judge images."""

    features: str = Field("radiomics", description="What images are compared by: radiomics, random, or an ONNX file.")
    most: int = Field(1_000, ge=20, description="Images of a kind looked at, at most.")
    resamples: int = Field(2_000, ge=100, description="Bootstrap resamples of intervals.")
    seeds: int = Field(5, ge=1, description="Classifiers in each arm of the question whether they help.")
    steps: int = Field(300, ge=2, description="Optimiser steps of each classifier.")
    size: int = Field(64, ge=16, le=256, description="Longest edge at which images are compared.")


class Config(Section):
    """All settings of one run; see `Config.resolve`."""

    modality: Modality = "ct"
    task: TaskName = "lesion"
    seed: int = Field(0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    intensity: Intensity = Intensity()
    data: Data = Data()
    network: Network = Network()
    training: Training = Training()
    loss: Loss = Loss()
    augment: Augment = Augment()
    evaluate: Evaluate = Evaluate()

    @classmethod
    def resolve(cls, modality: str, task: str = "lesion", *, file: str | Path | None = None,
                settings: Sequence[str] | Mapping[str, Any] = (), **top: Any) -> Config:
        """Builds the settings of a run: preset < file < settings < keyword arguments.

        Args:
            modality: `ct`, `mr`, `xray` or `us`: which preset.
            task: `lesion`, `image` or `upscale`: which of the preset's task tables.
            file: A TOML file of the same shape as a preset.
            settings: `["training.batch=8", ...]` or `{"training.batch": 8, ...}`.
            top: Top-level values such as `seed=1`; None means not given.

        Raises:
            Refused: `CFG_UNKNOWN`, `CFG_VALUE`, `CFG_UNSAFE` or `FILE_MISSING`.
        """
        for name, value, known in (("modality", modality, get_args(Modality)), ("task", task, get_args(TaskName))):
            if value not in known:
                raise Refused("CFG_VALUE", name, f"{value!r} is not one of {', '.join(known)}", "Name one of them")
        preset = _for_task(_load(resource("configs", f"{modality}.toml")), task)
        return cls._over(preset | {"modality": modality, "task": task}, file, settings, top)

    def over(self, *, file: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (),
             **top: Any) -> Config:
        """These settings with a file, single settings and top-level values laid over them, as in `resolve`."""
        return self._over(self.model_dump(mode="json"), file, settings, top)

    @classmethod
    def _over(cls, base: dict[str, Any], file: str | Path | None, settings: Sequence[str] | Mapping[str, Any],
              top: Mapping[str, Any]) -> Config:
        merged = base
        if file is not None:
            merged = _merge(merged, _for_task(_load(Path(file)), base["task"]))
        listed = [settings] if isinstance(settings, str) else settings
        items = listed.items() if isinstance(listed, Mapping) else [parse_setting(s) for s in listed]
        for key, value in items:
            merged = _merge(merged, _nest(key, value))
        merged |= {key: value for key, value in top.items() if value is not None}
        merged |= {"modality": base["modality"], "task": base["task"]}
        return cls.checked(merged, where=str(file) if file is not None else "settings")

    @classmethod
    def checked(cls, data: Mapping[str, Any], *, where: str) -> Config:
        """Validates plain data as settings; the first thing wrong is refused by name."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise Refused("CFG_UNKNOWN", where, f"there is no setting {name!r}",
                              f"Use one of {', '.join(known_settings(name))}") from None
            raise Refused("CFG_VALUE", where, f"{name} = {repr(first['input'])[:_SHOWN]}: {first['msg'].lower()}",
                          f"See the description of {name} in medgan/config.py") from None


def known_settings(near: str = "") -> list[str]:
    """The names of the settings beside `near` (`training.foo` -> those under `training`), or at the top."""
    head = near.rpartition(".")[0]
    model: type[BaseModel] = Config
    for part in head.split(".") if head else []:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    prefix = f"{head}." if head and model is not Config else ""
    return [f"{prefix}{field.alias or name}" for name, field in model.model_fields.items()]


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise Refused("FILE_MISSING", path, "there is no such settings file", "Give the path of a TOML file")
    if path.suffix.lower() in (".yaml", ".yml"):
        raise Refused("CFG_UNSAFE", path, "YAML can build objects and expand without bound, and is not read",
                      "Write the settings as TOML")
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise Refused("LIMIT", path, f"it is larger than {MOST_BYTES} bytes", "Check that these are settings")
    if any(line.count(b".") > MOST_DOTS for line in raw.splitlines()):
        raise Refused("CFG_VALUE", path, "no setting has so many parts", "Write name = value")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise Refused("CFG_VALUE", path, f"the file is not TOML ({error})", "Write the settings as TOML") from None
    _refuse_expressions(data, path)
    return data


def _refuse_expressions(value: Any, where: str | Path, depth: int = 0) -> None:
    """Settings that other tools would execute are named, not silently taken as text."""
    if depth > DEEPEST:
        raise Refused("CFG_VALUE", where, "the settings are nested deeper than any setting is", "Write name = value")
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "_target_" or key.startswith("$"):
                raise Refused("CFG_UNSAFE", where, f"{key[:40]} asks for code to be run",
                              "Remove it: settings are only values")
            _refuse_expressions(inner, where, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _refuse_expressions(inner, where, depth + 1)
    elif isinstance(value, str) and value.startswith("$"):
        raise Refused("CFG_UNSAFE", where, "a $ expression asks for code to be run", "Write the value itself")


def _for_task(data: dict[str, Any], task: str) -> dict[str, Any]:
    """Lays the task's own table over the common ones and drops the other tasks' tables."""
    common = {key: value for key, value in data.items() if key not in get_args(TaskName)}
    own = data.get(task, {})
    if not isinstance(own, dict):
        raise Refused("CFG_VALUE", task, f"{own!r} stands where a table of settings belongs",
                      f"Write the settings of the task below [{task}]")
    return _merge(common, own)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _nest(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {head: _nest(rest, value) if rest else value}


def parse_setting(text: str) -> tuple[str, Any]:
    """`training.batch=8` as (name, value), the value read as TOML or else taken as text."""
    key, equals, value = (part.strip() for part in text.partition("="))
    shown = f"--set {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}"
    if not equals or not key:
        raise Refused("CFG_VALUE", shown, "a setting is written name=value", "Write --set training.batch=8")
    if key.count(".") > DEEPEST or value.count(".") > MOST_DOTS:
        raise Refused("CFG_UNKNOWN", shown, "no setting has so many parts", "Write --set training.batch=8")
    try:
        read = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        read = value
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets without end
        raise Refused("CFG_VALUE", shown, "the value cannot be read", "Write --set training.batch=8") from None
    _refuse_expressions(read, shown)
    return key, read
