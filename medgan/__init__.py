"""medgan: train conditional GANs and super-resolution generators on your own DICOM and NIfTI data.

The public names are loaded on first use (PEP 562), so that `import medgan` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medgan.config import Config
    from medgan.imaging.files import read, write
    from medgan.imaging.volume import Volume
    from medgan.learning.checkpoints import open_run as load
    from medgan.verbs.augment import augment
    from medgan.verbs.evaluate import evaluate
    from medgan.verbs.fill import fill
    from medgan.verbs.inspect import inspect
    from medgan.verbs.online import OnlineLesions
    from medgan.verbs.synthesize import synthesize
    from medgan.verbs.train import train
    from medgan.verbs.upsample import upsample

#: Public name -> (module, its name there).
_PUBLIC = {
    "Volume": ("medgan.imaging.volume", "Volume"),
    "read": ("medgan.imaging.files", "read"),
    "write": ("medgan.imaging.files", "write"),
    "Config": ("medgan.config", "Config"),
    "load": ("medgan.learning.checkpoints", "open_run"),
    "train": ("medgan.verbs.train", "train"),
    "augment": ("medgan.verbs.augment", "augment"),
    "upsample": ("medgan.verbs.upsample", "upsample"),
    "fill": ("medgan.verbs.fill", "fill"),
    "synthesize": ("medgan.verbs.synthesize", "synthesize"),
    "evaluate": ("medgan.verbs.evaluate", "evaluate"),
    "inspect": ("medgan.verbs.inspect", "inspect"),
    "OnlineLesions": ("medgan.verbs.online", "OnlineLesions"),
}

__all__ = ["Config", "OnlineLesions", "Volume", "augment", "evaluate", "fill", "inspect", "load", "read",
           "synthesize", "train", "upsample", "write"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medgan' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
