"""Every command and every line of Python in the README runs, in the order in which it stands there.

The README stays as a reader needs it. This test lays small data where it names some (`dataset/`, `scan.nii.gz`), and
gives every call that trains settings which make a run take seconds; nothing else is changed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import medgan

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Paragraphs above a block of code, where CONTRIBUTING.md names the file that the block is.
WRITTEN = "\n".join(re.findall(r"^(`.*(?:\n.+)*)\n\n```(?:python|toml)\n",
                               (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE))
BLOCKS = [(kind, body) for kind, body in FENCE.findall(README)]
#: The verbs that may train, and so get the quick settings.
TRAINS = ("train", "augment")
#: Options that would make a run longer than a test may take -> what stands in for their value.
SHORTER = {"--minutes": "0.05"}


def commands() -> list[str]:
    return [line.split("  #")[0].strip() for kind, body in BLOCKS if kind == "sh" for line in body.splitlines()
            if line.strip()]


def quick(command: str, tiny: dict[str, object]) -> list[str]:
    """A README command with the quick settings put in."""
    words = shlex.split(command)[1:]
    words = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    if words[0] in TRAINS:
        words += [text for key, value in tiny.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    return words


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, mr_set: Path) -> Path:
    """A folder with what the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(mr_set, folder / "dataset")
    shutil.copyfile(min((mr_set / "imagesTr").glob("*.nii.gz")), folder / "scan.nii.gz")
    shutil.copyfile(min((mr_set / "labelsTr").glob("*.nii.gz")), folder / "mask.nii.gz")
    return folder


def test_commands_are_either_ours_or_make() -> None:
    assert len(commands()) >= 5
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands():
        program, first = command.split()[:2]
        assert program == "medgan" or (program == "make" and first in targets), command


@pytest.mark.slow
def test_every_command_runs(desk: Path, tiny: dict[str, object]) -> None:
    for command in commands():
        if command.startswith("medgan "):
            done = subprocess.run([sys.executable, "-m", "medgan.cli", *quick(command, tiny)], cwd=desk, text=True,
                                  capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_every_piece_of_python_runs(desk: Path, tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for name in TRAINS:
        monkeypatch.setattr(medgan, name, functools.partial(getattr(medgan, name), settings=tiny), raising=False)
    pieces = [body for kind, body in BLOCKS if kind == "python"]
    assert len(pieces) >= 2
    for piece in pieces:
        exec(compile(piece, "README.md", "exec"), {})


def test_every_verb_that_is_named_is_there_and_what_is_missing_is_said() -> None:
    from medgan.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = {command.split()[1] for command in commands() if command.startswith("medgan ")}
    assert named <= verbs
    for verb in {"fill", "evaluate"} - verbs:
        assert f"`{verb}`" in README.partition("## What it does not do")[2], f"{verb} is absent and not said to be"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/formats.md"])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}, which is not there"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_the_manual_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:medgan|tests|configs|docs|benchmarks|pipelines|data_cards)/[\w./]+\.\w+)`", text):
        # The walk-throughs name the files that they tell the reader to write.
        assert (ROOT / name).exists() or f"`{name}`" in WRITTEN, f"{page} names {name}, which is not there"
