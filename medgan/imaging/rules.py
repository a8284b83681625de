"""What a reader may take: how large an image, and whether series that are no even, straight stack are resampled."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from medgan.config import Data

#: What stands in for half of the memory where the system does not say how much there is.
_UNKNOWN_LIMIT = 4 * 2**30


def half_of_memory() -> int:
    """Half of the physical memory in bytes; 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN_LIMIT


@dataclass(frozen=True)
class Rules:
    """How readers treat what could go wrong; the settings `data.max_gib` and `data.irregular`.

    Args:
        max_bytes: Most memory that reading one file or folder may take; None: half of the machine's.
        irregular: `refuse` tilted and unevenly spaced series, or `resample` them to an even, straight grid, which the
            volume's notes then say.
    """

    max_bytes: int | None = None
    irregular: Literal["refuse", "resample"] = "refuse"

    @staticmethod
    def of(data: Data) -> Rules:
        """As the settings say."""
        return Rules(None if data.max_gib is None else int(data.max_gib * 2**30), data.irregular)

    @property
    def limit(self) -> int:
        """The most bytes that may be taken."""
        return half_of_memory() if self.max_bytes is None else self.max_bytes


#: What holds where nothing is said.
DEFAULT_RULES = Rules()
