"""In a worker under test: waits at the points of a schedule until whoever injects its faults lets it go on."""

import json
import os
import time
from pathlib import Path
from typing import Any

_HERE: dict[str, Any] = {}  # the points of this process; it trains one run


def install(folder: Path, rank: int, workers: int) -> None:
    """Put the points of `folder`/schedule.json into the loop of this process."""
    faults = [(number, *fault) for number, fault in enumerate(json.loads((folder / "schedule.json").read_text()))]
    mine = {(phase, step): number for number, phase, step, of in faults if of % workers == rank}
    _HERE.update(folder=folder, mine=mine, step=0)
    if "installed" not in _HERE:
        _HERE["installed"] = True
        _patch()


def begin(step: int) -> None:
    """The step, from 1, that this worker does from now on."""
    _HERE["step"] = step


def reach(phase: str, step: int | None = None) -> None:
    """A point: if a fault is due here, tell so, once in all attempts, and wait until it has been injected.

    `step`: of a checkpoint that is saved while training goes on.
    """
    number = _HERE["mine"].get((phase, step or _HERE["step"]))
    if number is None:
        return
    told, go = _HERE["folder"] / f"at-{number}", _HERE["folder"] / f"go-{number}"
    if told.exists():
        return
    part = told.with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(told)
    while not go.exists():
        time.sleep(0.02)


def _patch() -> None:
    import ray.train
    import torch

    from training import loop, step
    from training.checkpoint import Snapshot
    from training.encoder import DualEncoder
    from training.saver import Saver

    def before(module: Any, name: str, phase: str) -> None:
        inner = getattr(module, name)

        def outer(*arguments: Any, **keys: Any) -> Any:
            reach(phase)
            return inner(*arguments, **keys)

        setattr(module, name, outer)

    before(DualEncoder, "forward", "forward")
    before(loop, "validate_held_out", "evaluation")
    before(loop, "_device_name", "end")
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    register_optimizer_step_pre_hook(lambda *_: reach("optimizer"))

    weighted, report, write, save = step.weighted, ray.train.report, Snapshot.write, Saver._save

    def in_backward(loss: torch.Tensor) -> torch.Tensor:
        whole = weighted(loss)
        if whole.requires_grad:
            whole.register_hook(lambda _: reach("backward"))
        return whole

    def reporting(metrics: dict[str, Any], **keys: Any) -> None:
        reach("report")
        report(metrics, **keys)

    def saving(saver: Saver, snapshot: Snapshot, *rest: Any) -> None:
        save(saver, snapshot, *rest)
        reach("upload", snapshot.step)  # complete, and not reported yet

    def writing(snapshot: Snapshot, folder: Path) -> None:
        write(snapshot, folder)
        state = folder / "digests.json"
        whole = state.read_bytes()
        state.write_bytes(whole[: len(whole) // 2])  # a kill here leaves a file that is half written
        reach("checkpoint", snapshot.step)
        state.write_bytes(whole)

    step.weighted, ray.train.report = in_backward, reporting  # type: ignore[assignment]
    Snapshot.write, Saver._save = writing, saving  # type: ignore[method-assign,assignment]
