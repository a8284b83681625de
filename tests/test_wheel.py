"""The wheel, installed outside the checkout, has everything it needs and does the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medgan import __version__
from medgan.resources import resources

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

#: Says where medgan and its files are found, in the words of the process that imports it.
WHERE = """
import json, medgan
from medgan.resources import resource, resources
kinds = ("configs", "pipelines", "data_cards")
print(json.dumps({"package": medgan.__file__,
                  "files": [str(resource(kind, name)) for kind in kinds for name in resources(kind)]}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
                   check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds medgan in the wheel alone, and everything else where it is now."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target",
                    str(target), str(wheel)], check=True, capture_output=True)
    # PYTHONPATH comes before the editable install, whose path file only ever adds to the end.
    return {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}


def test_the_wheel_holds_settings_pipelines_cards_weights_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for kind in ("configs", "pipelines", "data_cards"):
        held = {Path(name).name for name in names if name.startswith(f"medgan/{kind}/")}
        assert set(resources(kind)) <= held, kind  # type: ignore[arg-type]
    assert "medgan/py.typed" in names
    weights = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medgan/weights").rglob("*")
               if path.suffix in (".safetensors", ".json", ".md")}
    assert weights <= names


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"medgan", f"medgan-{__version__}.dist-info"}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "medgan").rglob("*.py")}
    shipped = {name for name in names if name.endswith(".py") and not name.startswith("medgan/pipelines/")}
    assert shipped == modules and not [name for name in names if "__pycache__" in name]
    assert wheel.name == f"medgan-{__version__}-py3-none-any.whl"


def test_the_metadata_names_licence_command_and_pins_nothing(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"medgan-{__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"Version: {__version__}\n" in metadata and "License-Expression: Apache-2.0\n" in metadata
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert needed and not [line for line in needed if "==" in line], "ranges are for users, pins for our tests"
    assert "medgan = medgan.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()


def test_outside_the_checkout_every_shipped_file_is_found(installed: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WHERE], env=installed, cwd=tmp_path, capture_output=True, text=True,
                          check=True)
    found = json.loads(done.stdout)
    here = installed["PYTHONPATH"]
    assert found["package"].startswith(here) and found["files"]
    assert [path for path in found["files"] if not path.startswith(here)] == []


def test_outside_the_checkout_it_trains_and_augments(installed: dict[str, str], tmp_path: Path,
                                                     tiny: dict[str, object]) -> None:
    def medgan(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "medgan.cli", *arguments], env=installed, cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    settings = [text for key, value in tiny.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    told = medgan("train", "--modality", "ct", *settings)
    run = tmp_path / "runs/ct-phantoms-lesion"
    assert "No data set was given: trained on built-in phantoms" in told
    there = {path.relative_to(run).parts[0] for path in run.rglob("*")}
    assert {"config.json", "weights.safetensors", "state", "log.jsonl", "samples", "MODEL_CARD.md"} <= there
    assert json.loads((run / "config.json").read_text())["settings"]["intensity"]["knots"], "the preset was found"
    assert len(list((run / "samples").glob("*.png"))) == 3
    medgan("augment", str(run / "phantoms"), "--out", "twice", *settings)
    assert len(list((tmp_path / "twice/imagesTr").glob("*.nii.gz"))) == 16
