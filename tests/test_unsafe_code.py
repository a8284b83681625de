"""No code from data: nothing in the package can run what a file says, as read from its own source.

What is allowed, and why: `DataLoader` workers and `ProcessPoolExecutor` hand objects of this program to copies of
itself by multiprocessing's own pickling, never anything that came from a file; `runpy` runs the pipeline that the user
names on the command line (`medgan run`), as `python FILE` would.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted([*(ROOT / "medgan").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])

#: Modules of which a file's content can become a program, or that read such files.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "code",
           "codeop", "imp", "jsonpickle", "ctypes.util"}
#: Calls by the last part of their name, whatever they are called on, and what they are refused for.
CALLS = {"eval": "eval", "exec": "exec", "compile": "compile", "__import__": "__import__"}
#: Attributes that must not be named at all.
DOTTED = {"torch.load", "torch.jit.load", "torch.hub.load", "torch.package", "os.system", "os.popen", "yaml.load",
          "pydoc.locate", "monai.bundle", "np.fromregex", "pandas.read_pickle", "pd.read_pickle"}
#: Names that are imported from somewhere to the same end.
IMPORTED = {("torch", "load"), ("torch.jit", "load"), ("os", "system"), ("os", "popen"), ("monai.bundle", "*"),
            ("numpy", "load"), ("pydoc", "locate"), ("monai.bundle", "ConfigParser"), ("builtins", "eval"),
            ("builtins", "exec")}
#: `runpy` in one file alone.
RUNPY = ROOT / "medgan" / "verbs" / "run.py"


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute or a name; an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        front = dotted(node.value)
        return f"{front}.{node.attr}" if front else ""
    return ""


def unsafe(tree: ast.AST, path: Path = Path("x.py")) -> list[str]:
    """What a file does that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            found += [f"from {node.module} import {alias.name}" for alias in node.names
                      if (node.module or "", alias.name) in IMPORTED]
            if (node.module or "").startswith("monai.bundle"):
                found.append("monai.bundle")
        else:
            names = []
        found += [f"import {name}" for name in names
                  if name.split(".")[0] in MODULES or name in MODULES or name.startswith("monai.bundle")
                  or (name == "runpy" and path != RUNPY)]
        if isinstance(node, ast.Attribute) and dotted(node) in DOTTED:
            found.append(dotted(node))
        if isinstance(node, ast.Call):
            found += called(node)
    return found


def called(node: ast.Call) -> list[str]:
    """What is wrong with a call."""
    name = dotted(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def is_constant(key: str, value: object) -> bool:
        return isinstance(given.get(key), ast.Constant) and given[key].value is value  # type: ignore[attr-defined]

    wrong = []
    if isinstance(node.func, ast.Name) and name in CALLS:
        wrong.append(name)
    if name in ("np.load", "numpy.load") and not is_constant("allow_pickle", False):
        wrong.append(f"{name} without allow_pickle=False")
    if name in ("np.save", "numpy.save") and not is_constant("allow_pickle", False):
        wrong.append(f"{name} without allow_pickle=False")
    if name.startswith("subprocess.") and "shell" in given and not is_constant("shell", False):
        wrong.append(f"{name} with a shell")
    if "weights_only" in given and not is_constant("weights_only", True):
        wrong.append(f"{name} with weights_only")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_source_can_run_what_a_file_says(path: Path) -> None:
    assert unsafe(ast.parse(path.read_text(encoding="utf-8")), path) == []


@pytest.mark.parametrize("line", [
    "import pickle", "import numpy, pickle", "from pickle import loads", "import dill as d", "import joblib",
    "import shelve", "import marshal", "import yaml", "from yaml import safe_load", "eval(text)", "exec(text)",
    "compile(text, '', 'exec')", "__import__(name)", "torch.load(path)", "torch.load(path, weights_only=True)",
    "load = torch.load", "from torch import load", "torch.hub.load(x)", "np.load(path)", "numpy.load(path)",
    "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)", "subprocess.run(line, shell=True)",
    "subprocess.Popen(line, shell=flag)", "os.system(line)", "from os import system", "import monai.bundle",
    "from monai.bundle import ConfigParser", "from monai.bundle.config_parser import ConfigParser",
    "f(weights_only=False)", "import runpy", "np.save(file, array)",
])
def test_each_way_of_doing_so_is_seen(line: str) -> None:
    assert unsafe(ast.parse(line))


@pytest.mark.parametrize("line", [
    "model.eval()", "re.compile(text)", "np.load(path, allow_pickle=False)", "json.loads(text)", "run.load(x)",
    "subprocess.run([a, b])", "torch.compile", "medgan.load(path)",
])
def test_what_only_looks_like_it_is_not(line: str) -> None:
    assert not unsafe(ast.parse(line))
