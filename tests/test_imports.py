"""The house rules on imports: they point down only, and nothing heavy is loaded before a verb is called."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import medgan

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "medgan"

#: From the top of the house to its foundations; a room may import from its own tier and from those below.
TIERS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "terminal", "transforms"}),
    frozenset({"verbs"}),
    frozenset({"reports", "metrics", "lesions", "learning"}),
    frozenset({"datasets"}),
    frozenset({"imaging"}),
    frozenset({"config", "errors", "notices", "storage", "resources", "weights"}),
)
#: What no module may load when it is imported, since `import medgan` and `medgan --help` would pay for it.
HEAVY = ("torch", "monai", "skimage", "scipy", "numpy", "nibabel", "pydicom", "PIL")


def tier(room: str) -> int:
    found = [number for number, rooms in enumerate(TIERS) if room in rooms]
    assert found, f"medgan/{room} has no place in the house: give it one in TIERS and in docs/architecture.md"
    return found[0]


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in a file, the ones inside functions and TYPE_CHECKING too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            module = node.module or ""
            # `from medgan import imaging` names a room, `from medgan import __version__` does not.
            inner = [f"{module}.{alias.name}" for alias in node.names] if module == "medgan" else [module]
            found += [(node.lineno, name) for name in inner]
    return found


def upward(root: Path) -> list[str]:
    """Imports below `root` (a folder called medgan) that point up, as readable lines."""
    wrong = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).with_suffix("").parts
        if inside == ("__init__",):
            continue  # the public names come from every floor, each loaded on first use
        for line, module in imported(path):
            parts = module.split(".")
            if parts[0] == "pipelines":
                wrong.append(f"{path}:{line} imports a pipeline")
            elif parts[0] == "medgan" and len(parts) > 1 and not parts[1].startswith("__"):
                if not any((root / name).exists() for name in (parts[1], f"{parts[1]}.py")):
                    wrong.append(f"{path}:{line} imports {module} by its public name; name the module it lives in")
                elif tier(parts[1]) < tier(inside[0]):
                    wrong.append(f"{path}:{line} {inside[0]} imports {module}, which is above it")
    return wrong


def test_imports_point_down_only() -> None:
    assert upward(PACKAGE) == []


@pytest.mark.parametrize("line", ["from medgan.verbs.train import train", "import medgan.cli", "import pipelines.x",
                                  "from medgan import verbs", "from medgan import augment"])
def test_an_import_that_points_up_is_seen(line: str, tmp_path: Path) -> None:
    for name in ("verbs/__init__.py", "verbs/train.py", "cli.py", "imaging/__init__.py"):
        (tmp_path / "medgan" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "medgan" / name).touch()
    (tmp_path / "medgan/imaging/late.py").write_text(f"def f():\n    {line}\n")
    assert len(upward(tmp_path / "medgan")) == 1


def test_every_room_has_a_tier() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    for room in rooms - {"__init__"}:
        tier(room)


def loaded(code: str) -> set[str]:
    """The modules of HEAVY that a fresh process has loaded after running `code`."""
    program = f"import sys, json\n{code}\nprint('\\n' + json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_medgan_loads_nothing_heavy() -> None:
    assert loaded("import medgan; medgan.__version__; dir(medgan)") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["augment", "--help"]],
                         ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded(f"sys.argv = ['medgan', *{arguments!r}]\nfrom medgan.cli import main\n"
                  "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code") == set()


def test_a_loaded_module_would_be_seen() -> None:
    assert "numpy" in loaded("import numpy")


@pytest.mark.parametrize("name", medgan.__all__)
def test_public_names_are_there_and_say_what_they_are(name: str) -> None:
    value = getattr(medgan, name)
    assert callable(value) and value.__doc__ and value.__module__.startswith("medgan.")
    assert value.__doc__.splitlines()[0].endswith((".", ":")), "one sentence in the first line"


def test_public_names_are_listed_once_and_misspelt_ones_refused() -> None:
    module = importlib.import_module("medgan")
    assert list(medgan.__all__) == sorted(set(medgan.__all__)) and set(medgan.__all__) == set(module._PUBLIC)
    assert set(medgan.__all__) <= set(dir(medgan))
    with pytest.raises(AttributeError, match="upsmaple"):
        getattr(medgan, "upsmaple")  # noqa: B009
