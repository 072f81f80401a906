"""The data of a run: its prepared dataset, the order of its training split, and the splits that it is scored on.

`open_data` opens and checks all of it from settings alone: no network is built and no feature computed.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from evaluation.suite import HeldOut, SuiteSettings, held_out, metric_names
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.program.errors import UserError
from training.config import EvaluationSettings, TrainSettings


@dataclass(frozen=True)
class TrainData:
    """The data that a run's settings name."""

    settings: TrainSettings
    prepared: Prepared
    order: Order
    held_out: list[tuple[Prepared, HeldOut]]  # of `held_out_data`
    test: HeldOut | None  # of `final_test_data`


def open_data(settings: TrainSettings) -> TrainData:
    """Open the run's datasets. Raises `UserError` for mistakes in data, splits, labels and batch size."""
    prepared = Prepared.open(settings.data.path)
    check_labels(settings, prepared)
    held_out = held_out_data(settings, prepared)
    return TrainData(settings, prepared, make_order(settings, prepared), held_out, final_test_data(settings, prepared))


def check_labels(settings: TrainSettings, prepared: Prepared) -> None:
    """Raises `UserError` if the dataset lacks a label column that the objective reads, or a row's number."""
    needs, labels = settings.objective.needs, prepared.manifest["labels"]
    for name in (*needs.texts, *needs.numbers):
        if name not in labels:
            have = f"it has {', '.join(labels)}" if labels else "it has none"
            problem = f"{settings.objective.name} reads the label column '{name}', which {prepared.path} does not have; {have}"
            raise UserError("objective", problem, "name another column, or prepare again with source.columns")
    for name in needs.numbers:
        wrong = next((value for value in labels[name] if not _is_weight(value)), None)
        if wrong is not None:
            problem = f"the label column '{name}' of {prepared.path} has {wrong!r}, which is not a finite number of at least 0"
            raise UserError("objective", problem, "correct it at the source, and prepare again")
        lacking = prepared.num_samples - sum(labels[name].values())
        if lacking:
            problem = f"{lacking} rows of {prepared.path} have no number in the label column '{name}'"
            raise UserError("objective", problem, "give every row one at the source, such as 1, and prepare again")


def _is_weight(value: str) -> bool:
    try:
        return 0 <= float(value) < math.inf
    except ValueError:
        return False


def make_order(settings: TrainSettings, prepared: Prepared) -> Order:
    """The order of the training split. Raises `UserError` for an unknown split, or one that does not fill a batch."""
    splits = prepared.split_list(settings.data.validation)
    if settings.data.split not in splits:
        raise UserError("data.split", f"'{settings.data.split}' is unknown", f"{prepared.path} has {', '.join(splits)}")
    if settings.data.split == settings.evaluation.split:
        problem = f"the run trains on '{settings.evaluation.split}'"
        others = ", ".join(split for split in splits if split != settings.data.split)
        raise UserError("evaluation.split", problem, f"choose another split of {prepared.path}: {others}")
    order = Order(
        prepared,
        split=settings.data.split,
        split_seed=settings.data.split_seed,
        seed=settings.seed,
        global_batch_size=settings.global_batch_size,
        validation=settings.data.validation,
        fraction=settings.data.fraction,
    )
    order.check()
    return order


def held_out_data(settings: TrainSettings, prepared: Prepared) -> list[tuple[Prepared, HeldOut]]:
    """The run's own held-out split, then those of extra datasets.

    Raises `UserError` for a missing dataset, an unknown split or label, or two datasets with the same name.
    """
    suite = _suite(settings, prepared)
    splits = [(prepared, held_out(prepared, suite, settings.data.split_seed, settings.data.validation))]
    for number, extra in enumerate(suite.extra_datasets):
        key = f"evaluation.extra_datasets[{number}]"
        with _keyed(f"{key}.path", "data.path"):
            dataset = Prepared.open(extra.path)
        if dataset.name in [data.dataset for _, data in splits]:
            problem = f"{dataset.path} is called '{dataset.name}' like another dataset of this run"
            raise UserError(f"{key}.path", problem, "prepare one of them with another name")
        own = SuiteSettings(
            split=suite.split, recall_at=suite.recall_at, templates=extra.templates or suite.templates, labels=extra.labels
        )
        with _keyed(f"{key}.labels", "evaluation.labels"):  # its split is the run's, and keeps the run's key
            splits.append((dataset, held_out(dataset, own, retrieval=extra.retrieval)))
    return splits


def _suite(settings: TrainSettings, prepared: Prepared) -> EvaluationSettings:
    """What is scored: by default not the label columns that the objective reads, which name no classes."""
    suite, read = settings.evaluation, {*settings.objective.needs.texts, *settings.objective.needs.numbers}
    if suite.labels is not None or not read:
        return suite
    return suite.model_copy(update={"labels": tuple(name for name in prepared.manifest["labels"] if name not in read)})


@contextmanager
def _keyed(key: str, instead_of: str) -> Iterator[None]:
    """Errors about the key `instead_of` are about `key` here."""
    try:
        yield
    except UserError as error:
        raise error.under(key, instead_of) if error.key == instead_of else error from None


def final_test_data(settings: TrainSettings, prepared: Prepared) -> HeldOut | None:
    """The split on which the best checkpoint is scored. Raises `UserError` if it is unknown or empty."""
    if settings.evaluation.test_split is None:
        return None
    suite = _suite(settings, prepared).model_copy(update={"split": settings.evaluation.test_split})
    with _keyed("evaluation.test_split", "evaluation.split"):
        return held_out(prepared, suite, settings.data.split_seed, settings.data.validation)


def check_metric(settings: TrainSettings, data: Sequence[HeldOut]) -> None:
    """Raises `UserError` if `checkpoint.best` is not a metric of the run: no checkpoint would ever be kept."""
    best = settings.checkpoint.best
    metrics = ["loss", "held_out_loss", *(name for split in data for name in metric_names(split))]
    if best is not None and best not in metrics:
        raise UserError("checkpoint.best", f"'{best}' is not a metric of this run", f"choose one of: {', '.join(metrics)}")
