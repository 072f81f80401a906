"""What fine-tuning on Tux Paint costs a model of OpenMoji, and what the ways against forgetting keep.

    python -m benchmarks.forgetting             # five seeds; hours on 2 cores; a call that is repeated goes on where it stopped
    python -m benchmarks.forgetting --seeds 1 --quick      # one epoch each, to see that it runs

For each seed a dual encoder is trained on OpenMoji (training/configs/finetune.yaml), and from it one run a variant on Tux Paint's
stamps (pipelines/configs/tuxpaint.yaml, `make tuxpaint` prepares them). New skill: R@10 on held-out stamps; old skill: R@10 on
held-out emojis. Both of the start, of each variant at its end, and of the weights between the start and plain fine-tuning
(WiSE-FT). Settings are fixed beforehand and nothing is chosen on these scores; `docs/benchmarks/forgetting.md` gets the table.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import raylign
from benchmarks.runs import machine

FIRST = "training/configs/finetune.yaml"
OLD, NEW = "data/openmoji", "data/tuxpaint"
RESULT = Path("docs/benchmarks/forgetting.md")
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer decay 0.8": {"image_tower.layer_decay": 0.8, "text_tower.layer_decay": 0.8},
    "lower half frozen": {"image_tower.frozen_blocks": 8, "text_tower.frozen_blocks": 3},
    "LoRA": {"image_tower.lora": {}, "image_tower.lr_scale": 10, "text_tower.lora": {}, "text_tower.lr_scale": 10},
    "start as teacher": {"objective": {"name": "distill", "heads": False}},
}
Skills = dict[str, list[tuple[float, float]]]  # by what was scored, of each seed: new and old, in %


def keys(seed: int, quick: bool) -> dict[str, Any]:
    """Of all runs of a seed."""
    return {"seed": seed, "storage": "runs/forgetting"} | ({"epochs": 1} if quick else {})


def first(seed: int, quick: bool) -> str:
    """Where the model of OpenMoji is."""
    name = f"openmoji-{seed}{'-quick' if quick else ''}"
    raylign.train(FIRST, keys(seed, quick) | {"name": name, "data.path": OLD}, quiet=True)
    return f"runs/forgetting/{name}"


def finetuned(start: str, variant: str, seed: int, quick: bool) -> dict[str, Any]:
    """The result of a run on the stamps, which scores the emojis too, before its first step and at its end."""
    config = {
        "name": f"{variant.replace(' ', '-')}-{seed}{'-quick' if quick else ''}",
        "data": {"path": NEW, "split_seed": seed, "augment": {"crop_scale": [0.7, 1.0]}},
        "start": {"name": "run", "path": start},
        "image_tower": {"name": "run", "batch_norm": "frozen"},
        "optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup_steps": 10},
        "epochs": 10,
        "global_batch_size": 64,
        "clip_norm": 1,
        "evaluation": {"every_epochs": 10, "extra_datasets": [{"path": OLD}]},
    }
    return raylign.train(config, keys(seed, quick) | VARIANTS[variant], quiet=True)


def skills(scores: dict[str, float]) -> tuple[float, float]:
    """New and old."""
    return scores["retrieval/tuxpaint/mean_recall@10"], scores["retrieval/openmoji/mean_recall@10"]


def between(run: str, seed: int) -> dict[str, tuple[float, float]]:
    """New and old skill of the weights between the start and a run, by alpha."""
    sets = {
        "tuxpaint": {"name": "prepared", "path": NEW, "split_seed": seed},
        "openmoji": {"name": "prepared", "path": OLD},  # its own split, which further sets of a run have too
    }
    config = {"wise_ft": {"checkpoint": run, "alphas": ALPHAS}, "data": sets, "tasks": ["retrieval"], "output": f"{run}/wise_ft"}
    found: dict[str, dict[str, float]] = {}
    for result in raylign.evaluate(config, quiet=True):
        if "mean_recall@10" in result.scores:
            scores = found.setdefault(f"alpha {result.model.removeprefix('alpha-')}", {})
            scores[f"retrieval/{result.dataset}/mean_recall@10"] = result.scores["mean_recall@10"]
    return {name: skills(scores) for name, scores in found.items()}


def measure(seeds: int, quick: bool) -> Skills:
    found: Skills = {}
    for seed in range(seeds):
        start = first(seed, quick)
        for variant in VARIANTS:
            result = finetuned(start, variant, seed, quick)
            if variant == "plain":
                found.setdefault("start", []).append(skills(result["start"]))
                for name, pair in between(f"runs/forgetting/{result['name']}", seed).items():
                    found.setdefault(f"WiSE-FT, {name}", []).append(pair)
            found.setdefault(variant, []).append(skills(result["metrics"]))
            print(f"seed {seed}, {variant}: new {found[variant][-1][0]:.1f}, old {found[variant][-1][1]:.1f}", flush=True)
    return found


def table(found: Skills) -> list[str]:
    """Markdown: both skills, and the share of the old one that was lost, in the mean over seeds."""

    def shown(values: list[float]) -> str:
        return f"{mean(values):.1f}" + (f" ({stdev(values):.1f})" if len(values) > 1 else "")

    before = mean(old for _, old in found["start"])
    lines = ["| | new skill, R@10 | old skill, R@10 | old skill lost |", "|---|---|---|---|"]
    for name, pairs in found.items():
        new, old = map(list, zip(*pairs, strict=True))
        lines.append(f"| {name} | {shown(new)} | {shown(old)} | {100 * (1 - mean(old) / before):.0f} % |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one epoch each, and no file is written")
    told = parser.parse_args()
    lines = table(measure(told.seeds, told.quick))
    if not told.quick:
        about = f"`python -m benchmarks.forgetting --seeds {told.seeds}`; {machine()}. Mean (sd) over {told.seeds} seeds,"
        text = ["# Old skill and new", "", f"{about} each with its own start, order and split of\nthe stamps.", "", *lines]
        RESULT.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
