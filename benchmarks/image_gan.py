"""Steps a second of the image task in medgan's loop over those of a hand-written PyTorch loop with the same networks.

    python benchmarks/image_gan.py [--size 28 28] [--width 16] [--rounds 12] [--steps 20]

Both play the relativistic game with R1 and R2 on images in memory, in the same precision and memory layout, with Adam
and an averaged generator. The first rival does in bare PyTorch what the task does and nothing else (no log, no health,
no prefetching, no schedule); the second is written as the R3GAN paper describes the step: new images for each player
and penalties on whole batches. Turns of a few steps are interleaved and CPU time is taken, so that what else runs on
the machine weighs on all alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medgan.config import Config
from medgan.learning.loop import State, pick_device, pick_precision, train
from medgan.learning.task import Batch
from medgan.learning.tasks.image import PENALISED, ImageTask

#: What the project promises: medgan's loop over the first rival.
LEAST = 0.95


class Noise:
    """Images in memory; what is on them does not matter to the clock."""

    def __init__(self, size: tuple[int, ...], config: Config) -> None:
        self.images = torch.randn(512, 1, *size)
        self.labels = torch.arange(512) % 2
        self.batch_size, self.seed = config.training.batch, config.seed
        self.interface = {"channels": 1, "classes": ["a", "b"], "size": list(size)}

    def batch(self, step: int) -> Batch:
        rows = torch.from_numpy(np.random.default_rng([self.seed, step]).integers(512, size=self.batch_size))
        return {"image": self.images[rows], "class": self.labels[rows]}


def ours(config: Config, source: Noise) -> Iterator[None]:
    """medgan's loop, one step at a time."""
    task = ImageTask(config, source.interface)
    for _ in train(State.fresh(task, config.training), source, config):
        yield


def bare(config: Config, source: Noise, *, thrifty: bool) -> Iterator[None]:
    """The same game by hand. `thrifty`: one set of made images for both players, penalties on few, in low precision."""
    task = ImageTask(config, source.interface)
    generator, critic, settings = task.generator, task.discriminator, config.training
    average = copy.deepcopy(generator)
    device = pick_device(config.device)
    low = pick_precision(settings.precision, device) is torch.bfloat16
    first, second = (torch.optim.Adam(net.parameters(), lr=settings.rate, betas=(settings.beta1, settings.beta2[0]))
                     for net in (critic, generator))
    gamma, few = task.gamma_start, slice(None, None, PENALISED if thrifty else 1)

    def slope(images: Tensor, classes: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=low and thrifty):
            images = images.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(critic(images, classes)[0].sum(), images, create_graph=True)
        return gradient.square().flatten(1).sum(1).mean()

    def switch(on: nn.Module, off: nn.Module) -> None:
        on.requires_grad_(True)
        off.requires_grad_(False)

    step = 0
    while True:
        batch = source.batch(step)
        real, classes = batch["image"].to(device), batch["class"].to(device)
        if thrifty:
            generator.requires_grad_(True)
            with torch.autocast(device.type, torch.bfloat16, enabled=low):
                made = generator(torch.randn(len(real), generator.latent, device=device), classes)
        switch(critic, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            if not thrifty:
                with torch.no_grad():
                    made = generator(torch.randn(len(real), generator.latent, device=device), classes)
            logits = critic(torch.cat([real, made.detach()]), torch.cat([classes, classes]))[0]
        real_logits, made_logits = logits.chunk(2)
        penalties = slope(real[few], classes[few]) + slope(made[few], classes[few])
        first.zero_grad(set_to_none=True)
        (F.softplus(made_logits - real_logits).mean() + 0.5 * gamma * penalties).backward()  # type: ignore[no-untyped-call]
        first.step()
        switch(generator, critic)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            if not thrifty:
                made = generator(torch.randn(len(real), generator.latent, device=device), classes)
            with torch.no_grad():
                real_logits = critic(real, classes)[0]
            game = F.softplus(real_logits - critic(made, classes)[0]).mean()
        second.zero_grad(set_to_none=True)
        game.backward()  # type: ignore[no-untyped-call]
        second.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), generator.parameters(), strict=True):
                mean.lerp_(now, 1e-3)
        step += 1
        yield


def seconds(player: Iterator[None], steps: int) -> float:
    """CPU seconds of so many steps."""
    before = time.process_time()
    for _ in range(steps):
        next(player)
    return time.process_time() - before


def main() -> None:
    """Prints steps a second of each and the ratios; ends with 1 where the promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs="+", default=[28, 28])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="of each turn")
    arguments = parser.parse_args()
    config = Config.resolve("xray", "image", settings={
        "network.width": arguments.width, "data.dims": len(arguments.size), "training.ada_cap": 0,
        "training.images": 10**9, "training.report_images": 10**9})
    source = Noise(tuple(arguments.size), config)
    makers: dict[str, Callable[[], Iterator[None]]] = {
        "medgan": lambda: ours(config, source),
        "bare loop, same steps": lambda: bare(config, source, thrifty=True),
        "bare loop, as published": lambda: bare(config, source, thrifty=False)}
    players = {name: make() for name, make in makers.items()}
    taken: dict[str, list[float]] = {name: [] for name in players}
    for player in players.values():
        seconds(player, 5)
    for turn in range(arguments.rounds):
        order = list(players)
        # Who comes first changes.
        for name in order[turn % len(order):] + order[: turn % len(order)]:
            taken[name].append(seconds(players[name], arguments.steps))
    size = " x ".join(map(str, arguments.size))
    print(f"{size}, width {arguments.width}, batch {config.training.batch}, {torch.get_num_threads()} threads, "
          f"{arguments.rounds} turns of {arguments.steps} steps\n")
    print("| loop | steps a CPU second, median | images a CPU second | medgan over it, median (quartiles) |")
    print("|---|---|---|---|")
    ratio = 0.0
    for name, times in taken.items():
        rates = [arguments.steps / t for t in times]
        over = [other / mine for other, mine in zip(times, taken["medgan"], strict=True)]
        low, middle, high = statistics.quantiles(over, n=4)
        ratio = middle if name == "bare loop, same steps" else ratio
        print(f"| {name} | {statistics.median(rates):.2f} | {statistics.median(rates) * config.training.batch:.0f} | "
              f"{middle:.3f} ({low:.3f} to {high:.3f}) |")
    if ratio < LEAST:
        raise SystemExit(f"medgan's loop is slower than promised: {ratio:.3f} of the bare loop, not {LEAST}")


if __name__ == "__main__":
    main()
