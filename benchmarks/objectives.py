"""Which game keeps all modes: every objective on 25 Gaussians, and the default one against MONAI's losses on images.

    python benchmarks/objectives.py mixture --seeds 10
    python benchmarks/objectives.py images --data ../shared/data/pneumonia --minutes 5 --seeds 10

`mixture` plays every objective of `training.objective` with its own penalty, the same networks, rates and number of
steps, through the project's own loop (the game is in `tests/mixture_makers.py`, whose test it serves too). A mode
is kept when at least 10 of 2,500 samples lie within three standard deviations of it; one sample is what VEEGAN and
PacGAN ask for. A run has diverged when the loop took it back or most samples lie outside the grid.

`images` trains the same generator on the same images for the same wall time (networks built before the clock starts)
under each game, and judges as many made as held-out real images of each class. `relativistic` and the other
objectives play as the image task ships them. `monai-hinge`, `monai-least_squares` and `monai-bce` are
`monai.losses.PatchAdversarialLoss` with `monai.networks.nets.PatchDiscriminator` (32 channels, class as planes, as
pix2pix does) and the rates that such discriminators are usually given: Adam at 2e-4, beta1 .5, beta2 .999, constant.
Both sides' generators are averaged as the loop does it. A run has diverged when a loss was not finite, or when what it
draws in the end covers less than a twentieth of the real images.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.errors import Refused
from medgan.learning import loop
from medgan.learning.image_networks import ImageGenerator
from medgan.learning.objectives import OBJECTIVES
from medgan.learning.task import Batch, Parts, Task
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.image_source import ImageSource, sample

#: The usual settings of patch discriminators (Isola et al. 2017; Wang et al. 2018).
USUAL = {"training.rate": 2e-4, "training.rate_end": 2e-4, "training.beta1": 0.5, "training.beta2": [0.999, 0.999]}
#: Width of MONAI's discriminator, and its inner layers: three, the default, would leave one patch of 28 x 28.
PATCH_CHANNELS, PATCH_LAYERS = 32, 2
MONAI = ("hinge", "least_squares", "bce")
GAMES = (*OBJECTIVES, *(f"monai-{name}" for name in MONAI))
#: Coverage below which a run shows nothing of the data.
NOTHING = 0.05


def main() -> None:
    """Prints a table as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    mixture = parts.add_parser("mixture")
    mixture.add_argument("--seeds", type=int, default=10)
    mixture.add_argument("--steps", type=int, default=3_500)
    mixture.add_argument("--objectives", nargs="+", choices=tuple(OBJECTIVES), default=tuple(OBJECTIVES))
    mixture.add_argument("--penalty", default="own", help="own, or one for all")
    images = parts.add_parser("images")
    images.add_argument("--data", type=Path, required=True, help="2D images with classes and a held-out split")
    images.add_argument("--modality", default="xray")
    images.add_argument("--minutes", type=float, default=5.0, help="wall time of each run")
    images.add_argument("--seeds", type=int, default=10)
    images.add_argument("--games", nargs="+", choices=GAMES,
                        default=("relativistic", *(name for name in GAMES if name.startswith("monai"))))
    images.add_argument("--features", default="radiomics", help="as evaluate.features")
    images.add_argument("--set", action="append", default=[], help="a setting of the runs, for all games")
    for part in (mixture, images):
        part.add_argument("--out", type=Path, help="a JSON file of all runs")
    arguments = parser.parse_args()
    torch.set_num_threads(max(1, torch.get_num_threads()))
    (play_mixture if arguments.part == "mixture" else play_images)(arguments)


def play_mixture(arguments: argparse.Namespace) -> None:
    """A row for each objective, over all seeds."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from mixture_makers import play

    seeds = tuple(range(arguments.seeds))
    print(f"25 Gaussians, {len(seeds)} seeds, {arguments.steps} steps, penalty {arguments.penalty}\n")
    print("| objective | modes kept, mean (least) | runs with all 25 | modes with a sample | good samples | diverged |")
    print("|---|---|---|---|---|---|")
    kept = {}
    for name in arguments.objectives:
        runs = play(name, seeds, arguments.steps, penalty=arguments.penalty)
        kept[name] = [asdict(run) for run in runs]
        modes = [run.modes for run in runs]
        print(f"| {name} | {np.mean(modes):.1f} ({min(modes)}) | {sum(m == 25 for m in modes)} of {len(runs)} | "
              f"{np.mean([run.touched for run in runs]):.1f} | {np.mean([run.quality for run in runs]):.0%} | "
              f"{sum(run.diverged for run in runs)} |", flush=True)
        _write(arguments.out, {"steps": arguments.steps, "penalty": arguments.penalty, "runs": kept})


class PatchTask(Task):
    """The image task's generator against MONAI's patch discriminator, under MONAI's adversarial loss."""

    name: ClassVar[str] = "patch"
    generator: ImageGenerator

    def __init__(self, config: Config, interface: Mapping[str, Any], criterion: str) -> None:
        super().__init__()
        from monai.losses import PatchAdversarialLoss
        from monai.networks.nets import PatchDiscriminator

        net, dims, size = config.network, config.data.dims, tuple(interface["size"])
        channels, self.classes = int(interface["channels"]), len(interface["classes"])
        self.generator = ImageGenerator(dims, channels, self.classes, size=size, width=net.width, latent=net.latent)
        self.discriminator = PatchDiscriminator(
            spatial_dims=dims, channels=PATCH_CHANNELS, in_channels=channels + self.classes, num_layers_d=PATCH_LAYERS)
        self.to(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
        self.adversarial = PatchAdversarialLoss(criterion=criterion)

    @property
    def players(self) -> dict[str, nn.Module]:
        return {"discriminator": self.discriminator, "generator": self.generator}

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        real, classes = batch["image"], batch["class"]
        latent = torch.randn(len(real), self.generator.latent, device=real.device)
        if player == "discriminator":
            with torch.no_grad():
                made = self.generator(latent, classes)
            game = 0.5 * (self.adversarial(self._judge(real, classes), True, True)
                          + self.adversarial(self._judge(made, classes), False, True))
            return game, {"game": game}
        game = self.adversarial(self._judge(self.generator(latent, classes), classes), True, False)
        return game, {"adversarial": game}

    def _judge(self, image: Tensor, classes: Tensor) -> Tensor:
        """Logits of patches; a class is a plane of ones."""
        planes = nn.functional.one_hot(classes, self.classes).to(image.dtype)
        planes = planes.reshape(*planes.shape, *[1] * (image.ndim - 2)).expand(-1, -1, *image.shape[2:])
        logits: Tensor = self.discriminator(torch.cat([image, planes], dim=1))[-1].float()
        return logits

    @staticmethod
    def source(dataset: Any, config: Config) -> ImageSource:
        return ImageSource(dataset, config)

    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        raise NotImplementedError


@dataclass(frozen=True)
class Judged:
    """One run; the distances are means over the classes."""

    game: str
    seed: int
    images: int
    seconds: float
    coverage: float
    recall: float
    frechet: float
    diverged: bool


def play_images(arguments: argparse.Namespace) -> None:
    """A line for each run, then a row for each game; games take turns, so that a busy machine hits them alike."""
    from medgan.metrics.features import encoder

    dataset = open_dataset(arguments.data)
    held = dataset.split("test") or dataset.split("val")
    encode = encoder(arguments.features)
    runs: list[Judged] = []
    base = Config.resolve(arguments.modality, "image", settings=arguments.set)
    source = ImageSource(dataset, base)
    real = ImageSource(dataset.only(tuple(replace(case, split="train") for case in held)), base)
    each = [real.of_class(c) for c in range(len(source.interface["classes"]))]
    floor = measured([(held_out, _some(source.of_class(c), len(held_out))) for c, held_out in enumerate(each)], encode)
    print(f"as many real training images: coverage {floor[0]:.2f}, recall {floor[1]:.2f}, Fréchet {floor[2]:.2f} "
          f"({encode.name}, n {[len(held_out) for held_out in each]})")
    for seed in range(arguments.seeds):
        for game in arguments.games:
            config = base.over(seed=seed, settings={
                "training.minutes": arguments.minutes, "training.limit_minutes": arguments.minutes}
                | (USUAL if game.startswith("monai") else {"training.objective": game}))
            source.config = config
            runs.append(run_of(game, config, source, real, encode))
            print("  ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                            for name, value in asdict(runs[-1]).items()), flush=True)
            _write(arguments.out, {"minutes": arguments.minutes, "floor": floor, "runs": [asdict(run) for run in runs]})
    print("\n| game | images seen | coverage | recall | Fréchet distance | diverged |\n|---|---|---|---|---|---|")
    for game in arguments.games:
        own = [run for run in runs if run.game == game]
        cells = [f"{np.mean([getattr(run, name) for run in own]):.2f} "
                 f"(worst {worst(getattr(run, name) for run in own):.2f})"
                 for name, worst in (("coverage", min), ("recall", min), ("frechet", max))]
        print(f"| {game} | {np.mean([run.images for run in own]):,.0f} | {' | '.join(cells)} | "
              f"{sum(run.diverged for run in own)} of {len(own)} |")


def run_of(game: str, config: Config, source: ImageSource, real: ImageSource, encode: Any) -> Judged:
    """Trains for the config's minutes and judges the averaged generator."""
    torch.manual_seed(config.seed)
    task = (PatchTask(config, source.interface, game.removeprefix("monai-")) if game.startswith("monai-")
            else ImageTask(config, source.interface))
    state = loop.State.fresh(task, config.training)
    began, gone = time.perf_counter(), False
    try:
        for _ in loop.train(state, source, config):
            pass
    except Refused as refused:
        if refused.code != "TRAINING_DIVERGED":
            raise
        gone = True
    seconds = time.perf_counter() - began
    pairs = [(real.of_class(c), sample(state.average, c, len(real.of_class(c)), config.seed))
             for c in range(len(source.interface["classes"]))]
    finite = all(np.isfinite(made).all() for _, made in pairs)
    coverage, recall, distance = measured(pairs, encode) if finite else (0.0, 0.0, float("inf"))
    return Judged(game, config.seed, state.images, seconds, coverage, recall, distance,
                  gone or state.rollbacks > 0 or coverage < NOTHING)


def measured(pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], encode: Any
             ) -> tuple[float, float, float]:
    """Coverage, recall and Fréchet distance of (real, made) images of each class, averaged over the classes."""
    from medgan.metrics.diversity import neighbours
    from medgan.metrics.features import standardised
    from medgan.metrics.fidelity import frechet

    rows = []
    for real, made in pairs:
        one, other = standardised(encode(real), encode(made))
        reach = neighbours(one, other)
        rows.append((reach.coverage, reach.recall, frechet(one, other)))
    coverage, recall, distance = np.mean(rows, axis=0)
    return float(coverage), float(recall), float(distance)


def _some(images: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return images[np.random.default_rng(0).permutation(len(images))[:count]]


def _write(path: Path | None, content: object) -> None:
    if path is not None:
        path.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
