"""From a config to the list of tasks: every model is scored on each task for each set of data that suits it."""

from typing import cast

from evaluation.config import EvaluateSettings
from evaluation.data.base import Content
from evaluation.task_info import TaskInfo
from evaluation.tasks import TASKS
from evaluation.tasks.base import Task
from pipelines.program.errors import UserError
from pipelines.program.import_string import find


def read_data(settings: EvaluateSettings) -> dict[str, Content]:
    """All entries of `data`. Raises `UserError` where one is missing or wrong, before anything is computed."""
    return {name: data.read(f"data.{name}") for name, data in settings.data.items()}


def plan(settings: EvaluateSettings, contents: dict[str, Content]) -> list[Task]:
    """All tasks. Raises `UserError` where a task in the config's `tasks` suits no set of data."""
    tasks: list[Task] = []
    by_name = {kind.info.path: kind for kind in TASKS}
    kinds = {name: by_name.get(name) or own_task(name) for name in settings.tasks}
    for name, kind in (kinds | {kind.info.path: kind for kind in TASKS if not kind.info.needs}).items():
        of_kind = list(kind.among(contents, settings))
        # The default tasks may lack data; those that the config names must not.
        if kind.info.needs and not of_kind and "tasks" in settings.model_fields_set:
            problem = f"no entry of data suits {name}, which needs {kind.info.needs}"
            raise UserError("tasks", problem, f"remove {name}, or add such an entry")
        tasks += of_kind
    if not tasks:
        problem = f"{', '.join(contents)} suit none of the tasks {', '.join(settings.tasks)}"
        raise UserError("data", problem, "add data for one of them, or choose other tasks: see tasks in --help")
    return tasks


def own_task(name: str, key: str = "tasks") -> type[Task]:
    """The user's own task class, by its import string. `key`: where it is named. Raises `UserError` where it is not one."""
    kind = find(name, None, key, key, "mypackage.mymodule:MyTask")
    if not isinstance(getattr(kind, "info", None), TaskInfo) or not hasattr(kind, "among"):
        raise UserError(key, f"{name} is not a task", "give a class as of evaluation/tasks/base.py, with `info` and `among`")
    return cast(type[Task], kind)
