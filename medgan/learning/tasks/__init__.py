"""The registry of tasks."""

from __future__ import annotations

from medgan.learning.task import Task
from medgan.learning.tasks.image import ImageTask
from medgan.learning.tasks.lesion import LesionTask
from medgan.learning.tasks.upscale import UpscaleTask

#: Name in settings and `--task` -> task. Adding one is a class, a line here and a test.
TASKS: dict[str, type[Task]] = {"lesion": LesionTask, "image": ImageTask, "upscale": UpscaleTask}
