"""How a verb reads: what its settings say of memory and irregular series, known before the data set is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgan.config import Config, parse_setting
from medgan.imaging.rules import Rules

#: The settings of the table `data` that rules are made of.
SETTINGS = ("data.max_gib", "data.irregular")


def asked_rules(config: str | Path | None = None, settings: Sequence[str] | Mapping[str, Any] = (),
                task: str | None = None) -> Rules:
    """The rules of reading that a file of settings and single settings ask for.

    The other settings are looked at where modality and task are known, which the data set may have to tell first.

    Args:
        config: A TOML file of settings.
        settings: Single settings, as for `Config.resolve`.
        task: Whose table of the file counts; None: `lesion`.

    Raises:
        Refused: `CFG_*` or `FILE_MISSING`.
    """
    wanted = {name: value for name, value in _listed(settings) if name in SETTINGS}
    return Rules.of(Config.resolve("ct", task or "lesion", file=config, settings=wanted).data)


def besides_rules(settings: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something else than how files are read."""
    return {name: value for name, value in _listed(settings) if name not in SETTINGS}


def _listed(settings: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Any]]:
    if isinstance(settings, Mapping):
        return list(settings.items())
    return [parse_setting(text) for text in ([settings] if isinstance(settings, str) else settings)]
