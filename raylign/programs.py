"""The four programs as functions. A config is a file name, as on the command line, or a mapping; overrides have dotted keys.

    raylign.train("openmoji.yaml", {"name": "mine", "optimizer.lr": 3e-4})

Like the commands, each resumes an interrupted call. Each raises `UserError` for what the caller can fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipelines.program.config_files import find_config
from pipelines.program.settings import apply_overrides, load, validate
from pipelines.program.settings_base import Settings

if TYPE_CHECKING:
    from evaluation.results import Result
    from pipelines.dataset.prepared import Prepared
    from pipelines.program.display import Display

Config = str | Path | Mapping[str, Any]
S = TypeVar("S", bound=Settings)


def prepare(
    config: Config, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False, verbose: bool = False
) -> Prepared:
    """Prepare a dataset, as `raylign prepare` does.

    Args:
        config: a config file, or a mapping with its keys.
        overrides: dotted keys and their values, such as `{"image.size": 192}`.
        quiet: print nothing.
        verbose: print Ray's own output too.

    Returns:
        The dataset, as from `open_dataset`.
    """
    from pipelines.prepare.config import PrepareSettings
    from pipelines.prepare.prepare import prepare

    return prepare(_settings(PrepareSettings, config, overrides), _display(quiet, verbose))


def train(
    config: Config, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False, verbose: bool = False
) -> dict[str, Any]:
    """Train, or resume training, as `raylign train` does; for the arguments see `prepare`.

    Returns:
        The content of the run's `result.json`: `metrics` by path such as `retrieval/NAME/mean_recall`, in percent, and a
        description of the run. The run is in the folder `storage/name`, which may be one in a store.
    """
    from training.config import TrainSettings
    from training.run import run

    return run(_settings(TrainSettings, config, overrides), _display(quiet, verbose))


def evaluate(
    config: Config, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False, verbose: bool = False
) -> list[Result]:
    """Score models on datasets, as `raylign evaluate` does; for the arguments see `prepare`.

    Returns:
        One result for each model, dataset and task: `model`, `dataset`, `task`, and `scores`, in percent.
    """
    from evaluation.__main__ import evaluate
    from evaluation.config import EvaluateSettings

    return evaluate(_settings(EvaluateSettings, config, overrides), _display(quiet, verbose))


def sweep(
    config: Config, overrides: Mapping[str, Any] | None = None, *, quiet: bool = False, verbose: bool = False
) -> Path | str:
    """Run a sweep, or what is left of one, as `raylign sweep` does; for the arguments see `prepare`.

    Returns:
        The sweep's folder, or its URI in a store, with `trials.csv`, `summary.csv`, `pairwise.csv` and `report.html`.
    """
    from pipelines.io import storage
    from tuning.config import SweepSettings
    from tuning.sweep import sweep

    settings = _settings(SweepSettings, config, overrides)
    sweep(settings, _display(quiet, verbose), f"raylign.sweep({str(config)!r})")
    return storage.join(settings.storage, settings.name)


def open_dataset(path: str | Path) -> Prepared:
    """A prepared dataset, from its folder or a URI such as s3://bucket/folder. Raises `UserError` if there is none."""
    from pipelines.dataset.prepared import Prepared

    return Prepared.open(path)


def _settings(model: type[S], config: Config, overrides: Mapping[str, Any] | None) -> S:
    if isinstance(config, Mapping):
        return validate(model, apply_overrides(config, overrides or {}, model), "config")
    return load(model, find_config(config, model.__module__.partition(".")[0]), overrides)


def _display(quiet: bool, verbose: bool) -> Display:
    from pipelines.program.display import Display

    return Display(quiet=quiet, verbose=verbose)
