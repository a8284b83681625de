"""The fuzzer itself on every reader, for a fixed number of executions, and that it sees what goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
#: Reader -> executions, which together take two minutes or so.
_EXECUTIONS = {"dicom": 3000, "nifti": 5000, "planar": 2500, "npz": 3000, "tables": 4000, "checkpoints": 3000,
               "config": 3000}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None,
                       reason="atheris is not installed (it has no build for this Python or system)"),
    pytest.mark.skipif(not _FUZZ.is_file(), reason="no benchmarks folder beside these tests"),
]


def _fuzzed(reader: str, executions: int, folder: Path, environment: dict[str, str] | None = None) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, str(_FUZZ), "--reader", reader, "--executions", str(executions), "--seed", "1",
         "--findings", str(folder / "findings"), "--out", str(folder / "out.json")],
        capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})})
    assert (folder / "out.json").is_file(), ended.stdout[-2000:] + ended.stderr[-2000:]
    result: dict[str, object] = json.loads((folder / "out.json").read_text())
    assert ended.returncode == (1 if result["findings"] else 0)
    return result


@pytest.mark.parametrize("reader", _EXECUTIONS)
def test_nothing_but_a_refusal_or_a_right_result(reader: str, tmp_path: Path) -> None:
    result = _fuzzed(reader, _EXECUTIONS[reader], tmp_path)
    assert not result["places"], json.dumps(result["places"], indent=1)
    assert result["executions"] == _EXECUTIONS[reader]
    answers = result["answers"]
    assert isinstance(answers, dict)
    assert answers["read"] > 0 and len(answers) >= 4  # it got past the first checks


@pytest.mark.parametrize("broken, place", [
    ("raise KeyError('x')", "KeyError in "), ("raise SystemExit(3)", "SystemExit in "), ("os._exit(5)", "exit 5"),
    ("os.kill(os.getpid(), 11)", "signal"),
])
def test_what_goes_wrong_is_seen_and_counted(broken: str, place: str, tmp_path: Path) -> None:
    # A module that Python loads first makes the settings' parser fail on some inputs.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, tomllib\n_whole = tomllib.loads\n"
        f"def loads(text, **options):\n    if 'images' in text and 'hinge' in text:\n        {broken}\n"
        "    return _whole(text, **options)\ntomllib.loads = loads\n")
    result = _fuzzed("config", 300, tmp_path, {"PYTHONPATH": str(tmp_path)})
    places = result["places"]
    assert isinstance(places, dict) and any(place in each for each in places), places
    assert result["executions"] == 300
    assert all(Path(found["input"]).is_file() for found in places.values())
