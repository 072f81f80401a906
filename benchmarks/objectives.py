"""Every objective on OpenMoji with locked towers, at its defaults and with one setting changed, and what each costs.

    python -m benchmarks.objectives            # about 10 minutes on 2 cores; needs data/openmoji (make demo)

Scores: 20 epochs, 5 seeds, each with another split of the concepts; the last step's weights. The settings that are changed in
the second table were chosen on three other seeds (10, 11, 12).
Step: one optimizer step of such a run (teacher, encoder, loss, backward, optimizer, state), objectives in turn, median; memory
is what is alive at its peak, parameters and state included. Loss: forward and backward of the objective alone, on 4,096 random
pairs of width 512.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.memory import peak_of
from benchmarks.runs import machine, plan_of, score, worker
from pipelines.dataset.batch import Batch, Needs
from pipelines.program.display import Display
from training.build import build_state
from training.objectives import ObjectiveUnion
from training.objectives.base import Embeddings, ObjectiveSettings, Task
from training.plan import Plan
from training.step import train_step

CONFIG = Path("training/configs/openmoji.yaml")
RESULT = Path("docs/benchmarks")
EPOCHS, ROUNDS, STEPS = 20, 15, 10
ROWS, WIDTH = 4096, 512
SCORES = {
    "R@1": "retrieval/openmoji/mean_recall@1",
    "R@10": "retrieval/openmoji/mean_recall@10",
    "zero-shot subgroup": "zero_shot/openmoji_subgroup/top1",
    "zero-shot group": "zero_shot/openmoji_group/top1",
}
# Defaults are the papers', for batches and data many times larger. What small ones ask for:
CHANGED: dict[str, dict[str, Any]] = {
    "siglip": {"bias": -5},
    "psd": {"soft_fraction": 0.5},
    "sogclr": {"temperature": 0.07},
    "isogclr": {"temperature": 0.05, "min_temperature": 0.04},
    "vicreg": {"covariance": 25},
    "onlineclr": {"temperature": 0.07},
}


def members() -> dict[str, type[ObjectiveSettings]]:
    """Of the registry, by name, those that see one view of an image and no stored features."""
    everything = {member.model_fields["name"].default: member for member in get_args(get_args(ObjectiveUnion)[0])}
    return {name: member for name, member in everything.items() if member().needs in (Needs(), Needs(ids=True))}


def plan(name: str, seed: int, display: Display, changed: dict[str, Any] | None = None) -> Plan:
    """A run of an objective at its defaults, but for what is changed."""
    keys: dict[str, Any] = {"name": name, "objective.name": name, "seed": seed, "data.split_seed": seed}
    keys |= {f"objective.{key}": value for key, value in (changed or {}).items()}
    return plan_of(CONFIG, keys | {"epochs": EPOCHS, "evaluation.every_epochs": EPOCHS}, display)


def label(name: str) -> str:
    """An objective of the second table, with what is changed."""
    return f"{name}, {', '.join(f'{key}={value}' for key, value in CHANGED[name].items())}"


def scores(seeds: list[int], display: Display) -> pd.DataFrame:
    """A row a run."""
    rows = []
    for name, changed in [*((name, None) for name in members()), *CHANGED.items()]:
        for seed in seeds:
            found, _ = score(plan(name, seed, display, changed))
            title = label(name) if changed else name
            rows.append({"objective": title, "seed": seed} | {score: found[path] for score, path in SCORES.items()})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def step_costs(display: Display) -> pd.DataFrame:
    """Milliseconds and MiB of an optimizer step."""
    made = {}
    for name in members():
        what = plan(name, 0, display)
        _, state = build_state(what, worker())
        made[name] = what, state, list(what.stream.training(what.order, 0, STEPS, worker()))
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(ROUNDS + 1):
        for name, (what, state, batches) in made.items():
            for batch in batches:
                start = time.perf_counter()
                train_step(state, batch, what.settings, 1e-4)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, (what, state, batches) in made.items():
        held = _bytes(state.encoder, state.objective, state.teacher) + 8 * sum(p.numel() for p in state.encoder.parameters())
        peak = peak_of(lambda: train_step(state, batches[0], what.settings, 1e-4))  # noqa: B023 - called at once
        rows.append({"objective": name, "step ms": 1000 * statistics.median(seconds[name]), "step MiB": held / 2**20 + peak})
    return pd.DataFrame(rows)


def _bytes(*modules: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for module in modules for t in (*module.parameters(), *module.buffers()))


def loss_costs() -> pd.DataFrame:
    """Milliseconds and MiB of forward, backward and update of the objective alone."""
    random = torch.Generator().manual_seed(0)
    image, text, more, still = (torch.randn(ROWS, WIDTH, generator=random) for _ in range(4))
    ids = torch.arange(ROWS)
    batch = Batch(image_id=ids, text_id=ids, teacher_image=F.normalize(image + more), teacher_text=F.normalize(text + still))
    sizes = {"num_images": ROWS, "num_texts": ROWS, "embed_dim": WIDTH, "image_width": WIDTH}
    task = Task(**sizes, steps_per_epoch=1, total_steps=100, seed=0)
    made = {name: member().build(task) for name, member in members().items()}

    def call(name: str) -> None:
        rows = [part.clone().requires_grad_() for part in (image, text)]
        loss = made[name](Embeddings(F.normalize(rows[0]), F.normalize(rows[1]), *rows), batch)
        loss.total.backward()
        made[name].update(batch, loss)

    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(4):
        for name in made:
            start = time.perf_counter()
            call(name)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    peaks = {name: peak_of(lambda: call(name)) for name in made}  # noqa: B023 - called at once
    return pd.DataFrame([{"objective": n, "loss ms": 1000 * statistics.median(seconds[n]), "loss MiB": peaks[n]} for n in made])


def write(runs: pd.DataFrame, costs: pd.DataFrame, command: str) -> str:
    """The table, and every run beside it."""
    base = costs.set_index("objective").loc["clip"]
    lines = [
        "# Objectives, side by side",
        "",
        f"`{command}`; {machine()}.",
        f"OpenMoji, locked towers, {EPOCHS} epochs, batch 128, every objective at its defaults; mean (sd) over "
        f"{runs['seed'].nunique()} seeds, each with another split of the concepts, in %.",
        f"Costs relative to CLIP ({base['step ms']:.1f} ms and {base['step MiB']:.0f} MiB a step; the loss alone on {ROWS:,} "
        f"pairs of width {WIDTH}: {base['loss ms']:.0f} ms and {base['loss MiB']:.0f} MiB).",
        "",
        f"| objective | {' | '.join(SCORES)} | step time | step memory | loss time | loss memory |",
        "|---|" + "---|" * (len(SCORES) + 4),
    ]
    for name in members():
        cost = costs.set_index("objective").loc[name]
        cells = _cells(runs, name) + [f"{cost[key] / base[key]:.2f}" for key in ("step ms", "step MiB", "loss ms", "loss MiB")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "With what small batches and data ask for, chosen on three other seeds:", ""]
    lines += [f"| objective | {' | '.join(SCORES)} |", "|---|" + "---|" * len(SCORES)]
    lines += [f"| {name} | {' | '.join(_cells(runs, name))} |" for name in ["clip", *map(label, CHANGED)]]
    lines += ["", "Every run: [objectives.csv](objectives.csv)."]
    RESULT.mkdir(parents=True, exist_ok=True)
    runs.to_csv(RESULT / "objectives.csv", index=False, float_format="%.4f")
    (RESULT / "objectives.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(lines)


def _cells(runs: pd.DataFrame, name: str) -> list[str]:
    own = runs[runs["objective"] == name]
    return [f"{own[score].mean():.1f} ({own[score].std():.1f})" for score in SCORES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each objective")
    told = parser.parse_args()
    display = Display(quiet=True)
    runs = scores(list(range(told.seeds)), display)
    costs = step_costs(display).merge(loss_costs())
    print(write(runs, costs, f"python -m benchmarks.objectives --seeds {told.seeds}"))


if __name__ == "__main__":
    main()
