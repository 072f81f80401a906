"""From a config to the tasks that every model is set: data is read once, and each set takes part in what it can."""

from typing import cast

from evaluation.config import EvaluateSettings
from evaluation.data.base import Content
from evaluation.task_info import TaskInfo
from evaluation.tasks import TASKS
from evaluation.tasks.base import Task
from pipelines.program.errors import UserError
from pipelines.program.import_string import find


def read_data(settings: EvaluateSettings) -> dict[str, Content]:
    """Every entry of `data`. Raises `UserError` where one is missing or wrong, before anything is computed."""
    return {name: data.read(f"data.{name}") for name, data in settings.data.items()}


def plan(settings: EvaluateSettings, contents: dict[str, Content]) -> list[Task]:
    """All tasks. Raises `UserError` where no set can take part in one that is asked for."""
    tasks: list[Task] = []
    by_name = {kind.info.path: kind for kind in TASKS}
    asked = {name: by_name.get(name) or own_task(name) for name in settings.tasks}
    for name, kind in (asked | {kind.info.path: kind for kind in TASKS if not kind.info.needs}).items():
        found = list(kind.among(contents, settings))
        # Those that are asked for by default are not missed where there is nothing for them.
        if kind.info.needs and not found and "tasks" in settings.model_fields_set:
            needs = kind.info.needs
            raise UserError(f"tasks: no set of data can take part in {name}: it needs {needs}; leave it out, or add such data")
        tasks += found
    if not tasks:
        raise UserError(f"data: none of {', '.join(contents)} can take part in {', '.join(settings.tasks)}; see tasks in --help")
    return tasks


def own_task(name: str, key: str = "tasks") -> type[Task]:
    """A task of the user's own, by its import string. `key`: where it is named. Raises `UserError` where it is none."""
    kind = find(name, None, key, key, "mypackage.mymodule:MyTask")
    if not isinstance(getattr(kind, "info", None), TaskInfo) or not hasattr(kind, "among"):
        raise UserError(key, f"{name} is no class with `info` and `among`", "see evaluation/tasks/base.py")
    return cast(type[Task], kind)
