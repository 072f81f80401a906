"""PSD against CLIP where 40 % of the training captions belong to other images.

    python -m benchmarks.noise            # about 20 minutes on 2 cores, half of it preparing ten datasets

OpenMoji with locked towers; ten seeds, each with another split of the concepts, other shuffled captions, initial weights and
order. Held out are a validation split, on which the settings of both objectives are chosen (five of the seeds), and a test
split, on which the chosen ones are compared, once. Held-out captions are never shuffled.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.runs import machine, plan_of, score
from evaluation.metrics import mean_recalls
from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import load

PREPARE, CONFIG = Path("pipelines/configs/openmoji.yaml"), Path("training/configs/openmoji.yaml")
RESULT = Path("docs/benchmarks")
SHARE = 0.4
SPLITS = {"test": 0.2, "validation": 0.15}
SCORES = {
    "R@1": "retrieval/openmoji/mean_recall@1",
    "R@10": "retrieval/openmoji/mean_recall@10",
    "zero-shot group": "zero_shot/openmoji_group/top1",
    "zero-shot subgroup": "zero_shot/openmoji_subgroup/top1",
}
CHOSEN_BY = ["R@10", "zero-shot group", "zero-shot subgroup"]  # their mean on the validation split
CLIP: dict[str, Any] = {"objective.name": "clip"}
PSD: dict[str, Any] = {"objective.name": "psd"}
VARIANTS: dict[str, dict[str, Any]] = {
    "clip": CLIP,
    "clip, lr 5e-4": CLIP | {"optimizer.lr": 5e-4},
    "clip, lr 2e-3": CLIP | {"optimizer.lr": 2e-3},
    "clip, 15 epochs": CLIP | {"epochs": 15},
    "clip, 15 epochs, lr 2e-3": CLIP | {"epochs": 15, "optimizer.lr": 2e-3},
    "psd": PSD,
    "psd, share 0.5": PSD | {"objective.soft_fraction": 0.5},
    "psd, cosine": PSD | {"objective.schedule": "cosine"},
    "psd, momentum 0.95": PSD | {"objective.teacher.name": "ema", "objective.teacher.momentum": 0.95},
    "psd, lr 2e-3": PSD | {"optimizer.lr": 2e-3},
    "psd, self": PSD | {"objective.teacher.name": "self"},
    "psd, self, sharpening 0.5": PSD | {"objective.teacher.name": "self", "objective.sharpening": 0.5},
}


def dataset(seed: int, display: Display) -> Path:
    """Prepared with this seed's splits and shuffled captions, once."""
    output = Path(f"data/noise/openmoji-{round(100 * SHARE)}-{seed}")
    noise = {"captions.shuffled": SHARE, "captions.shuffle_seed": seed, "split_seed": seed, "splits": SPLITS}
    prepare(load(PrepareSettings, PREPARE, {"output": str(output)} | noise), display)
    return output


def run(overrides: dict[str, Any], seed: int, split: str, display: Display) -> list[dict[str, Any]]:
    """Scores on a split, in %, every third epoch and at the end."""
    keys = {"data.path": str(dataset(seed, display)), "seed": seed, "evaluation.split": split, "evaluation.every_epochs": 3}
    _, lines = score(plan_of(CONFIG, keys | overrides, display))
    lines = [line | mean_recalls(line) for line in lines if SCORES["zero-shot group"] in line]
    return [{"epoch": line["epoch"]} | {label: line[path] for label, path in SCORES.items()} for line in lines]


def choose(seeds: list[int], display: Display) -> tuple[pd.DataFrame, dict[str, str]]:
    """Every variant's validation scores, and the best variant of each objective."""
    rows = []
    for name, overrides in VARIANTS.items():
        for seed in seeds:
            rows.append({"variant": name, "seed": seed} | run(overrides, seed, "validation", display)[-1])
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("variant", sort=False)[list(SCORES)].mean()
    merit = table[CHOSEN_BY].mean(axis=1)
    best = {objective: merit[[name.split(",")[0] == objective for name in merit.index]].idxmax() for objective in ("clip", "psd")}
    return table, best


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean difference of pairs: the share of all 2^n ways to flip signs that are as extreme."""
    observed, count = abs(sum(differences)), 0
    for signs in product((1, -1), repeat=len(differences)):
        count += abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed - 1e-12
    return count / 2 ** len(differences)


def compare(best: dict[str, str], seeds: list[int], display: Display) -> pd.DataFrame:
    """Test scores of the chosen variants and of the defaults: a row an evaluation."""
    rows = []
    for name in dict.fromkeys(["clip", "psd", *best.values()]):
        for seed in seeds:
            rows += [{"variant": name, "seed": seed} | line for line in run(VARIANTS[name], seed, "test", display)]
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def table(runs: pd.DataFrame, left: str, right: str) -> list[str]:
    """Markdown rows: both variants' last scores and their paired difference."""
    last = runs.sort_values("epoch").groupby(["variant", "seed"], sort=False).last()
    lines = [f"| score, % | {left} | {right} | difference | higher in | p (sign flips) |", "|---|---|---|---|---|---|"]
    for label in SCORES:
        one, other = last.loc[left][label].sort_index(), last.loc[right][label].sort_index()
        gain = other - one
        lines.append(
            f"| {label} | {one.mean():.1f} ({one.std():.1f}) | {other.mean():.1f} ({other.std():.1f}) | {gain.mean():+.1f} "
            f"({gain.std():.1f}) | {int((gain > 0).sum())} of {len(gain)} | {sign_flip(list(gain)):.3f} |"
        )
    return lines


def draw(runs: pd.DataFrame, names: list[str], path: Path) -> None:
    """Test scores over epochs, mean and standard deviation over seeds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SCORES), figsize=(4 * len(SCORES), 3.2), layout="constrained")
    for axis, label in zip(axes, SCORES, strict=True):
        for name in names:
            own = runs[runs["variant"] == name].groupby("epoch")[label].agg(["mean", "std"])
            axis.plot(own.index, own["mean"], label=name)
            axis.fill_between(own.index, own["mean"] - own["std"], own["mean"] + own["std"], alpha=0.2)
        axis.set(title=f"{label}, %", xlabel="epoch")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="of the comparison on the test split")
    parser.add_argument("--tuning-seeds", type=int, default=5, help="of the choice on the validation split")
    told = parser.parse_args()
    display = Display(quiet=True)
    validation, best = choose(list(range(told.tuning_seeds)), display)
    runs = compare(best, list(range(told.seeds)), display)
    RESULT.mkdir(parents=True, exist_ok=True)
    runs.to_csv(RESULT / "noise.csv", index=False, float_format="%.4f")
    draw(runs, list(dict.fromkeys(["clip", best["clip"], best["psd"]])), RESULT / "noise.png")
    sizes = [Prepared.open(dataset(seed, display)).manifest for seed in range(told.seeds)]
    lines = [
        "# PSD where captions are wrong",
        "",
        f"`python -m benchmarks.noise --seeds {told.seeds} --tuning-seeds {told.tuning_seeds}`; {machine()}.",
        f"OpenMoji, locked towers, `{CONFIG}`; captions of {SHARE:.0%} of the training pairs exchanged among one another "
        f"({min(m['captions']['shuffled'] for m in sizes)} to {max(m['captions']['shuffled'] for m in sizes)} of "
        f"{min(m['splits']['train'] for m in sizes)} to {max(m['splits']['train'] for m in sizes)} pairs); held-out captions are "
        f"right. Mean (sd) over {told.seeds} seeds of the last step's scores on the test split; paired differences.",
        "",
        "Both at their best settings by the mean of R@10 and both zero-shot scores on the validation split:",
        "",
        *table(runs, best["clip"], best["psd"]),
        "",
        *(["Both at their defaults:", "", *table(runs, "clip", "psd"), ""] if best != {"clip": "clip", "psd": "psd"} else []),
        "![Test scores over epochs](noise.png)",
        "",
        "Every evaluation of every run: [noise.csv](noise.csv).",
        "",
        f"The choice, on the validation split (mean over {told.tuning_seeds} seeds):",
        "",
        f"| variant | {' | '.join(SCORES)} | mean of {len(CHOSEN_BY)} |",
        "|---|" + "---|" * (len(SCORES) + 1),
        *[
            f"| {name}{', chosen' if name in best.values() else ''} | "
            f"{' | '.join(f'{row[label]:.1f}' for label in SCORES)} | {row[CHOSEN_BY].mean():.1f} |"
            for name, row in validation.iterrows()
        ],
    ]
    (RESULT / "noise.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
