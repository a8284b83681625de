"""Finished runs of whole images, for the tests of what is made with them."""

from __future__ import annotations

from pathlib import Path

import torch

from medgan.config import Config
from medgan.datasets.layouts import open_dataset
from medgan.learning.checkpoints import WEIGHTS, create_run, save_weights
from medgan.learning.image_networks import ImageGenerator
from medgan.learning.tasks.image_source import ImageSource


def image_run(root: Path, path: Path, modality: str, **settings: object) -> Path:
    """A finished run that has learned nothing: what is tested here is what becomes of its images."""
    dataset = open_dataset(root)
    dims = dataset.load(dataset.cases[0])[0].dims
    named = {name.replace("__", "."): value for name, value in settings.items()}
    config = Config.resolve(modality, "image", settings={"data.dims": dims, "data.crop": 16, "network.width": 4,
                                                         "network.latent": 8} | named)
    interface = ImageSource(dataset, config).interface
    about = {"name": dataset.name, "path": str(root.resolve()), "fingerprint": dataset.fingerprint()}
    create_run(path, config, interface, about)
    torch.manual_seed(0)
    generator = ImageGenerator(config.data.dims, interface["channels"], len(interface["classes"]),
                               size=interface["size"], width=4, latent=8)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_weights(generator, path / WEIGHTS, {"task": "image"})
    return path
