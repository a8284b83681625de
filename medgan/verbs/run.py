"""`run`: a pipeline by its name."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from medgan.errors import Refused
from medgan.resources import resource, resources


def run_pipeline(name: str, arguments: Sequence[str] = ()) -> None:
    """Runs a shipped pipeline, or a pipeline file of the user's, as the program it is.

    Args:
        name: `lesion_classifier`, or the path of a `.py` file.
        arguments: Its command line arguments.

    Raises:
        Refused: `PIPELINE_UNKNOWN`.
    """
    shipped = [file.removesuffix(".py") for file in resources("pipelines") if file.endswith(".py")]
    if name in shipped:
        path = resource("pipelines", f"{name}.py")
    elif name.endswith(".py") and Path(name).is_file():
        path = Path(name)
    else:
        raise Refused("PIPELINE_UNKNOWN", name, "there is no such pipeline",
                      f"Use one of {', '.join(shipped)}, or the path of a .py file")
    before = sys.argv
    sys.argv = [str(path), *arguments]
    try:
        runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
