"""The table of codes is complete both ways, and a refusal reads as it is promised to."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from medgan import errors
from medgan.errors import CODES, Note, Refused

PACKAGE = Path(__file__).parents[1] / "medgan"
CODE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*\Z")
DOCUMENTED = re.compile(r"`([A-Z]+_[A-Z0-9_]+|LIMIT)`")


def calls(name: str) -> Iterator[tuple[str, ast.expr]]:
    """(place, first argument) of every call of `name` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name and node.args:
                yield f"{path.relative_to(PACKAGE.parent)}:{node.lineno}", node.args[0]


@pytest.mark.parametrize("name", ["Refused", "Note"])
def test_every_code_that_is_used_is_in_the_table(name: str) -> None:
    literal = [(place, node.value) for place, node in calls(name) if isinstance(node, ast.Constant)]
    assert len(literal) > 20, "the search finds next to nothing"
    assert [(place, code) for place, code in literal if code not in CODES] == []


def test_every_code_in_the_table_is_a_plain_identifier_with_a_meaning() -> None:
    for code, meaning in CODES.items():
        assert CODE.match(code), code
        assert len(meaning) > 10 and not meaning.endswith("."), code
    assert len(set(CODES.values())) == len(CODES), "two codes mean the same"


def test_every_code_that_the_manual_names_is_in_the_table() -> None:
    families = {code.partition("_")[0] for code in CODES}
    named = {(path.name, code) for path in sorted((PACKAGE.parent / "docs").glob("*.md"))
             for code in DOCUMENTED.findall(path.read_text(encoding="utf-8")) if code.partition("_")[0] in families}
    assert len(named) > 20, "the search finds next to nothing"
    assert {(page, code) for page, code in named if code not in CODES} == set()


def test_a_refusal_names_code_place_cause_and_fix() -> None:
    refused = Refused("FILE_EMPTY", Path("a/b.nii"), "it has no bytes.", "Copy it again.")
    assert str(refused) == "error[FILE_EMPTY] a/b.nii: it has no bytes. Copy it again."
    assert refused.args == (str(refused),)
    assert (refused.code, refused.where, refused.why, refused.fix) == (
        "FILE_EMPTY", "a/b.nii", "it has no bytes", "Copy it again")


def test_a_refusal_comes_back_whole_from_another_process() -> None:
    refused = Refused("OUT_BUSY", "x", "another process is writing to it", "Wait")
    again = pickle.loads(pickle.dumps(refused))
    assert type(again) is Refused and str(again) == str(refused) and again.__dict__ == refused.__dict__


def test_a_note_reads_as_a_warning_and_compares_by_value() -> None:
    note = Note("SINGLE_SLICE", "a.dcm", "one slice only")
    assert str(note) == "warning[SINGLE_SLICE] a.dcm: one slice only"
    assert note == Note("SINGLE_SLICE", "a.dcm", "one slice only") and len({note, note}) == 1


def test_a_code_that_is_not_in_the_table_cannot_be_raised() -> None:
    with pytest.raises(ValueError, match="NO_SUCH_CODE"):
        Refused("NO_SUCH_CODE", "x", "y", "z")
    with pytest.raises(ValueError, match="NO_SUCH_CODE"):
        Note("NO_SUCH_CODE", "x", "y")


def test_exit_codes_are_what_the_manual_says() -> None:
    found = {name: getattr(errors, name) for name in dir(errors) if name.startswith("EXIT_")}
    assert found == {"EXIT_DONE": 0, "EXIT_FAILED": 1, "EXIT_USAGE": 2, "EXIT_REFUSED": 3, "EXIT_SKIPPED": 4,
                     "EXIT_INTERRUPTED": 130}
