"""docs/benchmarks/from_scratch.md and its curves, of what `benchmarks.from_scratch` measured."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.from_scratch import COSTS, FORWARDS, LABELS, NAMES, PING, PING_EPOCHS, RESULT, RUNS, TABLE_EPOCHS, VIEWS
from pipelines.dataset.prepared import Prepared

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCORES = ["R@1", "R@5", "R@10", "zero-shot"]
COUNTED = ["images", "texts", "teacher images", "teacher texts"]


def last(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    """The last evaluation of every run of a study."""
    rows = runs[runs["study"] == study]
    return rows.loc[rows.groupby(["objective", "dataset", "seed"])["epoch"].idxmax()]


def cell(values: pd.Series) -> str:
    """Mean (sd)."""
    return f"{values.mean():.1f} ({values.std():.1f})"


def paired(rows: pd.DataFrame, name: str, score: str, base: str = "clip") -> tuple[float, float, float]:
    """Mean difference to another objective over seeds, and its 95 % interval by Student's t."""
    own, other = (rows[rows["objective"] == one].set_index("seed")[score] for one in (name, base))
    difference = (own - other).dropna()
    half = stats.t.ppf(0.975, len(difference) - 1) * difference.std() / np.sqrt(len(difference))
    return difference.mean(), difference.mean() - half, difference.mean() + half


def chance(dataset: str) -> str:
    """Of R@10, over the seeds' test splits; a caption or image that is right twice is not counted in."""
    prepared = Prepared.open(Path("data") / dataset)
    return f"{np.mean([1000 / len(prepared.split_ids(seed)['test']) for seed in range(3)]):.0f} %"


def differences(rows: pd.DataFrame, names: list[str]) -> list[str]:
    """A table of paired differences to CLIP; in bold where the interval leaves 0 out."""
    lines = [f"| objective | {' | '.join(SCORES)} |", "|---|" + "---|" * len(SCORES)]
    lines.append(f"| clip | {' | '.join(cell(rows[rows['objective'] == 'clip'][score]) for score in SCORES)} |")
    for name in names:
        cells = []
        for score in SCORES:
            mean, low, high = paired(rows, name, score)
            text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def order(rows: pd.DataFrame, names: list[str], score: str) -> str:
    """Objectives from the best to the worst, and which neighbours can be told apart."""
    means = rows.groupby("objective")[score].mean().loc[names].sort_values(ascending=False)
    text = str(means.index[0])
    for better, worse in zip(means.index, means.index[1:], strict=False):
        _, low, _ = paired(rows, better, score, worse)
        text += f" {'>' if low > 0 else '~'} {worse}"
    return text


def curves(runs: pd.DataFrame) -> None:
    """R@10 over epochs of CLIP and both kinds of CLIP-PING: mean over seeds, and a band of one sd."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, score in zip(axes, ("R@10", "zero-shot"), strict=True):
        for name in PING:
            rows = runs[(runs["study"] == "ping") & (runs["objective"] == name)].groupby("epoch")[score]
            mean, spread = rows.mean(), rows.std()
            (line,) = axis.plot(mean.index, mean, label=name)
            axis.fill_between(mean.index, mean - spread, mean + spread, alpha=0.15, color=line.get_color(), linewidth=0)
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{score}, %")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(RESULT / "from_scratch.png", dpi=110)
    plt.close(figure)


def write(machine: str) -> str:
    """The page; its text."""
    runs, costs = pd.read_csv(RUNS), pd.read_csv(COSTS).set_index("objective")
    lines = ["# Objectives from scratch", ""]
    lines += [f"`python -m benchmarks.from_scratch table | views | ping | costs`; {machine}.", ""]
    lines += [
        "Pixels and word pieces in, both towers trained from random weights: the small towers of"
        " `training/configs/from-scratch.yaml` at 48 pixels, AdamW 1e-3, batch 128, every objective at its defaults. A seed is"
        " also that of the split. Scores in %, of the last step, on the held-out split: mean recall of both directions, and"
        " zero-shot top-1 of OpenMoji's 8 groups or Tux Paint's 15 categories. Nothing was chosen on any split."
    ]
    table = last(runs, "table")
    seeds = table["seed"].nunique()
    lines += ["", f"## All of them, {TABLE_EPOCHS} epochs", ""]
    time, memory = f"{costs.loc['clip', 'step ms']:.0f} ms", f"{costs.loc['clip', 'step MiB']:.0f} MiB"
    lines += [
        f"Mean (sd) over {seeds} seeds, of {TABLE_EPOCHS} epochs, 27 and 12 steps: what runs, and which defaults move at once;"
        f" too little to rank them. Chance is {chance('openmoji')} and {chance('tuxpaint')} of R@10, where some still are"
        " ([settings for small data](../objectives.md#settings-for-small-data)). Step time and memory relative to CLIP's"
        f" ({time}, {memory} of tensors at the peak, beyond weights and state) on OpenMoji; forwards are rows through a tower for"
        " each pair, counted by hooks, and of them those of a teacher, without gradient. clip-ping looks up stored features;"
        " distill learns from a run with locked EfficientNet-Lite0 and MiniLM on the same split."
    ]
    head = ["OpenMoji R@10", "OpenMoji zero-shot", "Tux Paint R@10", "Tux Paint zero-shot", "step time", "step memory"]
    lines += ["", f"| objective | {' | '.join([*head, 'image forwards', 'text forwards', 'teacher'])} |", "|---|" + "---|" * 9]
    for name in NAMES:
        own, cells = table[table["objective"] == name], []
        for dataset in ("openmoji", "tuxpaint"):
            cells += [cell(own[own["dataset"] == dataset][score]) for score in ("R@10", "zero-shot")]
        cells += [f"{costs.loc[name, key] / costs.loc['clip', key]:.2f}" for key in ("step ms", "step MiB")]
        images, texts, *teacher = (f"{costs.loc[name, key]:g}" for key in COUNTED)
        lines.append(f"| {name} | {' | '.join([*cells, images, texts, ' + '.join(teacher)])} |")

    views = last(runs, "views")
    lines += ["", "## Strong views, at equal image forwards", ""]
    epochs = ", ".join(f"{name} {FORWARDS // count}" for name, count in VIEWS.items())
    lines += [
        f"OpenMoji and Tux Paint as one dataset ({LABELS['drawings']} is OpenMoji's). Every objective has as many image forwards"
        f" with gradient as CLIP in {FORWARDS} epochs, so epochs are: {epochs}. MCD's teacher has as many again without gradient."
        f" CLIP's scores, mean (sd) over {views['seed'].nunique()} seeds, and below it paired differences to it with their 95 %"
        " intervals (Student's t); bold where 0 is outside.",
        "",
    ]
    lines += differences(views, [name for name in VIEWS if name != "clip"])
    found = order(views, list(VIEWS), "R@10")
    lines += ["", f"The papers' order is mcd > uniclip > declip > slip > clip. Here, in R@10: {found}, where ~ is within noise."]

    ping = last(runs, "ping")
    lines += ["", "## CLIP-PING", ""]
    lines += [
        f"OpenMoji, {PING_EPOCHS} epochs, {ping['seed'].nunique()} seeds, as above. The frozen encoders, stored or live, are"
        " EfficientNet-Lite0 and MiniLM; live ones see the student's view of 48 pixels enlarged to 64, and 24 tokens.",
        "",
    ]
    lines += differences(ping, PING[1:])
    curves(runs)
    lines += ["", "![R@10 and zero-shot over epochs](from_scratch.png)", ""]
    lines += [
        "The paper claims +5.5 points of zero-shot ImageNet and +10.7 and +5.7 of R@1 at 3 million pairs (arXiv 2412.03871)."
    ]
    locked = last(runs, "locked")
    if len(locked):
        lines += [
            "",
            "With both towers locked on the same frozen encoders (20 epochs of `openmoji.yaml`, only heads train):",
            "",
        ]
        lines += differences(locked, ["clip-ping"])
    lines += ["", "Every evaluation of every run: [from_scratch.csv](from_scratch.csv)."]
    (RESULT / "from_scratch.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(lines)
