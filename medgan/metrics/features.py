"""What images are compared by: radiomics, random convolutions, or a network of the user's own.

An encoder takes images in network values (N, C, X, Y[, Z]) to features (N, F). Distances are then taken in the space
that `standardised` makes of them. No encoder is downloaded and none has been trained here.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medgan.errors import Refused
from medgan.metrics.radiomics import Radiomics, checked

Array = NDArray[np.float64]

#: Most components of the standardised space, and images that each of them asks for.
COMPONENTS, IMAGES_A_COMPONENT = 32, 5
#: A feature that varies by less than this part of its size is constant but for rounding.
CONSTANT = 1e-9
#: Standard deviations of the reference beyond which a feature counts as no farther: those of radiomics have long tails,
#: and one image out of hundreds would else make distances of covariances and cubes of like sets.
FARTHEST = 5.0
#: Maps of each level of the random network, and the slope of its negative side.
WIDTHS, SLOPE = (16, 32, 64, 128), 0.2
#: Voxels that a network is given at once: a few dozen small images.
VOXELS_AT_ONCE = 1 << 17
#: Types of numbers that a model may want.
TYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


class Encoder(Protocol):
    """Turns images into features."""

    name: str

    def __call__(self, images: NDArray[np.float32]) -> Array:
        """Finite features (N, F) of images (N, C, X, Y[, Z]) in network values."""


class RandomConvolutions:
    """A convolutional network that nobody has trained: a second opinion on radiomics.

    Means and standard deviations of the maps of each of four levels, each of half the size of the one before; weights
    after He et al. (ICCV 2015), biases as small normal numbers. Random filters tell textures apart, and have been
    used to compare generated images (Naeem et al., ICML 2020). Channels are seen together. A seed has one network for
    each number of channels and of dimensions.

    Args:
        seed: Of the weights.
    """

    name = "random-convolutions"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, images: NDArray[np.float32]) -> Array:
        images = checked(images)
        layers = self._layers(images.shape[1], images.ndim - 2)
        return np.concatenate([self._encode(part, layers) for part in _parts(images)])

    def _layers(self, channels: int, dims: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        layers = []
        for inside, outside in pairwise((channels, *WIDTHS)):
            weight = torch.randn(outside, inside, *[3] * dims, generator=generator)
            bias = torch.randn(outside, generator=generator)
            layers.append((weight * (2 / ((1 + SLOPE**2) * inside * 3**dims)) ** 0.5, bias * 0.1))
        return layers

    def _encode(self, images: NDArray[np.float32], layers: list[tuple[torch.Tensor, torch.Tensor]]) -> Array:
        maps, found = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)), []
        dims = images.ndim - 2
        convolve, pool = (F.conv2d, F.avg_pool2d) if dims == 2 else (F.conv3d, F.avg_pool3d)
        with torch.no_grad():
            for level, (weight, bias) in enumerate(layers):
                if level:
                    # An axis that has become one voxel is not halved any more.
                    maps = pool(maps, [2 if size > 1 else 1 for size in maps.shape[2:]])
                # Zeros beyond the border would be an edge that no image has.
                maps = F.leaky_relu(convolve(F.pad(maps, [1] * 2 * dims, mode="replicate"), weight, bias), SLOPE)
                flat = maps.flatten(2).double()
                found += [flat.mean(dim=2), flat.std(dim=2, correction=0)]
        return np.asarray(torch.cat(found, dim=1).numpy())


class OnnxEncoder:
    """The user's own encoder: an ONNX file with one image input (N, C, X, Y[, Z]).

    With the Inception network of Heusel et al. (2017) the Fréchet distance is an FID, but of `standardised` features:
    it stands beside its floor, not beside the figures of others. Images are resized where the
    model's size is fixed; a single channel is repeated where it wants more, and several are taken one by one where it
    wants one. Values are given as they are, in [-1, 1]: a model that wants others needs a first layer that makes them.
    Of several outputs the first is taken; maps (N, F, x, y[, z]) are averaged over space, tokens (N, T, F) over tokens.

    Args:
        path: The file; the weights must be in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise Refused("FILE_MISSING", path, "no such file", "Give the path of an ONNX file")
        content = self.path.read_bytes()
        if not content:
            raise Refused("FILE_EMPTY", path, "the file has no bytes", "Export the model again")
        self.name = f"{self.path.stem}-{hashlib.sha256(content).hexdigest()[:12]}"
        self.session = _session(self.path, content)
        inputs = self.session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) not in (4, 5):
            found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs) or "none"
            raise self._refusal(f"its inputs are {found}", "Export a model with one input of images (N, C, X, Y[, Z])")
        self.input, self.type = inputs[0].name, TYPES[inputs[0].type]
        # What is not a whole number is free: a name, or nothing.
        self.shape = [size if isinstance(size, int) and size > 0 else None for size in inputs[0].shape]

    def __call__(self, images: NDArray[np.float32]) -> Array:
        images = checked(images)
        if images.ndim != len(self.shape):
            raise self._refusal(f"it takes {len(self.shape) - 2}D images, and these are {images.ndim - 2}D",
                                "Give a model of as many dimensions, or use radiomics")
        channels, wanted = images.shape[1], self.shape[1] or images.shape[1]
        if wanted == 1 < channels:
            return np.concatenate([self(images[:, [n]]) for n in range(channels)], axis=1)
        if channels not in (1, wanted):
            raise self._refusal(f"it takes {wanted} channels, and the images have {channels}",
                                "Give a model of one channel or of as many as the images have")
        size = [fixed or own for fixed, own in zip(self.shape[2:], images.shape[2:], strict=True)]
        parts = []
        for part in _parts(images, self.shape[0], int(np.prod(size))):
            repeated = np.repeat(part, wanted, axis=1) if channels != wanted else part
            parts.append(self._encode(_resized(repeated, size)))
        return np.concatenate(parts)

    def _encode(self, images: NDArray[np.float32]) -> Array:
        count = len(images)
        if self.shape[0] is not None:  # a model of a fixed batch: the last one is filled up
            images = np.concatenate([images, np.repeat(images[-1:], self.shape[0] - count, axis=0)])
        try:
            output = self.session.run(None, {self.input: images.astype(self.type)})[0]
        except Exception as error:  # onnxruntime's own exceptions have no common parent
            raise self._refusal(f"the model failed on images of shape {images.shape}: {_short(error)}",
                                "Give a model that takes images of this size, or one of a fixed size") from error
        features = np.asarray(output)
        if features.ndim > 5 or features.ndim < 2 or len(features) != len(images) or features.dtype.kind != "f":
            raise self._refusal(f"its output for {len(images)} images is {features.dtype} of shape {features.shape}",
                                "Export a model whose first output is features (N, F)")
        features = features.astype(np.float64)
        if features.ndim > 2:
            features = features.mean(axis=1 if features.ndim == 3 else tuple(range(2, features.ndim)))
        if not np.isfinite(features).all():
            raise Refused("PIX_NONFINITE", self.path, "the model's features are not finite", "Use another encoder")
        return features[:count]

    def _refusal(self, why: str, fix: str) -> Refused:
        return Refused("CFG_VALUE", self.path, why, fix)


FEATURES: dict[str, Callable[[], Encoder]] = {"radiomics": Radiomics, "random": RandomConvolutions}


def encoder(name: str) -> Encoder:
    """The encoder of a name.

    Args:
        name: A key of `FEATURES`, or the path of an .onnx file.

    Raises:
        Refused: No such name or file, onnxruntime is missing, or the model is no encoder of images.
    """
    if name in FEATURES:
        return FEATURES[name]()
    if Path(name).suffix.lower() == ".onnx":
        return OnnxEncoder(name)
    raise Refused("CFG_VALUE", "evaluate.features", f"{name!r} is neither {' nor '.join(FEATURES)} nor an ONNX file",
                  f"Give {' or '.join(FEATURES)}, or the path of an .onnx file")


def standardised(real: Array, *others: Array) -> tuple[Array, ...]:
    """Features in the space in which distances are taken: z-scored, cut at `FARTHEST`, on the axes of largest variance.

    The reference alone fixes scales and axes, so that what made images do cannot hide itself. Features that are
    constant in the reference are dropped: any deviation from them would be infinite.

    Args:
        real: The reference, (n, F), n at least 2.
        others: Any number of arrays (m, F).

    Returns:
        `real` and `others` with min(32, n // 5) columns, or fewer where the reference has not as many dimensions; a
        single column of zeros where all of its images are the same.
    """
    arrays = [np.asarray(array, np.float64) for array in (real, *others)]
    reference = arrays[0]
    if any(array.ndim != 2 or array.shape[1] != reference.shape[1] for array in arrays):
        raise Refused("DIM_UNSUPPORTED", "features", f"shapes {', '.join(str(array.shape) for array in arrays)}",
                      "Take all features from the same encoder")
    if len(reference) < 2:
        raise Refused("DATASET_EMPTY", "features", f"{len(reference)} real images", "Give two at least")
    middle, spread = reference.mean(axis=0), reference.std(axis=0)
    kept = spread > CONSTANT * np.maximum(np.abs(reference).max(axis=0), np.finfo(np.float64).tiny)
    if not kept.any():
        return tuple(np.zeros((len(array), 1)) for array in arrays)
    scaled = [np.clip((array[:, kept] - middle[kept]) / spread[kept], -FARTHEST, FARTHEST) for array in arrays]
    # Cutting moves the middle, which would else be an axis.
    centre = scaled[0].mean(axis=0)
    _, sizes, axes = np.linalg.svd(scaled[0] - centre, full_matrices=False)
    real_axes = int((sizes > CONSTANT * sizes[0]).sum())
    axes = axes[: max(1, min(COMPONENTS, len(reference) // IMAGES_A_COMPONENT, real_axes))]
    return tuple((array - centre) @ axes.T for array in scaled)


def _session(path: Path, content: bytes) -> Any:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise Refused("CFG_VALUE", path, "an ONNX file needs onnxruntime, which is not installed",
                      "pip install 'medgan[onnx]', or use radiomics") from error
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and told once
    # One thread: the same features each time, and no fight over cores with what else runs.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as empty:
        # A model may name other files that hold its weights. The hash in the name would not cover them, and they may
        # be any file: they are looked for where there is none.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        try:
            return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common parent
            if "external data" in str(error).lower():
                raise Refused("FILE_UNSAFE", path, "its weights lie in another file (ONNX external data)",
                              "Save it with its weights inside: onnx.save(onnx.load(FILE), NEW)") from error
            raise Refused("FILE_FORMAT", path, f"onnxruntime cannot load it: {_short(error)}",
                          "Export the model with standard operators, in an opset that onnxruntime knows") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _parts(images: NDArray[np.float32], count: int | None = None, voxels: int | None = None
           ) -> list[NDArray[np.float32]]:
    """Images a few at a time, or `count` at a time."""
    size = count or max(1, VOXELS_AT_ONCE // (voxels or int(np.prod(images.shape[2:]))))
    return [images[start : start + size] for start in range(0, len(images), size)]


def _resized(images: NDArray[np.float32], size: list[int]) -> NDArray[np.float32]:
    """Images (N, C, X, Y[, Z]) on another grid, without aliases where it is coarser."""
    if list(images.shape[2:]) == size:
        return images
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    if images.ndim == 4:
        resized = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False, antialias=True)
    else:
        # torch blurs in 2D only: 3D images are averaged where the grid is coarser, and interpolated where it is finer.
        x, y, z = (min(new, old) for new, old in zip(size, images.shape[2:], strict=True))
        smaller = F.adaptive_avg_pool3d(tensor, (x, y, z))
        resized = F.interpolate(smaller, size=size, mode="trilinear", align_corners=False)
    return np.asarray(resized.numpy())
