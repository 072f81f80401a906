"""`python -m evaluation CONFIG.yaml`: score models on tasks, and write the results as JSON and as one page."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from evaluation.config import EvaluateSettings
from evaluation.embeddings import Rows
from evaluation.metrics import path_of
from evaluation.model_settings import ModelSettings
from evaluation.plan import plan, read_data
from evaluation.results import Result, find_result
from evaluation.tasks.base import Task
from pipelines.io.retry import shown_tree
from pipelines.program import interrupts
from pipelines.program.cli import begin, run_program
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest

PURPOSE = """Score anything that embeds images and texts: zero-shot classification, retrieval, SugarCrepe, linear and few-shot
probes, corruptions and effective robustness, on prepared datasets and on the layouts of others. Embeds with Ray Data, once for
all tasks; writes OUTPUT/MODEL/DATASET/TASK/result.json and OUTPUT/report.html, which compares all models there. No data is
downloaded."""

_FORMAT = 1  # of results; incremented when earlier results must be computed again


def evaluate(settings: EvaluateSettings, display: Display) -> list[Result]:
    """Embed, score, write the results and the page, and return the results of all models, sets and tasks."""
    from evaluation.embed import embed, forget
    from evaluation.embedder import check_embedder
    from evaluation.precomputed import precomputed
    from evaluation.report import write_report
    from pipelines.features import feature_store
    from pipelines.program import cluster, path_keys

    for folder, key in ((settings.output, "output"), (settings.cache, "cache")):
        path_keys.check_folder(folder, key)
    path_keys.check_kind(settings.output, "evaluation", "output")
    contents = read_data(settings)
    tasks = plan(settings, contents)
    every = {inputs.fingerprint: inputs for task in tasks for inputs in task.inputs()}
    # Rows of a subset are taken from those of all images.
    embedded = [one for one in every.values() if one.superset is None or one.superset.fingerprint not in every]
    data = {
        name: {
            "attribution": content.attribution,
            "coverage": content.coverage,
            "settings": shown_tree(settings.data[name].model_dump(mode="json")),
        }
        for name, content in contents.items()
    }
    models = settings.all_models()
    for name, model in models.items():  # all of them before the first import of an embedder
        with _keys_of(name, settings):
            model.check()
    for name, model in models.items():
        if model.embeddings is None:
            with _keys_of(name, settings):
                check_embedder(model.embedder, model.arguments())
    pool = feature_store.Pool(settings.actors, settings.use_gpu, settings.cpus_per_actor, settings.node_labels)
    if any(model.embeddings is None for model in models.values()):
        pool.check()
        cluster.start(display.verbose)
    results = []
    for name, model in models.items():
        key = settings.key_of(name)
        if model.embeddings is None:
            rows = embed(name, key, model, embedded, settings.cache, pool, display)
        else:
            rows = precomputed(key, model, embedded, settings.output / "inputs")
        rows.check_widths(embedded, key)
        scored = _score(name, model, tasks, rows, data, settings, display)
        forget(rows, settings.cache)
        display.table(name, ["score, %", "value", "95 %", "chance", "n"], _table(scored))
        results += scored
    write_report(settings.output, {type(task) for task in tasks})
    display.line(f"results: {settings.output}/*/*/*/result.json")
    display.line(f"page: {settings.output / 'report.html'}")
    return results


@contextmanager
def _keys_of(name: str, settings: EvaluateSettings) -> Iterator[None]:
    """Errors about keys of a model name them as the config sets them: at its top, or below `models`."""
    try:
        yield
    except UserError as error:
        key = "wise_ft" if settings.wise_ft else f"models.{name}" if settings.models else ""
        raise (error.under(key) if key else error) from None


def _score(
    name: str,
    model: ModelSettings,
    tasks: Sequence[Task],
    rows: Rows,
    data: dict[str, Any],
    settings: EvaluateSettings,
    display: Display,
) -> list[Result]:
    """Score one model on all tasks; an earlier result of the same rows and task is read from disk."""
    results: list[Result] = []
    with (
        display.task(f"score {name}", len(tasks)) as progress,
        interrupts.keeping(lambda: f"{name}: {len(results)} of {len(tasks)} results are kept"),
    ):
        for done, task in enumerate(tasks):
            progress.update(done, f"{task.info.title.lower()} of {task.dataset}")
            inputs = [one.fingerprint for one in task.inputs()]
            identity = digest([_FORMAT, rows.fingerprint, rows.scale, inputs, task.info.name, task.identity])
            result = find_result(settings.output, name, task.dataset, task.info.name, identity)
            if result is None:
                scored = task.score(rows)
                about = {
                    "identity": identity,
                    "pretrained": model.pretrained,
                    "embedder": str(model.embeddings or model.embedder),
                    "arguments": {} if model.embeddings else model.arguments(),
                    "fingerprint": rows.fingerprint,
                    "data": data[task.place] | {"fingerprint": digest(inputs)},
                }
                result = Result(name, task.dataset, task.info.name, about=about, **vars(scored))
                result.write(settings.output, task.info)
            results.append(result)
        progress.update(len(tasks))
    return results


def _table(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for result in results:
        name = result.main
        low, high = result.intervals.get(name, (None, None))
        base = result.baselines.get(name, {})
        rows.append(
            [
                path_of(result.task, result.dataset, name),
                f"{result.scores[name]:.1f}",
                "" if low is None else f"{low:.1f} to {high:.1f}",
                f"{base['chance']:.1f}" if "chance" in base else "",
                f"{result.sample_sizes[name]:,}" if name in result.sample_sizes else "",
            ]
        )
    return rows


def _run(settings: EvaluateSettings, display: Display) -> None:
    evaluate(settings, display)


def main(arguments: Sequence[str], prog: str = "python -m") -> int:
    """The exit code."""
    return run_program("evaluation", PURPOSE, EvaluateSettings, _run, arguments, prog=prog)


if __name__ == "__main__":
    begin("evaluation", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
