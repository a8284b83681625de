"""Fixtures that many tests share: small phantom data sets, made once a session."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

# One thread: results are the same bytes everywhere, and parallel workers do not fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts background commands with Ctrl-C ignored, and medgan leaves that so; the tests of
# Ctrl-C, and the programs they start, need it.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _short_task_network() -> None:
    """The gates' network learns next to nothing and knows it, which opens its gate; its own tests let it learn."""
    from dataclasses import replace

    from medgan.lesions.seer import Seer

    whole = Seer.train

    def train(dataset: Any, config: Any, seed: int = 0, *, steps: int | None = None) -> Seer:
        if steps is not None:
            return whole(dataset, config, seed, steps=steps)
        short = whole(dataset, config, seed, steps=2)
        return Seer(short.network, replace(short.learned, auroc=0.0))

    Seer.train = staticmethod(train)  # type: ignore[method-assign]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images; tests that need them are skipped where they are not."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED / "data"


@pytest.fixture(scope="session")
def mr_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small MR phantoms with lesions, nnU-Net layout."""
    from medgan.datasets.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("sets") / "mr", "mr", count=3, seed=5, shape=(56, 64, 28))


@pytest.fixture(scope="session")
def xray_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small radiographs in class folders."""
    from medgan.datasets.phantoms import write_class_phantoms

    return write_class_phantoms(tmp_path_factory.mktemp("sets") / "xray", count=8, seed=5, shape=(32, 32))


#: Settings that make a run take seconds.
TINY = {"training.images": 32, "training.batch": 8, "training.report_images": 16, "data.crop": 32,
        "network.width": 8, "data.crops_per_case": 8, "training.precision": "fp32",
        # So short a run draws nothing that could be seen; the gates have tests of their own.
        "augment.seen": 0, "augment.visibility": -1e9, "augment.sigmas": 1e9}


@pytest.fixture(scope="session")
def tiny() -> dict[str, object]:
    """Settings that make a run take seconds."""
    return dict(TINY)


@pytest.fixture(scope="session")
def lesion_run(mr_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, tiny lesion run on `mr_set`."""
    import medgan

    return medgan.train(mr_set, modality="mr", out=tmp_path_factory.mktemp("runs") / "lesion", settings=TINY).path


@pytest.fixture(scope="session")
def image_run(xray_classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished, tiny image run on `xray_classes`."""
    import medgan

    return medgan.train(xray_classes, modality="xray", out=tmp_path_factory.mktemp("runs") / "image",
                        settings=TINY | {"data.crop": 32}).path
