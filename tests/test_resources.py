"""The files that ship with medgan are found, and every development data set has its card."""

from __future__ import annotations

from pathlib import Path

import pytest

from medgan import resources as module
from medgan.errors import Refused
from medgan.resources import resource, resources

SHARED = Path(__file__).parents[2] / "shared" / "data"
CARDS = ("glioma", "glioma-other", "ms", "brain-t1", "hippocampus", "ct", "lung-nodule", "pneumonia", "phantoms")


@pytest.mark.parametrize("name", CARDS)
def test_every_card_has_what_the_template_asks_for(name: str) -> None:
    template = resource("data_cards", "TEMPLATE.md").read_text()
    card = resource("data_cards", f"{name}.md").read_text()
    assert card.startswith(f"# Data card: {name}\n")
    for heading in (line for line in template.splitlines() if line.startswith("## ")):
        assert heading in card.splitlines(), heading
    assert "- Licence: " in card and "$" not in card


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there")
def test_every_data_set_used_in_development_has_a_card() -> None:
    used = {path.name.removesuffix("-dicom") for path in SHARED.iterdir() if path.is_dir()}
    assert {f"{name}.md" for name in used} <= set(resources("data_cards"))


@pytest.mark.parametrize("name", ["missing.md", "../pyproject.toml", "/etc/passwd", "", "..", "."])
def test_what_is_not_shipped_is_refused(name: str) -> None:
    with pytest.raises(Refused, match="FILE_MISSING"):
        resource("data_cards", name)


def test_an_installed_package_finds_its_own_copy_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site/medgan/configs").mkdir(parents=True)
    (tmp_path / "site/medgan/configs/ct.toml").touch()
    (tmp_path / "site/configs").mkdir()
    (tmp_path / "site/configs/other.toml").touch()
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "site/medgan")
    assert resource("configs", "ct.toml") == tmp_path / "site/medgan/configs/ct.toml"
    assert resources("configs") == ("ct.toml",)
