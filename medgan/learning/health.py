"""The health of a run: whether the game runs away, and whether what is made still differs.

Two things go wrong with adversarial training. It diverges: losses, gradients or the players' margin leave what the
run has known. Or it collapses: whatever the noise, the generator makes the same few images. `Health` watches the
numbers of each step for the first and probes fixed seeds at each report for the second. It judges, the loop acts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist
from torch import Tensor

from medgan.learning.task import Probe

#: Steps of which the median counts: one bad batch is no divergence, and the gradient limit holds it anyway.
WINDOW = 32
#: Windows after which a run has a past to be held against: the first few hundred steps of a game are wild.
PAST = 8
#: Windows remembered; beyond that neighbours are merged.
REMEMBERED = 64
#: A median this many times the largest of the run's older half has run away. Even single steps of whole lesion runs
#: on gliomas stayed below 5.
RUNAWAY = 10.0
#: What grew that much but is still below this is no concern: margins and gradient norms start near nothing.
FLOORS = {"margin": 30.0, "gradient": 100.0, "loss": 0.0}
#: A median beyond this has run away whatever came before: nothing that a network in [-1, 1] is asked for is so large.
ABSURD = {"margin": 1e4, "gradient": 1e6, "loss": 1e6}
#: Longest edge at which probes are compared: differences between images, not their noise.
PROBE_EDGE = 32
#: Images of a class below which its variety says nothing.
FEWEST = 4
#: Made images vary less than this share of what real ones of their class do: all are about the same image.
#: (Lesion runs of 24,000 images on gliomas ended at 0.44 to 1.17.)
LEAST_DIVERSITY = 0.2
#: Made images lie nearer to each other than this share of what real ones do: a few images, made again and again.
LEAST_APART = 0.05
#: From so many times both on, the generator has been varied once, and less is a loss.
VARIED = 1.5
#: Reports in a row that must find too little variety.
LOW_REPORTS = 2
#: Generators start at one grey image: variety is not missed before it was there once, or this share of the run is over.
EXPECTED_FROM = 0.5
#: Steps before which variety is never missed, however short the run.
EXPECTED_STEPS = 300
#: A discriminator whose margin is below this tells hardly anything apart: holding it back further would not help.
BLIND = 0.25
#: Remedies against collapse a run, ...
REMEDIES = 3
#: ... each of which multiplies the penalty by this, ...
STRONGER = 2.0
#: ... and raises the least probability of augmentation by this.
MORE_AUGMENTATION = 0.2


@dataclass(frozen=True)
class Finding:
    """Something that went wrong with a run, and what was done.

    Args:
        kind: `divergence`, `collapse` or `out of memory`.
        images: Images seen when it was found.
        why: The numbers that say so.
        remedy: What was done about it.
    """

    kind: Literal["divergence", "collapse", "out of memory"]
    images: int
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.images} images: {self.why}; {self.remedy}"


@dataclass(frozen=True)
class Variety:
    """How a probe's made images compare with its real ones, each figure that of the class where it is lowest.

    Args:
        diversity: Mean distance between made images of a class over that between real ones.
        apart: The same of the median distance to the nearest other image of the class.
        nearest_real: Median distance of made images to the nearest real one, over that between real ones. Far below
            1: the made images repeat real ones.
    """

    diversity: float
    apart: float
    nearest_real: float

    def below(self, times: float = 1.0) -> bool:
        """Whether it is less than can be expected of a generator that has not collapsed, or `times` that."""
        return self.diversity < times * LEAST_DIVERSITY or self.apart < times * LEAST_APART


def variety(probe: Probe) -> Variety | None:
    """Compares made with real images class by class, at equal numbers; None where every class is too small."""
    made, real = _flat(probe.made), _flat(probe.real)
    found = []
    for index in np.unique(probe.made_classes):
        ours, theirs = made[probe.made_classes == index], _once(real[probe.real_classes == index])
        count = min(len(ours), len(theirs))
        if count < FEWEST:
            continue
        # Nearest neighbours are nearer the more images there are: both sides get the same number.
        ours, few = ours[:count], theirs[:count]
        between_made, between_real = cdist(ours, ours), cdist(few, few)
        to_real = cdist(ours, few)
        found.append(Variety(_ratio(_mean(between_made), _mean(between_real)),
                             _ratio(_nearest(between_made), _nearest(between_real)),
                             _ratio(float(np.median(to_real.min(axis=1))), _nearest(between_real))))
    if not found:
        return None
    return Variety(*(min(getattr(one, name) for one in found) for name in ("diversity", "apart", "nearest_real")))


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every value is finite; one look at the device for all tensors together."""
    floats = [tensor.detach() for tensor in tensors if tensor.is_floating_point()]
    # A sum of absolute values is finite exactly when all of them are, unless it overflows, which is as bad.
    return not floats or math.isfinite(float(torch.stack(torch._foreach_norm(floats, 1)).sum()))


@dataclass
class Health:
    """What is known of a run's health; part of its state, so that a resumed run judges as a whole one.

    Args:
        findings: What went wrong so far.
        recent: Values of the window that is being filled, by name.
        past: Medians of the windows before, by name.
        varied: Whether the made images have been varied enough once.
        low: Reports in a row without enough variety.
        remedies: Remedies against collapse so far.
    """

    findings: list[Finding] = field(default_factory=list)
    recent: dict[str, list[float]] = field(default_factory=dict)
    past: dict[str, list[float]] = field(default_factory=dict)
    varied: bool = False
    low: int = 0
    remedies: int = 0

    def step(self, parts: Mapping[str, float]) -> str | None:
        """Takes the numbers of one step; says why if the game has diverged."""
        bad = sorted(name for name, value in parts.items() if not math.isfinite(value))
        if bad:
            # The loss first: a gradient is not finite because a loss was not, and not the other way round.
            name = next((name for name in bad if name.endswith("/loss")), bad[0])
            return f"{_words(name)} was not finite"
        for name, value in _watched(parts).items():
            window = self.recent.setdefault(name, [])
            window.append(abs(value))
            if len(window) >= WINDOW:
                now, past = median(window), self.past.setdefault(name, [])
                why = _runaway(name, now, past)
                if why is not None:
                    return why
                self.recent[name] = []
                past.append(now)
                if len(past) > REMEMBERED:
                    past[:] = [max(pair) for pair in zip(past[::2], past[1::2], strict=False)] + past[len(past) & ~1 :]
        return None

    def report(self, probe: Probe | None, progress: float, steps: int) -> tuple[dict[str, float], str | None]:
        """Looks at a probe.

        Args:
            probe: None where the task makes nothing new.
            progress: Share of the run that is over, 0 to 1.
            steps: Steps done.

        Returns:
            Figures for the log, and why if the generator has collapsed.
        """
        figures = {f"health/{name.replace('/', '_')}": self._typical(name) for name in self.recent}
        found = variety(probe) if probe is not None else None
        if found is None:
            return figures, None
        figures |= {f"health/{name}": value for name, value in asdict(found).items()}
        # What fresh weights make may be varied too: that is noise, and goes with the first few hundred steps.
        self.varied = self.varied or (steps >= EXPECTED_STEPS and not found.below(VARIED))
        if not found.below():
            self.low = 0
        elif steps >= EXPECTED_STEPS and (self.varied or progress >= EXPECTED_FROM):
            self.low += 1
        if self.low < LOW_REPORTS or self.remedies > REMEDIES:
            return figures, None
        return figures, (f"at {self.low} reports in a row the made images of a class hardly differed: "
                         f"{found.diversity:.0%} of what real ones differ by (at least {LEAST_DIVERSITY:.0%} is "
                         f"expected), and the nearest two {found.apart:.0%} (at least {LEAST_APART:.0%})")

    def blind(self) -> bool:
        """Whether the discriminator tells hardly anything apart; False where no margin is known."""
        margins = [self._typical(name) for name in self.recent if name.endswith("/margin")]
        return bool(margins) and min(margins) < BLIND

    def numbers(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Health:
        """What `numbers` gave."""
        return cls(**{**numbers, "findings": [Finding(**finding) for finding in numbers["findings"]]})

    def back_to(self, safe: Mapping[str, Any]) -> None:
        """Forgets what was seen since `safe` (as `numbers` gave it); findings and remedies are kept."""
        before = Health.of(safe)
        self.past, self.varied = before.past, before.varied
        self.recent, self.low = {}, 0

    def _typical(self, name: str) -> float:
        past = self.past.get(name, [])
        return median(self.recent[name]) if self.recent[name] or not past else past[-1]


def in_words(figures: Mapping[str, float]) -> str:
    """The figures of a report as a sentence for the progress line; empty where there are none."""
    said = []
    margins = [value for name, value in figures.items() if name.startswith("health/") and name.endswith("_margin")]
    if margins:
        said.append(f"discriminator ahead by {margins[0]:.2g}")
    if "health/diversity" in figures:
        said.append(f"made images vary {figures['health/diversity']:.0%} as much as real ones")
    return ", ".join(said)


def _watched(parts: Mapping[str, float]) -> dict[str, float]:
    """Margins and gradient norms; a loss only where it is the only one, since a game's losses mean little."""
    kinds = {name: name.rpartition("/")[2] for name in parts}
    alone = sum(kind == "loss" for kind in kinds.values()) == 1
    watched = {"gradient", "margin", *(["loss"] if alone else [])}
    return {name: parts[name] for name, kind in kinds.items() if kind in watched}


def _runaway(name: str, now: float, past: list[float]) -> str | None:
    kind = name.rpartition("/")[2]
    if now > ABSURD[kind]:
        return f"{_words(name)} ran away to {now:.3g}"
    if len(past) < PAST or now <= FLOORS[kind]:
        return None
    # The largest of the older half: a slow explosion does not become its own past.
    known = max(past[: len(past) // 2])
    if now <= RUNAWAY * known:
        return None
    return f"{_words(name)} ran away to {now:.3g}, {now / max(known, 1e-12):.0f} times what the run had known"


def _words(name: str) -> str:
    """`discriminator/gradient` as people say it."""
    player, _, what = name.rpartition("/")
    if what == "margin":
        return "the margin between real and made images"
    return f"the {player}'s " + {"gradient": "gradient norm"}.get(what, what)


def _flat(images: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, C, ...) -> (N, values), each image averaged down to at most `PROBE_EDGE` an edge."""
    factor = math.ceil(max(images.shape[2:]) / PROBE_EDGE)
    if factor > 1:
        size = (1, 1, *(min(factor, n) for n in images.shape[2:]))
        starts = tuple(slice(n // 2, None, n) for n in size)
        images = ndimage.uniform_filter(images, size=size)[starts]
    return images.reshape(len(images), -1).astype(np.float64)


def _once(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each of (N, values) once: few real lesions are met again and again, and would seem to lie at no distance."""
    return images[np.sort(np.unique(images, axis=0, return_index=True)[1])]


def _mean(distances: NDArray[np.float64]) -> float:
    """Mean over pairs of a symmetric table."""
    return float(distances.sum() / (len(distances) * (len(distances) - 1)))


def _nearest(distances: NDArray[np.float64]) -> float:
    """Median distance to the nearest other."""
    return float(np.median(np.where(np.eye(len(distances), dtype=bool), np.inf, distances).min(axis=1)))


def _ratio(made: float, real: float) -> float:
    """made / real; 1 where real images do not differ either."""
    return made / real if real > 0 else 1.0
