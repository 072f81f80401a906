"""The driver of one run: check, plan, store features, train, report. The same call again resumes, or says that the run is done.

A run's folder, `storage/name`:

    config.yaml      resolved          metrics.jsonl   one line per report
    result.json      at the end        report.html     after each evaluation (live_page.py), and at the end
    sessions.jsonl   each call of the command: its phases, its workers, how it ended (sessions.py)
    test.json        scores of the best checkpoint on the test split, if there is one
    checkpoint_.../  newest k          best/           by a named metric, if one is named
    held_out.npz     embeddings of the held-out split at the end; held_out.json: their scores (held_out.py)
    trackers.json    the run's id in W&B and others, if there are any (trackers.py)
    towers/          locked towers, so that the folder opens without the weights that they came from (saved_towers.py)
"""

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from evaluation.suite import Scores
from pipelines.dataset.prepared import Prepared
from pipelines.features.pool import Pool
from pipelines.io import storage
from pipelines.program import cluster, interrupts, path_keys, yaml_text
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.own_class import as_data
from pipelines.program.settings import difference, read_yaml, validate
from training.checkpoint import other_data
from training.checkpoint_registry import ABOUT, newest_checkpoint, newest_step, put, registered, settle
from training.config import TrainSettings
from training.data import check_metric, open_data
from training.diagnosis import Finding, diagnose
from training.dry_run import check_build, check_towers
from training.held_out import HELD_OUT, chances_of, read_held_out, scores_at_start
from training.lock import leased, taken
from training.metrics_file import read_metrics, unusable_reasons
from training.plan import (
    Plan,
    keep_towers,
    make_plan,
    needs_features,
    pretrained_towers,
    tower_cache,
)
from training.resources import (
    Cluster,
    check_driver,
    current_cluster,
    expected_cluster,
    plan_resources,
    range_in_words,
    waits_to_grow,
)
from training.run_store import emptied, fetched, finished, kept, place_of
from training.sessions import SESSIONS, Session, history
from training.trackers import check_trackers, tracked
from training.warmup import warmup_warning
from training.weight_sources import check_sources
from training.working_copy import settled, working_copy


def run(settings: TrainSettings, display: Display) -> dict[str, Any]:
    """Train, or resume training, and return the content of `result.json`."""
    place = storage.join(storage.absolute(settings.storage), settings.name)
    if isinstance(place, Path):
        return _run(settings, place, display)
    with working_copy(place, display) as folder:
        return _run(settings, folder, display)


def _run(settings: TrainSettings, folder: Path, display: Display) -> dict[str, Any]:
    """`folder`: the run's, or the working copy of one in a store."""
    path_keys.check_folder(folder, "storage")
    path_keys.check_kind(folder, "training run", "name")
    check_trackers(settings)
    data = open_data(settings)  # checks the test split too, before the hours of training
    check_metric(settings, [split for _, split in data.held_out])
    settings.optimizer.check()
    done = None if settings.overwrite else _earlier(folder, settings, data.prepared)
    if done is not None:
        with tracked(settings, folder, display, over=True):
            pass
        finished(folder)  # its process may have died before it had done this
        display.line(
            f"{place_of(folder)}: finished before, at step {done['step']}; give another name=, or overwrite=true to train again"
        )
        _show(done, display, folder)
        return done
    # What costs seconds to ask comes after what does not: imports of Ray, then of timm.
    if (size := expected_cluster()) is not None:
        _data_cpus(settings, size)
    if settings.overwrite or not registered(folder):  # a run with a checkpoint has its own copies of the weights
        check_sources(settings)
    from training.final_test import run_final_test  # these import Ray Train, which takes a second
    from training.live_page import live_page
    from training.placement import wait_for_earlier
    from training.ray_train import fit
    from training.report import write_report

    started_before = (folder / path_keys.LOCK).exists()
    replaces = settings.overwrite and folder.exists()  # an earlier run, which stays until all checks have passed
    session = Session(folder, data.order.steps_per_epoch * settings.epochs, replaces, chances_of(data.held_out[0][1]))
    with only_one(folder, display), session, interrupts.keeping(lambda: _kept(folder, replaces)):
        wait_for_earlier(folder, display)
        run_folder = None if replaces else folder
        checkpoint = None
        if not replaces:
            checkpoint = settle(folder, lambda text: display.line(text.replace(str(folder), str(place_of(folder)))))
            settled(folder)
            if started_before:
                _say_where(folder, data.order.steps_per_epoch * settings.epochs, display)
        plan = None
        if needs_features(settings):
            check_towers(pretrained_towers(settings, run_folder, checkpoint).values(), tower_cache(data.prepared))
        else:
            plan = make_plan(data, Pool(0), display, run_folder, checkpoint)
            check_build(plan)
        cluster.start(display.verbose)
        check_driver(settings.resources)
        size = current_cluster()
        data_cpus = _data_cpus(settings, size)
        session.phase("features")
        if plan is None:
            plan = make_plan(data, _pool(settings, size), display, run_folder, checkpoint)
            check_build(plan)
        if replaces:
            _empty(folder)
            emptied(folder)
            replaces = False
            session.release()
        keep_towers(plan, folder)
        session.phase("training")
        put(folder / "config.yaml", yaml_text.dump(plan.settings.model_dump(mode="json")))
        kept(folder, "config.yaml")
        _announce(plan, display)
        with tracked(plan.settings, folder, display), live_page(plan, folder, display):
            returned = fit(plan, folder, data_cpus, display)
        fetched(folder, HELD_OUT, *(scored.file for scored in plan.scored))
        if plan.test is not None:
            session.phase("test")
        tested = {} if plan.test is None else {"test": run_final_test(plan, folder, data_cpus, display)}
        session.phase("report")
        costs = history(folder, time.time())
        result = result_of(plan, folder, returned, costs.pop("seconds")) | tested | {"history": costs}
        # The result first: if writing the page fails, the training is still finished.
        put(folder / "result.json", json.dumps(result, indent=1))
        kept(folder, "result.json")
        write_report(folder, result, plan.held_out)
        result["seconds"] = history(folder, time.time())["seconds"]
        put(folder / "result.json", json.dumps(result, indent=1))
        kept(folder, "report.html", "tensorboard", "result.json")
    finished(folder)
    _show(result, display, folder)
    return result


def _earlier(folder: Path, settings: TrainSettings, prepared: Prepared) -> dict[str, Any] | None:
    """The result of an earlier run of this name, or None. Raises `UserError` if it was a different run."""
    file = folder / "config.yaml"
    if not file.exists():
        if registered(folder):
            remedy = "copy it too, give another name=, or pass overwrite=true"
            raise UserError("name", f"{folder} holds checkpoints and no config.yaml", remedy)
        return None
    # Validated, so that a run of an earlier version gets the defaults of keys added since.
    with as_data():
        old = validate(TrainSettings, read_yaml(file), str(file))
    changed = difference(old.identity(), settings.identity())
    if changed:
        problem = f"{folder} holds a run of another config ({'; '.join(changed[:4])})"
        raise UserError("name", problem, "give another name=, or pass overwrite=true")
    for checkpoint in reversed(registered(folder)):
        try:
            trained_on = json.loads((checkpoint / ABOUT).read_text(encoding="utf-8"))["dataset"]["fingerprint"]
        except (OSError, ValueError, LookupError, TypeError):  # damaged, which `settle` reports
            continue
        if trained_on != prepared.fingerprint:
            raise other_data(folder, trained_on, prepared)
        break
    result = folder / "result.json"
    if not result.exists():
        return None
    try:
        earlier = json.loads(result.read_text(encoding="utf-8"))
        earlier["step"]
        return earlier
    except (ValueError, LookupError, TypeError):
        raise UserError("name", f"{result} is truncated or altered", "delete it, and the same command writes it again") from None


@contextmanager
def only_one(folder: Path, display: Display) -> Iterator[None]:
    """Lock the folder: one process per run. A run that never began leaves no folder. Raises `UserError` if another one has it.

    The file's lock ends with the process, and is all on one machine; a disk that machines share may keep locks to each of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / path_keys.LOCK
    with lock.open("a") as file:
        if not (_lock(file) or _lock(file, 0.5)):  # `raylign status` holds it for an instant
            raise taken(folder)
        with leased(folder, lock, display):
            try:
                yield
            except UserError:
                if {path.name for path in folder.iterdir()} <= {path_keys.LOCK, SESSIONS}:
                    shutil.rmtree(folder)
                raise


def _lock(file: IO[str], after: float = 0) -> bool:
    time.sleep(after)
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _empty(folder: Path) -> None:
    """Delete everything in a run's folder except its lock, which is held."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != path_keys.LOCK:
            path.unlink()


def _data_cpus(settings: TrainSettings, size: Cluster) -> float:
    """CPUs to reserve for reading and decoding. Raises `UserError` if the requested resources do not fit."""
    locked = settings.image_tower.mode == "locked" and settings.text_tower.mode == "locked"
    return plan_resources(settings.resources, not locked, size)


def _pool(settings: TrainSettings, size: Cluster) -> Pool:
    """Actors for features of locked towers: one per GPU or per CPU, since all are free before training starts."""
    wanted = settings.resources
    actors = size.gpus if wanted.use_gpu else size.cpus
    if waits_to_grow(wanted, size):  # the size to which the cluster will grow is unknown
        actors = max(actors, wanted.most_workers if wanted.use_gpu else wanted.data_cpus)
    return Pool(max(1, int(actors)), wanted.use_gpu, labels=wanted.worker_labels if wanted.use_gpu else wanted.data_labels)


def _kept(folder: Path, replaces: bool) -> str:
    """A message about what an interrupted run keeps; `replaces`: the earlier run is still there."""
    if replaces:
        return f"the earlier run in {place_of(folder)} was not replaced yet (with overwrite=true it would be)"
    step = newest_step(folder)
    if step is None:
        return "no checkpoint was saved yet"
    return f"step {step:,} is kept in {storage.join(place_of(folder), newest_checkpoint(folder).name)}"


def _say_where(folder: Path, steps: int, display: Display) -> None:
    """Show at which step a run that was started before resumes."""
    step = newest_step(folder)
    if step is None:
        display.line(f"{place_of(folder)}: started before, but there is no checkpoint to resume from; training begins at step 0")
    else:
        display.line(f"{place_of(folder)}: resuming from step {step:,} of {steps:,}")


def _announce(plan: Plan, display: Display) -> None:
    settings, order = plan.settings, plan.order
    left = order.rows - order.steps_per_epoch * settings.global_batch_size
    display.line(
        f"{settings.name}: {settings.objective.name} on {plan.stream.prepared.name}, {order.rows:,} pairs"
        + (f" (data.fraction={order.fraction:g})" if order.fraction < 1 else "")
        + ", "
        f"{settings.epochs} epochs x {order.steps_per_epoch} steps of {settings.global_batch_size}"
        + (f" ({left} pairs left over in each epoch, others each time)" if left else "")
    )
    if settings.start is not None:
        names = [name for name in ("temperature", "bias") if settings.start.temperature and hasattr(settings.objective, name)]
        values = ", ".join(f"{name} {getattr(settings.objective, name):.4g}" for name in names)
        display.line(f"{settings.name}: started from {settings.start.label()}{f' with {values}' if values else ''}")
    if words := range_in_words(settings.resources, settings.global_batch_size):
        display.line(f"{settings.name}: {words}")
    if warning := warmup_warning(settings.schedule.warmup_steps, plan.total_steps):
        display.line(f"warning: {warning}")


def result_of(plan: Plan, folder: Path, returned: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """The content of `result.json`; its scores are the last step's on the held-out split."""
    held_out = read_held_out(folder)
    history = read_metrics(folder / "metrics.jsonl")
    prepared, settings = plan.stream.prepared, plan.settings.model_dump(mode="json")
    numbers = [number for number, _ in groupby(line["workers"] for line in history if "workers" in line)]
    workers = numbers or [plan.settings.resources.most_workers]  # an earlier version wrote none
    packages = ("ray", "torch", "torchvision", "transformers", "timm", "pandas", "pillow", "optuna")
    return {
        "name": plan.settings.name,
        "step": returned["step"],
        "epochs": plan.settings.epochs,
        "samples": returned["samples"],
        "loss": next((line["loss"] for line in reversed(history) if "loss" in line), None),
        "skipped": returned["skipped"],
        **{name: held_out[name] for name in ("metrics", "baselines", "sample_sizes")},
        **scores_at_start(history),
        "held_out_loss": next((line["held_out_loss"] for line in reversed(history) if "held_out_loss" in line), None),
        "findings": [asdict(finding) for finding in diagnose(history, settings, chances_of(plan.held_out), finished=True)],
        "dataset": {
            "name": prepared.name,
            "path": str(prepared.path),
            "fingerprint": prepared.fingerprint,
            "train_samples": plan.order.rows,
            "fraction": plan.settings.data.fraction,
            "held_out_samples": len(plan.held_out.sample_ids),
            "split_seed": plan.settings.data.split_seed,
            "validation": plan.settings.data.validation,
            "counts": prepared.manifest["counts"] | {"unusable": unusable_reasons(folder)},
            "shuffled": _shuffled(plan),
            "licence": prepared.manifest["licence"],
            "attribution": prepared.manifest["attribution"],
        },
        "seconds": seconds,
        "versions": {"python": platform.python_version(), "raylign": plan.code_version} | {p: version(p) for p in packages},
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "workers": workers[-1],
            "worker_history": workers,
            "device": returned["device"],
        },
        "seed": plan.settings.seed,
    }


def _shuffled(plan: Plan) -> int:
    """Number of training samples that have another row's captions."""
    prepared = plan.stream.prepared
    if not prepared.shuffled or plan.order.fraction == 1:
        return prepared.shuffled
    return sum(prepared.rows(plan.order.ids, ("shuffled",))["shuffled"].to_pylist())


def _show(result: dict[str, Any], display: Display, folder: Path) -> None:
    """Print the headline table and the path of the page."""
    scores = Scores(
        {k: v for k, v in result["metrics"].items() if k in result["baselines"]},
        result["baselines"],
        result["sample_sizes"],
    )
    data = result["dataset"]
    title = (
        f"{result['name']}: {data['held_out_samples']} held-out pairs of {data['name']}, "
        f"seed {result['seed']}, step {result['step']}"
    )
    display.table(title, Scores.HEADER, scores.rows())
    if test := result.get("test"):
        tested = Scores({k: test["metrics"][k] for k in test["baselines"]}, test["baselines"], test["sample_sizes"])
        title = f"step {test['step']}, chosen by {test['metric']}, on {test['samples']} pairs of split {test['split']}"
        display.table(title, Scores.HEADER, tested.rows())
    if result.get("skipped"):
        display.line(f"{result['skipped']:,} of {result['step']:,} steps were skipped: their loss or gradient was not finite")
    for finding in result.get("findings", ()):  # an earlier version has none
        display.line(f"{Finding(**finding)}")
    display.line(f"report: {storage.join(place_of(folder), 'report.html')}")
