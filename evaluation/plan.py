"""From a config to the tasks that every model is set: data is read once, and each set takes part in what it can."""

from collections.abc import Iterator

from evaluation import robustness
from evaluation.config import EvaluateSettings, RobustnessSettings
from evaluation.data.base import Content
from evaluation.tasks.base import Task
from evaluation.tasks.probes import FewShot, LinearProbe, has_training
from evaluation.tasks.retrieval import Retrieval
from evaluation.tasks.shifts import Corruption, EffectiveRobustness
from evaluation.tasks.sugarcrepe import SugarCrepe
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.import_string import call
from pipelines.program.settings import UserError


def read_data(settings: EvaluateSettings) -> dict[str, Content]:
    """Every entry of `data`. Raises `UserError` where one is missing or wrong, before anything is computed."""
    return {name: data.read(f"data.{name}") for name, data in settings.data.items()}


def plan(settings: EvaluateSettings, contents: dict[str, Content]) -> list[Task]:
    """All tasks. Raises `UserError` where no set can take part in one that is asked for."""
    tasks: list[Task] = []
    for name in settings.tasks:
        found = [task for place, content in contents.items() for task in _of(name, place, content, settings)]
        # Those that are asked for by default are not missed where there is nothing for them.
        if not found and "tasks" in settings.model_fields_set:
            needs = _NEEDS.get(name, "what it asks for")
            raise UserError(f"tasks: no set of data can take part in {name}: it needs {needs}; leave it out, or add such data")
        tasks += found
    tasks += [_robustness(shift, given, contents) for shift, given in settings.robustness.items()]
    if not tasks:
        raise UserError(f"data: none of {', '.join(contents)} can take part in {', '.join(settings.tasks)}; see tasks in --help")
    return tasks


_NEEDS = {
    "zero_shot": "labels of test images",
    "retrieval": "captions of test images",
    "sugarcrepe": "an entry with name: sugarcrepe",
    "linear_probe": "labels of training and test images",
    "few_shot": "labels of training and test images",
    "corruption": "labels of test images",
}


def _of(name: str, place: str, content: Content, settings: EvaluateSettings) -> Iterator[Task]:
    """The tasks of one name that one entry of `data` can take part in; of a function of the user's own, those it returns."""
    if ":" in name:
        yield from call(name, {"place": place, "content": content}, "tasks", "tasks", "mypackage.mymodule:tasks_of")
    if name == "retrieval" and content.retrieval is not None:
        yield Retrieval(place, content.retrieval, place, settings.recall_at)
    if name == "sugarcrepe" and content.sugarcrepe is not None:
        yield SugarCrepe(place, content.sugarcrepe, place)
    for label, one in content.classifications.items():
        dataset = f"{place}_{label}" if label else place
        if name == "zero_shot":
            yield ZeroShot(dataset, one, place)
        elif name == "linear_probe" and has_training(one.train):
            yield LinearProbe(dataset, one, place, settings.linear_probe.views, settings.linear_probe.seed)
        elif name == "few_shot" and has_training(one.train):
            yield FewShot(dataset, one, place, settings.few_shot.shots, settings.few_shot.seeds)
        elif name == "corruption":
            given = settings.corruption
            yield Corruption(ZeroShot(dataset, one, place), given.names, given.severities, given.images, given.seed, given.size)


def _robustness(shift: str, given: RobustnessSettings, contents: dict[str, Content]) -> Task:
    def only(name: str) -> ZeroShot:
        found = list(contents[name].classifications.values())
        if len(found) != 1:
            raise UserError(f"robustness.{shift}: {name} has {len(found)} sets of labels; effective robustness compares one")
        return ZeroShot(name, found[0], name)

    if given.baselines is not None:
        assert given.reference_column is not None and given.shift_column is not None
        line = robustness.fit(*robustness.read_baselines(given.baselines, given.reference_column, given.shift_column))
        return EffectiveRobustness(only(shift), only(given.reference), line, str(given.baselines))
    lines = robustness.shipped_lines()
    if given.line not in lines:
        raise UserError(f"robustness.{shift}.line: '{given.line}' does not ship; there are {', '.join(lines)}; or give baselines")
    return EffectiveRobustness(only(shift), only(given.reference), lines[given.line], f"shipped: {given.line}")
