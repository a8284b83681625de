"""The walk-throughs of CONTRIBUTING.md, done to a copy of the tree as a reader would do them, and their tests run.

A block of code is a new file where the paragraph above it begins with the file's name; a `diff` block names its file,
and its old lines must stand there exactly once.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NEW_FILE = re.compile(r"^[^\n`]*`([\w./]+)`[^\n]*(?:\n[^\n]+)*\n\n```(?:python|toml)\n(.*?)^```$", re.M | re.S)
CHANGE = re.compile(r"^```diff\n--- (\S+)\n\+\+\+ (\S+)\n(.*?)^```$", re.M | re.S)

#: Walk-through -> tests that must pass once it is done, besides those it adds.
WALKS = {"Add a task": ["tests/test_config.py", "tests/test_imports.py"],
         "Add a layout": ["tests/test_layouts.py", "tests/test_imports.py"],
         "Add a modality": ["tests/test_config.py"]}  # fmt: skip


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def follow(title: str, tree: Path) -> list[str]:
    """Does what a section says to a tree; the files it made."""
    made = []
    for match in NEW_FILE.finditer(section(title)):
        assert not (tree / match[1]).exists(), f"{match[1]} is there already"
        (tree / match[1]).write_text(match[2])
        made.append(match[1])
    for match in CHANGE.finditer(section(title)):
        assert match[1] == match[2]
        lines = match[3].splitlines()
        old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
        text = (tree / match[1]).read_text()
        assert text.count(old) == 1, f"{match[1]} has {text.count(old)} times:\n{old}"
        (tree / match[1]).write_text(text.replace(old, new))
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the walk-throughs touch."""
    for name in ("medgan", "configs", "pipelines", "data_cards", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("title", WALKS)
def test_what_a_walk_through_changes_is_there(title: str, tree: Path) -> None:
    assert len(follow(title, tree)) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("title", WALKS)
def test_a_walk_through_leads_to_code_that_passes(title: str, tree: Path) -> None:
    made = follow(title, tree)
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=tree, env=environment, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    python = [name for name in made if name.endswith(".py")]
    run("ruff", "check", *python, "medgan", "tests")
    run("mypy", *[name for name in python if name.startswith("medgan/")], "medgan/config.py")
    tests = [name for name in python if name.startswith("tests/")] + WALKS[title]
    run("pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *tests)
