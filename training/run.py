"""One run, seen from the driver: check, plan, cache features, fit once, report. The same call again resumes or says it is done.

A run's folder, `storage/name`:

    config.yaml      resolved          metrics.jsonl   one line a report
    result.json      at the end        report.html     at the end
    checkpoint_.../  newest k          best/           by a named metric, if one is named
"""

import fcntl
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from evaluation.suite import HeldOut, Scores, held_out, mean_recalls
from pipelines import banks, cluster
from pipelines.batch import columns
from pipelines.display import Display
from pipelines.order import Order
from pipelines.prepare import code_version
from pipelines.prepared import Prepared
from pipelines.settings import UserError
from pipelines.stream import Stream
from pipelines.tokenizer import TextTokenizer
from training.config import TrainSettings
from training.plan import Plan
from training.resources import Cluster, plan_resources
from training.towers import ImageFeatures, TextFeatures


def run(settings: TrainSettings, display: Display) -> dict[str, Any]:
    """Train, or go on training, and return the content of `result.json`."""
    folder = (settings.storage / settings.name).absolute()
    prepared = Prepared.open(settings.data.path)
    data = held_out(prepared, settings.evaluation, settings.data.split_seed)
    order = _order(settings, prepared)
    done = _earlier(folder, settings, prepared)
    if done is not None:
        display.line(f"{folder}: finished before, at step {done['step']}; give another name=, or overwrite=true to train again")
        _show(done, display, folder)
        return done
    with _only_one(folder):
        phases = _Phases()
        cluster.start(display.verbose)
        _check_metric(settings, data)
        size = _cluster(settings)
        # Refuse before the first picture is decoded.
        locked = settings.image_tower.mode == "locked" and settings.text_tower.mode == "locked"
        data_cpus = plan_resources(settings.resources, not locked, size)
        phases.end("start")
        plan = _plan(settings, prepared, data, order, display, size)
        phases.end("features")
        (folder / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        _announce(plan, display)
        returned = _fit(plan, folder, data_cpus, display)
        phases.end("training")
        result = _result(plan, folder, returned, phases)
        from training.report import write_report

        write_report(folder, result, plan.held_out)
        phases.end("report")
        result["seconds"] = phases.seconds
        _write(folder / "result.json", json.dumps(result, indent=1))
    _show(result, display, folder)
    return result


def _order(settings: TrainSettings, prepared: Prepared) -> Order:
    known = prepared.split_ids(settings.data.split_seed)
    if settings.data.split not in known:
        raise UserError(f"data.split: '{settings.data.split}' is unknown; {prepared.path} has {', '.join(known)}")
    if settings.data.split == settings.evaluation.split:
        raise UserError(f"evaluation.split: '{settings.evaluation.split}' is what the run trains on; hold another split out")
    order = Order(
        str(prepared.path),
        prepared.fingerprint,
        settings.data.split,
        settings.data.split_seed,
        settings.seed,
        settings.global_batch_size,
    )
    order.check()
    return order


def _earlier(folder: Path, settings: TrainSettings, prepared: Prepared) -> dict[str, Any] | None:
    """What an earlier run of this name left: its result, nothing, or a reason to refuse."""
    if settings.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        return None
    old = yaml.safe_load((folder / "config.yaml").read_text())
    new = settings.model_dump(mode="json")
    changed = [
        f"{key}: {old.get(key)!r} -> {new[key]!r}" for key in settings.identity() if _plain(old.get(key)) != _plain(new[key])
    ]
    if changed:
        raise UserError(
            f"name: {folder} holds a run of another config ({'; '.join(changed)[:400]}); give another name=, or overwrite=true"
        )
    for path in sorted(folder.glob("checkpoint_*/checkpoint.json")):
        found = json.loads(path.read_text())["dataset"]["fingerprint"]
        if found != prepared.fingerprint:
            raise UserError(
                f"data.path: {folder} was trained on other content ({found[:12]}) than {prepared.path} holds now "
                f"({prepared.fingerprint[:12]}); give another name=, or overwrite=true"
            )
    result = folder / "result.json"
    return json.loads(result.read_text()) if result.exists() else None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One process a run. The lock goes with the process, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"name: another process is training {folder}; wait for it, or give another name=") from None
        yield


class _Phases:
    """Wall time by phase, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.monotonic()

    def end(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name], self._start = round(now - self._start, 1), now


def _cluster(settings: TrainSettings) -> Cluster:
    import ray

    found = ray.cluster_resources()
    return Cluster(found.get("CPU", 0), found.get("GPU", 0))


def _check_metric(settings: TrainSettings, data: HeldOut) -> None:
    """A misspelt `checkpoint.best` would keep nothing and say nothing."""
    best = settings.checkpoint.best
    if best is None:
        return
    ways = [
        f"retrieval/{data.dataset}/{way}_recall@{k}"
        for way in ("image_to_text", "text_to_image")
        for k in data.settings.recall_at
    ]
    labels = [f"zero_shot/{data.dataset}_{label}/{m}" for label in data.classes for m in ("top1", "top5", "mean_per_class")]
    if best not in (*ways, *labels, "loss"):
        raise UserError(f"checkpoint.best: '{best}' is no metric of this run; it has: loss, {', '.join([*ways, *labels])}")


def _plan(settings: TrainSettings, prepared: Prepared, data: HeldOut, order: Order, display: Display, size: Cluster) -> Plan:
    """Tokenizer, banks of locked towers, streams."""
    image, text = settings.image_tower, settings.text_tower
    actors = max(1, int(size.cpus))
    tokenizer = _tokenizer(settings, prepared, order)
    image_bank = text_bank = prompt_bank = None
    if image.mode == "locked":
        identity = image.identity("image_tower")
        image_bank = banks.image_bank(prepared, image.image_size, ImageFeatures, (image,), identity, actors, display)
    if text.mode == "locked":
        identity = text.identity("text_tower")
        text_bank, prompt_bank = banks.text_banks(
            prepared, [prepared.texts(), data.prompts], TextFeatures, (text, tokenizer), identity, actors, display
        )
    wanted = columns(settings.objective.needs, image_bank is not None, text_bank is not None)
    stream = Stream(
        prepared=prepared,
        columns=frozenset(wanted),
        seed=settings.seed,
        image_size=image.image_size,
        augment=settings.data.augment,
        tokenizer=tokenizer,
        image_bank=image_bank,
        text_bank=text_bank,
    )
    held_out_images = Stream(
        prepared=prepared,
        columns=frozenset({"image_features" if image_bank else "image"}),
        image_size=image.image_size,
        image_bank=image_bank,
    )
    return Plan(settings, order, stream, data, held_out_images, tokenizer, text_bank, prompt_bank, code_version())


def _tokenizer(settings: TrainSettings, prepared: Prepared, order: Order) -> TextTokenizer:
    """The text tower's own, or one trained on the training split's captions, in the order of sample ids."""
    captions = prepared.table("captions").take(order.ids)["captions"].to_pylist()
    return settings.text_tower.tokenizer([text for texts in captions for text in texts])


def _announce(plan: Plan, display: Display) -> None:
    settings, order = plan.settings, plan.order
    left = len(order.ids) - order.steps_per_epoch * settings.global_batch_size
    display.line(
        f"{settings.name}: {settings.objective.name} on {plan.stream.prepared.name}, {len(order.ids):,} pairs, "
        f"{settings.epochs} epochs x {order.steps_per_epoch} steps of {settings.global_batch_size}"
        + (f" ({left} pairs left over in each epoch, others each time)" if left else "")
    )


def _fit(plan: Plan, folder: Path, data_cpus: float, display: Display) -> dict[str, Any]:
    """The one call of Ray Train, with the display reading metrics.jsonl meanwhile."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from training.loop import train_worker
    from training.metrics_log import Recorder

    settings, wanted = plan.settings, plan.settings.resources
    tensorboard = settings.tensorboard
    if tensorboard and find_spec("tensorboard") is None:
        raise UserError("tensorboard: the package is not installed; pip install 'raylign[tensorboard]', or tensorboard=false")
    if tensorboard is None:
        tensorboard = find_spec("tensorboard") is not None
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"plan": plan, "data_cpus": data_cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=wanted.num_workers,
            use_gpu=wanted.use_gpu,
            resources_per_worker={"CPU": wanted.cpus_per_worker} | ({"GPU": 1} if wanted.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=ray.train.FailureConfig(max_failures=wanted.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=settings.checkpoint.keep),
            callbacks=[Recorder(folder, settings.checkpoint.best, settings.checkpoint.mode, tensorboard)],
            logging_config=ray.train.LoggingConfig(log_level="INFO" if display.verbose else "ERROR"),
        ),
    )
    with _Follower(folder, plan, display):
        try:
            returned = trainer.fit().return_value
        except (ray.train.TrainingFailedError, RuntimeError) as error:
            if display.verbose:
                raise
            cause = _root_cause(error)
            raise UserError(
                f"training stopped: {cause}; --verbose shows all, the same command goes on from the last checkpoint"
            ) from None
    if "failed" in returned:
        raise UserError(f"training stopped: {returned['failed']}")
    return returned


def _root_cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first: BaseException = next(iter(failures.values()), error)
    first = getattr(first, "cause", None) or first.__cause__ or first
    return f"{type(first).__name__}: {str(first).strip().splitlines()[-1] if str(first).strip() else ''}"


class _Follower:
    """Draws progress from metrics.jsonl in a thread, while `fit` blocks."""

    def __init__(self, folder: Path, plan: Plan, display: Display):
        self._path, self._plan, self._display = folder / "metrics.jsonl", plan, display
        self._restarts = folder / "restarts.jsonl"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        from training.metrics_log import read_metrics

        restarts = len(read_metrics(self._restarts))
        with self._display.task("train", self._plan.total_steps) as task:
            shown = -1
            while True:
                ended = self._stop.wait(0.5)
                lines = read_metrics(self._path)
                found = read_metrics(self._restarts)
                for line in found[restarts:]:
                    self._display.line(f"worker lost, going on from the last checkpoint: {'; '.join(line['workers'].values())}")
                restarts = len(found)
                if lines and lines[-1]["step"] != shown:
                    line = lines[-1]
                    shown = line["step"]
                    task.update(
                        shown,
                        f"loss {line['loss']:.3f}  {line['samples_per_second']:,.0f} samples/s  waiting for data {line['data_wait']:.0%}",
                    )
                if ended:
                    return


def _result(plan: Plan, folder: Path, returned: dict[str, Any], phases: _Phases) -> dict[str, Any]:
    """All that is known at the end; scores are of the last step, on the held-out split."""
    import numpy as np

    from evaluation.suite import score
    from training.checkpoint import newest_checkpoint
    from training.metrics_log import read_metrics

    rows = np.load(newest_checkpoint(folder) / "held_out.npz")
    scores: Scores = score(plan.held_out, rows["images"], rows["texts"], rows["prompts"])
    history = read_metrics(folder / "metrics.jsonl")
    prepared = plan.stream.prepared
    packages = ("ray", "torch", "torchvision", "transformers", "timm", "pandas", "pillow", "optuna")
    return {
        "name": plan.settings.name,
        "step": returned["step"],
        "epochs": plan.settings.epochs,
        "samples": returned["samples"],
        "loss": history[-1]["loss"],
        "metrics": scores.metrics | mean_recalls(scores.metrics),
        "baselines": scores.baselines,
        "sample_sizes": scores.sample_sizes,
        "dataset": {
            "name": prepared.name,
            "path": str(prepared.path),
            "fingerprint": prepared.fingerprint,
            "train_samples": len(plan.order.ids),
            "held_out_samples": len(plan.held_out.sample_ids),
            "split_seed": plan.settings.data.split_seed,
            "counts": prepared.manifest["counts"],
            "licence": prepared.manifest["licence"],
            "attribution": prepared.manifest["attribution"],
        },
        "seconds": phases.seconds,
        "versions": {"python": platform.python_version(), "raylign": plan.code_version} | {p: version(p) for p in packages},
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "workers": plan.settings.resources.num_workers,
        }
        | {"device": returned["device"]},
        "seed": plan.settings.seed,
    }


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _show(result: dict[str, Any], display: Display, folder: Path) -> None:
    """The headline table, and where the page is."""
    scores = Scores(
        {k: v for k, v in result["metrics"].items() if k in result["baselines"]},
        result["baselines"],
        result["sample_sizes"],
    )
    data = result["dataset"]
    title = f"{result['name']}: {data['held_out_samples']} held-out pairs of {data['name']}, seed {result['seed']}, step {result['step']}"
    display.table(title, Scores.HEADER, scores.rows())
    display.line(f"report: {folder / 'report.html'}")
