"""The registry of tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from medgan.config import Config
from medgan.datasets.cases import Dataset
from medgan.learning.task import Source, Task
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.lesion import LesionTask
from medgan.learning.tasks.upscale import UpscaleTask


class TaskType(Protocol):
    """A task's class: built from settings and what the data looks like; gives the source of its batches."""

    def __call__(self, config: Config, interface: Mapping[str, Any]) -> Task: ...

    def source(self, dataset: Dataset, config: Config) -> Source: ...


#: Name in settings and `--task` -> task. Adding one is a class, a line here and a test.
TASKS: dict[str, TaskType] = {"lesion": LesionTask, "image": ImageTask, "upscale": UpscaleTask}
