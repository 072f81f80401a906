"""`python -m evaluation CONFIG.yaml`: set tasks to models, and write what came of it down for tables and for people."""

import sys
from collections.abc import Sequence
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
from pipelines.program.settings import digest

PURPOSE = """Score anything that embeds images and texts: zero-shot classification, retrieval, SugarCrepe, linear and few-shot
probes, corruptions and effective robustness, on prepared datasets and on the layouts of others. Embeds with Ray Data, once for
all tasks; writes OUTPUT/MODEL/DATASET/TASK/result.json and OUTPUT/report.html, which compares all models there. No data is
downloaded."""

_FORMAT = 1  # of results; another one, and all are scored anew


def evaluate(settings: EvaluateSettings, display: Display) -> list[Result]:
    """Embed, score, write results and the page, and return all that was asked for."""
    from evaluation.embed import embed, forget
    from evaluation.embedder import check_embedder
    from evaluation.precomputed import precomputed
    from evaluation.report import write_report
    from pipelines.features import feature_store
    from pipelines.program import cluster, path_keys

    contents = read_data(settings)
    tasks = plan(settings, contents)
    every = {one.fingerprint: one for task in tasks for one in task.wanted()}
    # What is among the rows of another is not embedded again.
    wanted = [one for one in every.values() if one.whole is None or one.whole.fingerprint not in every]
    data = {
        name: {
            "attribution": content.attribution,
            "coverage": content.coverage,
            "settings": shown_tree(settings.data[name].model_dump(mode="json")),
        }
        for name, content in contents.items()
    }
    models = settings.all_models()
    for name, model in models.items():
        if model.embeddings is None:
            model.check(settings.key_of(name))
    for place, key in ((settings.output, "output"), (settings.cache, "cache")):
        path_keys.check_folder(place, key)
    for model in models.values():
        if model.embeddings is None:
            check_embedder(model.embedder, model.arguments())
    if any(model.embeddings is None for model in models.values()):
        _check_room(settings)
        cluster.start(display.verbose)
    pool = feature_store.Pool(settings.actors, settings.use_gpu, settings.cpus_per_actor)
    results = []
    for name, model in models.items():
        key = settings.key_of(name)
        if model.embeddings is None:
            rows = embed(name, key, model, wanted, settings.cache, pool, display)
        else:
            rows = precomputed(key, model, wanted, settings.output / "inputs")
        rows.check_widths(wanted, key)
        found = _score(name, model, tasks, rows, data, settings, display)
        forget(rows, settings.cache)
        display.table(name, ["score, %", "value", "95 %", "chance", "n"], _table(found))
        results += found
    write_report(settings.output, {type(task) for task in tasks})
    display.line(f"results: {settings.output}/*/*/*/result.json")
    display.line(f"page: {settings.output / 'report.html'}")
    return results


def _check_room(settings: EvaluateSettings) -> None:
    """Raises `UserError` where the Ray that this process starts would wait for ever; a cluster may grow."""
    from pipelines.program import cluster

    size = cluster.own_machine()
    if size is None:
        return
    cpus, gpus = size
    if settings.use_gpu and settings.actors > gpus:
        raise UserError(f"use_gpu: {settings.actors} x 1 GPU, and this machine has {gpus}; pass use_gpu=false, or fewer actors")
    if settings.cpus_per_actor > cpus:
        raise UserError(
            f"cpus_per_actor: {settings.cpus_per_actor} CPUs, and this machine has {cpus}; pass cpus_per_actor={cpus} or less"
        )
    if settings.actors * settings.cpus_per_actor > cpus:
        raise UserError(
            f"actors: {settings.actors} x {settings.cpus_per_actor} CPUs = {settings.actors * settings.cpus_per_actor}, and this "
            f"machine has {cpus}; pass actors={cpus // settings.cpus_per_actor}"
        )


def _score(
    name: str,
    model: ModelSettings,
    tasks: Sequence[Task],
    rows: Rows,
    data: dict[str, Any],
    settings: EvaluateSettings,
    display: Display,
) -> list[Result]:
    """Set all tasks to one model; what was scored before, of the same rows, is taken from disk."""
    results: list[Result] = []
    with (
        display.task(f"score {name}", len(tasks)) as progress,
        interrupts.keeping(lambda: f"{name}: {len(results)} of {len(tasks)} results are kept"),
    ):
        for done, task in enumerate(tasks):
            progress.update(done, f"{task.info.title.lower()} of {task.dataset}")
            identity = digest(
                [_FORMAT, rows.fingerprint, rows.scale, [one.fingerprint for one in task.wanted()], task.info.name, task.identity]
            )
            result = find_result(settings.output, name, task.dataset, task.info.name, identity)
            if result is None:
                scored = task.score(rows)
                about = {
                    "identity": identity,
                    "pretrained": model.pretrained,
                    "embedder": str(model.embeddings or model.embedder),
                    "arguments": {} if model.embeddings else model.arguments(),
                    "fingerprint": rows.fingerprint,
                    "data": data[task.place] | {"fingerprint": digest([one.fingerprint for one in task.wanted()])},
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
