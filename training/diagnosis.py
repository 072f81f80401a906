"""What a run's own figures say is wrong with it, and the setting to try next. Pure functions of its lines of metrics.jsonl.

The page, the last lines of a run, `result.json`, `raylign status` and a sweep's page say the same findings. Each has evidence in
figures; where these are too few, or within noise, nothing is said. No finding proves that nothing is wrong.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.reporting.number_format import label, parameter
from evaluation.retrieval import mean_recalls
from pipelines.program.wilson import wilson

_FEW = 4  # evaluations at least: a turn needs a point before it and two after it, and the first often is an outlier
_RISE = 0.05  # of the lowest held-out loss: from one evaluation to the next it wobbles by 1 to 2 % in runs that are well
_LOST = 0.25  # of what the training loss had fallen by: batches differ by less once they are averaged over an evaluation's steps
_SPREAD = 0.02  # 1 - mean cosine: trained towers have 0.3 to 1, and at 0.02 a cosine's rounding in bf16 (0.004) is a fifth of it
_RANK = 0.5  # of the highest effective rank before: in runs that are well it changes by less than a third
_LEVEL = 0.01  # of log(batch), around it
_NEAR = 0.01  # of a bound of the temperature, around it
_AT_BOUND = 10  # lines at least, and a tenth of all, so that touching it is not enough
_WAITS = 0.2  # share of time: what more CPUs could win is then worth a look
_SECONDS = 60.0  # of training at least before its speed says anything
_FALLING = 0.05  # share of the whole fall of the held-out loss in the last fifth: of a curve that has flattened it is below 0.02
_FP16 = 20  # steps that the loss scale of fp16 may skip until it has settled

Chances = Mapping[str, Sequence[float]]
"""Path of a score -> what guessing scores, in percent, and the number of queries (`training.held_out.chances_of`)."""


@dataclass(frozen=True)
class Finding:
    """`kind` in a word or two, `evidence` and `advice` in a sentence each, without a full stop."""

    kind: str
    evidence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.evidence}. {self.advice}"


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation, and the training since the one before."""

    epoch: float
    scores: Mapping[str, float]
    figures: Mapping[str, float]  # its line
    loss: float  # mean training loss; NaN if no step counted
    grad_norm: float


@dataclass(frozen=True)
class _Run:
    lines: Sequence[Mapping[str, Any]]
    evaluations: Sequence[_Evaluation]
    config: Mapping[str, Any]
    chances: Chances
    finished: bool

    def setting(self, key: str, default: Any = None) -> Any:
        """Of a dotted key."""
        tree: Any = self.config
        for name in key.split("."):
            tree = tree.get(name) if isinstance(tree, Mapping) else None
        return default if tree is None else tree

    def curve(self, name: str) -> np.ndarray:
        """A figure of all evaluations; NaN where one lacks it."""
        return np.array([e.figures.get(name, math.nan) for e in self.evaluations])

    @property
    def losses(self) -> np.ndarray:
        """Training losses."""
        return np.array([e.loss for e in self.evaluations])

    @property
    def score(self) -> str:
        """The path of the score that the run is judged by."""
        best = self.setting("checkpoint.best", "")
        paths = self.evaluations[-1].scores if self.evaluations else {}
        return best if best in paths else next((path for path in paths if path.endswith("/mean_recall")), "")

    def scores(self, path: str) -> np.ndarray:
        return np.array([e.scores.get(path, math.nan) for e in self.evaluations])


def diagnose(
    lines: Sequence[Mapping[str, Any]], config: Mapping[str, Any], chances: Chances | None = None, finished: bool = False
) -> list[Finding]:
    """What the figures say, the gravest first.

    Args:
        lines: of metrics.jsonl. config: the run's, resolved, as a tree. finished: nothing more will come.
    """
    trained = [line for line in lines if line["step"] > 0]
    run = _Run(trained, list(_evaluations(trained)), config, chances or {}, finished)
    found: list[Finding] = []
    for look in (_divergence, _collapse, _nothing_learned, _overfitting, _temperature, _idle_input, _more_epochs):
        # A run that diverges or collapses learns nothing and its loss turns: the cause is enough.
        if not (found and look in (_nothing_learned, _overfitting, _more_epochs)) and (finding := look(run)) is not None:
            found.append(finding)
    return found


def _evaluations(lines: Sequence[Mapping[str, Any]]) -> Iterator[_Evaluation]:
    since: list[Mapping[str, Any]] = []
    for line in lines:
        since.append(line)
        scores = {path: value for path, value in line.items() if "/" in path}
        if scores:
            means = (_mean([known[name] for known in since if name in known]) for name in ("loss", "grad_norm"))
            yield _Evaluation(line["epoch"], scores | mean_recalls(scores), line, *means)
            since = []


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _lowest(curve: np.ndarray) -> int | None:
    """Where it is lowest; None without figures enough."""
    return int(np.nanargmin(curve)) if np.isfinite(curve).sum() >= _FEW and np.isfinite(curve[-2:]).all() else None


def _above(curve: np.ndarray, level: float) -> bool:
    """Whether the last two are: one alone may be a wobble."""
    return bool((curve[-2:] > level).all())


def _divergence(run: _Run) -> Finding | None:
    steps, skipped = (run.lines[-1].get(name, 0) for name in ("step", "skipped")) if run.lines else (0, 0)
    lr = _now(run, "optimizer.lr")
    advice = f"Try a lower optimizer.lr ({lr}), a longer schedule.warmup_steps ({_now(run, 'schedule.warmup_steps')})"
    advice += "" if run.setting("clip_norm") else ", clip_norm=1"
    if skipped > (_FP16 if run.setting("precision") == "fp16" else 0) + steps / 1000:
        evidence = f"{skipped:,} of {steps:,} steps were skipped, for their loss or gradient was no number"
        return Finding("divergence", evidence, advice + ("" if run.setting("precision") != "fp16" else ", precision=bf16"))
    losses, held_out = run.losses, run.curve("held_out_loss")
    low, before = _lowest(losses), _lowest(held_out)
    if low is None or before is None or (low == 0 and before == 0 and len(losses) < 2 * _FEW):
        return None
    fall = max(losses[0] - losses[low], 0.1 * abs(losses[low]))
    norms = [e.grad_norm for e in run.evaluations]
    # An objective's loss may rise by design, as its queue fills: then the held-out loss, which is CLIP's, does not.
    if _above(losses, losses[low] + _LOST * fall) and _above(held_out, held_out[before] * (1 + _RISE)) and norms[-1] > norms[low]:
        evidence = (
            f"the training loss rose from {label(losses[low])} at epoch {_epoch(run, low)} to {label(losses[-1])}, the held-out "
            f"loss from {label(held_out[before])} to {label(held_out[-1])}, the gradient's norm from {label(norms[low])} to "
            f"{label(norms[-1])}"
        )
        return Finding("divergence", evidence, advice)
    return None


def _collapse(run: _Run) -> Finding | None:
    told = []
    for name in ("images", "texts"):
        spreads, ranks = run.curve(f"spread_{name}"), run.curve(f"rank_{name}")
        if len(spreads) < _FEW:
            return None
        highest = int(np.nanargmax(ranks)) if np.isfinite(ranks).any() else 0
        if (spreads[-2:] < _SPREAD).all():
            told.append(f"two held-out {name} have a mean cosine of {1 - spreads[-1]:.3f}")
        elif (ranks[-2:] < _RANK * ranks[highest]).all():
            told.append(
                f"the effective rank of held-out {name} fell from {label(ranks[highest])} at epoch {_epoch(run, highest)} to "
                f"{label(ranks[-1])}"
            )
    batch, losses = run.setting("global_batch_size"), run.losses
    if batch and run.setting("objective.name") == "clip" and (abs(losses[-2:] / math.log(batch) - 1) < _LEVEL).all():
        told.append(f"the training loss is {label(losses[-1])}, and log({batch:,}) = {math.log(batch):.3g} is that of equal rows")
    if not told:
        return None
    advice = f"Try a lower optimizer.lr ({_now(run, 'optimizer.lr')}), a longer schedule.warmup_steps"
    advice += f" ({_now(run, 'schedule.warmup_steps')})" + ("" if run.setting("clip_norm") else ", clip_norm=1")
    return Finding("collapse", "; ".join(told), advice + "; see also whether many captions are the same")


def _nothing_learned(run: _Run) -> Finding | None:
    paths = [path for path in run.chances if path.rpartition("/")[2].startswith("mean_recall@")]
    if not paths or len(run.evaluations) < (2 if run.finished else _FEW):
        return None
    for path in paths:
        chance, n = run.chances[path]
        for value in run.scores(path)[-2:]:
            if not wilson(n * value / 100, n)[0] <= chance / 100:
                return None
    (chance, n), value = run.chances[paths[0]], run.scores(paths[0])[-1]
    evidence = (
        f"{_title(paths[0])} is {value:.1f} % after {_epoch(run)} epochs, and by chance it would be {chance:.1f} % "
        f"(n = {n:,.0f}; the 95 % interval includes it, at every k)"
    )
    advice = (
        "See by raylign prepare CONFIG.yaml --check whether captions belong to their images; then try another optimizer.lr "
        f"({_now(run, 'optimizer.lr')}) or towers with pretrained weights"
    )
    return Finding("nothing learned", evidence, advice)


def _overfitting(run: _Run) -> Finding | None:
    held_out, losses = run.curve("held_out_loss"), run.losses
    low = _lowest(held_out)
    if low is None:
        return None
    turned = low < len(held_out) - 2 and _above(held_out, held_out[low] * (1 + _RISE)) and losses[-1] < losses[low]
    scores, best, lower = run.scores(run.score), None, math.inf
    if run.score and np.isfinite(scores).sum() >= _FEW:
        best = int(np.nanargmax(scores))
        n = next((n for path, (_, n) in run.chances.items() if path.startswith(run.score.rpartition("/")[0])), 0)
        lower = 100 * wilson(n * scores[best] / 100, n)[0] if n else -math.inf
        fell = best < len(scores) - 2 and bool((scores[-2:] < lower).all()) and losses[-1] < losses[best]
    else:
        fell = False
    if not turned and not fell:
        return None
    at = low if turned else best
    assert at is not None
    told = [f"since epoch {_epoch(run, at)} the training loss fell on, from {label(losses[at])} to {label(losses[-1])}"]
    if turned:
        told.append(f"the held-out loss rose from {label(held_out[low])} to {label(held_out[-1])}")
    if best is not None:
        shown = f"{_title(run.score)} was best at epoch {_epoch(run, best)} ({scores[best]:.1f} %) and is {scores[-1]:.1f} % now"
        told.append(shown + (", within the interval of the best" if -math.inf < lower <= scores[-1] < scores[best] else ""))
    advice = f"Try fewer epochs ({_now(run, 'epochs')}), a larger optimizer.weight_decay ({_now(run, 'optimizer.weight_decay')})"
    if {run.setting("image_tower.mode"), run.setting("text_tower.mode")} == {"locked"}:
        advice += " or more data"
    else:
        advice += ", a tower with mode=locked or more data"
    chosen = run.setting("checkpoint.best")
    if chosen is None:
        advice += (
            f"; checkpoint.best={run.score or 'held_out_loss checkpoint.mode=min'} keeps the best weights, not only the last"
        )
    elif (epoch := _chosen(run, chosen)) is not None:
        told.append(f"best/ is of epoch {epoch}, chosen by {chosen}")
    return Finding("overfitting", ", ".join(told), advice)


def _temperature(run: _Run) -> Finding | None:
    values = [line["temperature"] for line in run.lines if "temperature" in line]
    last = max(_AT_BOUND, len(values) // 10)
    if len(values) <= last:
        return None
    for bound, key in _bounds(run):
        near = [abs(value / bound - 1) < _NEAR for value in values]
        # Not if it began there, as a start from released weights does.
        if all(near[-last:]) and not near[0]:
            reached = next(i for i in range(len(near)) if all(near[i:]))
            epoch = [line["epoch"] for line in run.lines if "temperature" in line][reached]
            evidence = (
                f"it is at its bound {parameter(bound)} since epoch {parameter(epoch)}, from {parameter(values[0])} at first"
            )
            if bound >= 1:
                advice = (
                    f"Pairs are not told apart: try another optimizer.lr ({_now(run, 'optimizer.lr')}), and look at the captions"
                )
            else:
                advice = f"Try another {key} ({_now(run, key)}), or a larger temperature with learn_temperature=false"
            return Finding("saturated temperature", evidence, advice)
    return None


def _bounds(run: _Run) -> list[tuple[float, str]]:
    """Of a learned temperature, each with the key that sets it."""
    objective: Mapping[str, Any] = run.setting("objective", {})
    if objective.get("max_scale") and objective.get("learn_temperature"):
        return [(1 / objective["max_scale"], "objective.max_scale"), (1.0, "objective.max_scale")]
    if objective.get("min_temperature"):
        upper = objective.get("max_temperature", 1.0)
        return [(objective["min_temperature"], "objective.min_temperature"), (upper, "objective.max_temperature")]
    return []


def _idle_input(run: _Run) -> Finding | None:
    if not run.evaluations:
        return None
    later = run.lines[max(1, len(run.lines) // 10) :]  # the start opens files and fills queues
    spans = [
        (line["data_wait"], (line["samples"] - before["samples"]) / line["samples_per_second"])
        for before, line in pairwise(later)
        if line.get("samples_per_second") and "data_wait" in line and line["samples"] > before["samples"]
    ]
    seconds = math.fsum(span for _, span in spans)
    if seconds < _SECONDS or len(spans) < _AT_BOUND:
        return None
    share = math.fsum(wait * span for wait, span in spans) / seconds
    if share < _WAITS:
        return None
    speed = math.fsum(line["samples_per_second"] for line in later) / len(later)
    evidence = f"{share:.0%} of the time training waited for data, at {speed:,.0f} pairs a second"
    advice = (
        f"Try more resources.data_cpus ({_now(run, 'resources.data_cpus')}); or prepare the data with mode: copy and the image "
    )
    return Finding("idle input", evidence, advice + "size of the tower, so that less is read and decoded")


def _more_epochs(run: _Run) -> Finding | None:
    held_out = run.curve("held_out_loss")
    low, epochs = _lowest(held_out), run.setting("epochs")
    if not run.finished or low is None or epochs is None:
        return None
    before = len(held_out) - 1 - max(1, len(held_out) // 5)
    fall, late = held_out[0] - held_out[-1], held_out[before] - held_out[-1]
    lrs = [float(run.evaluations[i].figures.get("lr", math.nan)) for i in (before, -1)]
    early = run.evaluations[-1].epoch < 0.99 * epochs
    if low != len(held_out) - 1 or late < max(_FALLING * fall, _NEAR * abs(held_out[-1])):
        return None
    evidence = (
        f"the held-out loss was still falling at the end, from {label(held_out[before])} at epoch {_epoch(run, before)} to "
        f"{label(held_out[-1])} at epoch {_epoch(run)}, while the learning rate went from {parameter(lrs[0])} to "
        f"{parameter(lrs[1])}"
    )
    if early:
        evidence += f"; max_minutes ended the run before its {epochs} epochs"
        return Finding("more epochs", evidence, f"Try a larger max_minutes, or epochs={max(1, round(run.evaluations[-1].epoch))}")
    return Finding("more epochs", evidence, f"Try epochs={2 * epochs}")


def _chosen(run: _Run, metric: str) -> str | None:
    """The epoch that `checkpoint.best` chose."""
    curve = run.scores(metric) if "/" in metric else run.curve(metric)
    if not np.isfinite(curve).any():
        return None
    choose: Callable[[np.ndarray], Any] = np.nanargmin if run.setting("checkpoint.mode") == "min" else np.nanargmax
    return _epoch(run, int(choose(curve)))


def _epoch(run: _Run, index: int = -1) -> str:
    return parameter(run.evaluations[index].epoch)


def _now(run: _Run, key: str) -> str:
    """`now 0.001`, of a setting."""
    value = run.setting(key)
    return "not set" if value is None else f"now {parameter(value)}"


def _title(path: str) -> str:
    """R@1 of retrieval/NAME/mean_recall@1; else the path, as one types it."""
    name = path.rpartition("/")[2]
    if name.startswith("mean_recall@"):
        return f"R@{name.partition('@')[2]}"
    return "the mean recall" if name == "mean_recall" else path
