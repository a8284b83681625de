"""The upscale task: what thick slices lost, drawn on top of the linear reconstruction.

The network works on the thick grid, in the planes that the thick axis spans with an in-plane axis (dims 2, with the
neighbouring planes as channels) or in space (dims 3). For each thick slice it gives the coefficients of cosines over
the slice's extent, a sub-pixel layer that can be read at any offset, so that one network serves every real factor.
It is told the factor, the anisotropy, the slice profile and the noise, starts as the linear reconstruction itself, and
ends with a step towards what agrees with the slices, as far as they can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.learning.image_networks import ImageDiscriminator
from medgan.learning.networks import SLOPE, convolution, spread
from medgan.learning.objectives import OBJECTIVES, penalty, penalty_of
from medgan.learning.task import Batch, Parts, Task
from medgan.learning.tasks.upscale_source import CONDITION, PLANES, UpscaleSource

#: Blocks of the generator in 2D (plain residual) and 3D (residual in residual dense).
BLOCKS = {2: 6, 3: 4}
#: Convolutions of a dense block, and how much of its width each of the inner ones adds.
DENSE, GROWTH = 4, 2
#: Cosines a slice: as many as fine voxels at the largest factor, so that nothing is out of reach.
COSINES = 8
#: Where the Charbonnier loss turns from square to absolute, in network values: about the usual error.
CHARBONNIER = 0.03
#: Patches on a contact sheet.
SHEET_ROWS = 6
#: Width of the embedding of the condition.
EMBEDDING = 32
#: Weight of the fidelity beside an adversarial weight of one.
FIDELITY = 100.0


def _edged(x: Tensor) -> Tensor:
    """Repeats the edge for a convolution without padding: zero is a grey value here, and volumes end in tissue.

    Outside autocast, which would go to fp32 and back for it (a third of the time).
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.pad(x, [1, 1] * (x.ndim - 2), mode="replicate")


class _Block(nn.Module):
    """A residual block whose features are scaled and shifted by the condition.

    There is no normalisation: statistics over a slab would make the result depend on how the volume was cut.
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.first = convolution(dims, width, width, padding=0)
        self.second = convolution(dims, width, width, zero=True, padding=0)
        self.film = nn.Linear(EMBEDDING, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """x (B, width, ...), embedded (B, EMBEDDING) -> (B, width, ...)."""
        scale, shift = self.film(embedded).chunk(2, dim=1)
        h = _edged(F.leaky_relu(x, SLOPE))
        if len(embedded) == 1:
            # One condition for all: scale and shift go into the convolution, a tenth of the time at work.
            weight = cast(Tensor, self.first.weight) * (1 + scale[0]).reshape(-1, *[1] * (x.ndim - 1))
            bias = cast(Tensor, self.first.bias) * (1 + scale[0]) + shift[0]
            h = (F.conv2d if x.ndim == 4 else F.conv3d)(h, weight, bias)
        else:
            h = self.first(h)
            h = torch.addcmul(spread(shift, h), h, 1 + spread(scale, h))
        return cast(Tensor, x + self.second(_edged(F.leaky_relu(h, SLOPE))))


class _DenseBlock(nn.Module):
    """A block in which each convolution sees all before it, scaled and shifted by the condition.

    Reference: Wang et al. 2018, "ESRGAN" (residual in residual dense blocks).
    """

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        step = width // GROWTH
        self.inner = nn.ModuleList(
            convolution(dims, width + i * step, step, padding=0) for i in range(DENSE - 1))
        self.last = convolution(dims, width + (DENSE - 1) * step, width, zero=True, padding=0)
        self.film = nn.Linear(EMBEDDING, 2 * width)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        """x (B, width, ...), embedded (B, EMBEDDING) -> (B, width, ...)."""
        scale, shift = self.film(embedded).chunk(2, dim=1)
        h = torch.addcmul(spread(shift, x), x, 1 + spread(scale, x))
        for layer in self.inner:
            h = torch.cat([h, layer(_edged(F.leaky_relu(h, SLOPE))).to(h.dtype)], dim=1)
        return cast(Tensor, x + self.last(_edged(F.leaky_relu(h, SLOPE))))


class UpscaleGenerator(nn.Module):
    """Gives what the linear reconstruction lacks, at any positions along the thick axis.

    Args:
        dims: 2: planes of the thick axis (first) and one in-plane axis; 3: the thick axis (first) and both others.
        width: Features.
    """

    def __init__(self, dims: int, *, width: int) -> None:
        super().__init__()
        self.dims = dims
        self.planes = PLANES if dims == 2 else 1
        #: How far it sees, in voxels of the thick grid: each convolution one further.
        self.reach = (2 * BLOCKS[2] if dims == 2 else DENSE * BLOCKS[3]) + 2
        self.embed = nn.Sequential(nn.Linear(CONDITION, EMBEDDING), nn.LeakyReLU(SLOPE),
                                   nn.Linear(EMBEDDING, EMBEDDING), nn.LeakyReLU(SLOPE))
        self.stem = convolution(dims, self.planes, width, padding=0)
        block = _Block if dims == 2 else _DenseBlock
        self.blocks = nn.ModuleList(block(dims, width) for _ in range(BLOCKS[dims]))
        self.head = convolution(dims, width, COSINES, zero=True, padding=0)
        self.trust = nn.Linear(EMBEDDING, 1)
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)

    def forward(self, thick: Tensor, told: Tensor, position: Tensor) -> Tensor:
        """Draws the residual.

        Args:
            thick: (B, planes, T, P[, Q]) network values of thick slices; the middle plane is the one meant.
            told: (B, CONDITION), see `condition`, or (1, CONDITION) for all.
            position: (N,) where along the thick axis, in slice spacings from the first slice's outer edge.

        Returns:
            (B, 1, N, P[, Q]) in network values, float32.
        """
        embedded = self.embed(told)
        layout = torch.channels_last if self.dims == 2 else torch.channels_last_3d
        h = self.stem(_edged(thick.contiguous(memory_format=layout)))
        for block in self.blocks:
            h = block(h, embedded)
        coefficients = self.head(_edged(F.leaky_relu(h, SLOPE))).float()
        index = position.floor().long().clamp(0, thick.shape[2] - 1)
        offset = (position - index).float()
        cosines = torch.cos(math.pi * torch.arange(COSINES, device=position.device)[:, None] * offset)
        shape = (1, COSINES, len(position), *[1] * (self.dims - 1))
        drawn = coefficients.index_select(2, index) * cosines.reshape(shape)
        return cast(Tensor, drawn.sum(dim=1, keepdim=True))

    def trusted(self, told: Tensor) -> Tensor:
        """How much of what the slices disagree with is to be put right: about 1 where they are clean; (B, 1)."""
        return cast(Tensor, self.trust(self.embed(told)).float())


class UpscaleTask(Task):
    """Restores thick slices; a discriminator joins in where `loss.adversarial` is above zero."""

    name: ClassVar[str] = "upscale"
    generator: UpscaleGenerator

    def __init__(self, config: Config, interface: Mapping[str, Any]) -> None:
        super().__init__()
        dims = config.data.dims
        self.generator = UpscaleGenerator(dims, width=config.network.width)
        self.adversarial = config.loss.adversarial
        self.objective = OBJECTIVES[config.training.objective]
        self.penalty = penalty_of(self.objective, config.training.penalty)
        self.gamma = config.training.gamma
        if self.adversarial > 0:
            # It sees the drawing beside the linear reconstruction, so that it judges detail and not anatomy.
            edge = config.data.crop
            self.discriminator = ImageDiscriminator(dims, 2, 1, size=(edge,) * dims, width=config.network.width)

    @staticmethod
    def source(dataset: Dataset, config: Config) -> UpscaleSource:
        """Patches of the training cases, thick slices simulated along their sharp axes.

        Raises:
            Refused: `DATASET_EMPTY`, or what is wrong with a file.
        """
        return UpscaleSource.of(dataset, config)

    @property
    def players(self) -> dict[str, nn.Module]:
        """The generator alone, or after a discriminator."""
        if self.adversarial > 0:
            return {"discriminator": self.discriminator, "generator": self.generator}
        return {"generator": self.generator}

    def draw(self, batch: Batch, generator: nn.Module | None = None) -> Tensor:
        """Sharp patches (B, 1, N', P[, Q]) in network values, without the rows that only give context."""
        network = cast(UpscaleGenerator, generator or self.generator)
        made = batch["base"] + network(batch["thick"], batch["condition"], batch["position"][0])
        middle = self.generator.planes // 2
        # The step towards agreement, x + g P (y - A x), outside autocast: it is a matter of thousandths.
        with torch.autocast(made.device.type, enabled=False):
            lines = made[:, 0].flatten(2)
            slices = batch["thick"][:, middle].flatten(2)
            lacking = slices - batch["matrix"] @ lines
            trust = network.trusted(batch["condition"])[:, :, None]
            made = (lines + trust * (batch["back"] @ lacking)).reshape(made.shape)
        return self.judged(made, batch)

    @staticmethod
    def judged(patch: Tensor, batch: Batch) -> Tensor:
        """The part of a patch (B, 1, N, P[, Q]) that is judged; the other rows only give context."""
        rows = batch["inside"][0].nonzero()
        return patch[:, :, int(rows[0]) : int(rows[-1]) + 1]

    def loss(self, player: str, batch: Batch) -> tuple[Tensor, Parts]:
        """Charbonnier distance to the truth; with a discriminator also the game of `training.objective`."""
        truth, base = self.judged(batch["truth"], batch), self.judged(batch["base"], batch)
        if player == "discriminator":
            with torch.no_grad():
                made = self.draw(batch)
            real_logits, made_logits = self._judge(truth, base), self._judge(made, base)
            game = self.objective.discriminator(real_logits, made_logits)
            paid, parts = penalty(self.penalty, lambda x: self._judge(x, base), truth, made,
                                  gamma=self.gamma * truth[0].numel() / 4096, scale=self.penalty_scale)
            return game + paid, {"game": game, **parts, "margin": (real_logits - made_logits).detach().mean()}
        made = self.draw(batch)
        fidelity = ((made - truth).square() + CHARBONNIER**2).sqrt().mean() - CHARBONNIER
        with torch.no_grad():
            better = (base - truth).square().mean() / (made - truth).square().mean()
        # The gain over the linear reconstruction, in dB: what the network is there for.
        parts = {"fidelity": fidelity, "gain": 10 * torch.log10(better)}
        if self.adversarial == 0:
            return fidelity, parts
        with torch.no_grad():
            real_logits = self._judge(truth, base)
        parts["adversarial"] = self.objective.generator(real_logits, self._judge(made, base))
        return FIDELITY * fidelity + self.adversarial * parts["adversarial"], parts

    def _judge(self, image: Tensor, base: Tensor) -> Tensor:
        classes = torch.zeros(len(image), dtype=torch.long, device=image.device)
        return cast(Tensor, self.discriminator(torch.cat([image, base], dim=1), classes)[0])

    def sheet(self, generator: nn.Module, source: Any) -> NDArray[np.uint8]:
        """Rows of one patch each: thick, linear, network, truth."""
        from medgan.reports.sheets import grey, sheet

        device = next(generator.parameters()).device
        rows = []
        for step in range(SHEET_ROWS):
            batch = {name: tensor[:1].to(device) for name, tensor in source.batch(step).items()}
            with torch.no_grad():
                made = self.draw(batch, generator)
            index = self.judged(batch["position"][:1, None], batch)[0, 0].floor().long()
            thick = batch["thick"][:, self.generator.planes // 2 : self.generator.planes // 2 + 1]
            images = (thick.index_select(2, index), self.judged(batch["base"], batch), made,
                      self.judged(batch["truth"], batch))
            rows.append(("thick | linear | network | truth" if step == 0 else "",
                         [grey(_plane(image).T[:, ::-1]) for image in images]))
        return sheet(rows, zoom=2)


def _plane(image: Tensor) -> NDArray[np.float32]:
    """The middle plane of a patch (1, 1, N, P[, Q])."""
    array = image[0, 0].float().cpu().numpy()
    return cast("NDArray[np.float32]", array if array.ndim == 2 else array[:, :, array.shape[2] // 2])
