"""The model card of an export, `README.md`: what the model is, from what data, what it scores, how it is used, and its limits."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluation.metrics import chances
from evaluation.reporting.html import credit
from pipelines.dataset.prepared import Prepared
from pipelines.io.retry import shown
from pipelines.program import yaml_text
from pipelines.program.wilson import wilson
from training.checkpoint_registry import TESTED
from training.export.model import Model
from training.export.parity import Parity
from training.export.target import Target

_PROPORTIONS = ("image_to_text_recall@", "text_to_image_recall@", "top")  # scores that are a share of n queries
_PACKAGES = {
    "huggingface": ("transformers", "torch"),
    "open_clip": ("open_clip_torch", "torch"),
    "onnx": ("onnxruntime", "tokenizers"),
    "safetensors": ("raylign", "safetensors"),
}


def card(model: Model, prepared: Prepared, parity: Parity, target: Target, network: Any, run: Path | str, output: Path) -> str:
    """The whole file, in Markdown."""
    settings, about = model.settings, model.about
    sections = [
        "---\nlibrary_name: "
        + ("open_clip" if target.NAME == "open_clip" else target.LIBRARY)
        + "\npipeline_tag: zero-shot-image-classification\ntags: [raylign, clip]\n---",
        f"# {settings.name}",
        f"A dual encoder of images and texts, trained by raylign {about['code_version']} with the {settings.objective.name} "
        f"objective on {prepared.name}: rows of {settings.embed_dim} numbers, images of {settings.image_tower.image_size} "
        f"pixels, texts of at most {settings.text_tower.max_tokens} tokens. Step {about['step']:,} of {about['total_steps']:,}.",
        ""
        if model.wise_ft is None
        else f"Its weights lie between those that the run started from and its own: {1 - model.wise_ft:g} "
        f"of the former and {model.wise_ft:g} of the latter (WiSE-FT).",
        "## Use",
        f"```python\n{_usage(target)}\n\n\nloaded = load({output.name!r})\n"
        'image, text = embed_images(loaded, ["photo.jpg"]), embed_texts(loaded, ["a photo of a cat"])\n'
        f"print({_logits(model)})\n```",
        _list(target.notes(model, network)),
        "## Scores",
        f"Of this checkpoint on split {settings.evaluation.split} of {prepared.name}, {len(parity.data.sample_ids):,} images; "
        "one run with one seed. The interval is Wilson's, 95 %, over queries: another seed changes a score too.",
        _chosen(model),
        _scores(parity),
        "## The same as the run",
        _parity(parity, target),
        "## Data",
        _data(prepared, model),
        "## Training",
        _table(
            ("part", "setting"),
            [(key, _short(getattr(settings, key))) for key in ("image_tower", "text_tower", "objective", "optimizer", "schedule")]
            + [("epochs", f"{settings.epochs}, of {settings.global_batch_size} pairs a step"), ("seed", str(settings.seed))],
        ),
        f"```\nraylign train CONFIG.yaml    # the config below\nraylign export {shown(str(run))} --to {target.NAME}"
        f"{'' if model.wise_ft is None else f' --wise-ft {model.wise_ft:g}'}\n```",
        f"<details><summary>Config</summary>\n\n```yaml\n{shown(yaml_text.dump(about['config']))}```\n\n</details>",
        "## Limits",
        _list(_limits(model, prepared)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _usage(target: Target) -> str:
    """The target's script, without its docstring."""
    text = resources.files("training.export.usage").joinpath(f"{target.NAME}.py").read_text(encoding="utf-8")
    return re.sub(r'\A""".*?"""\n+', "", text, flags=re.DOTALL).strip()


def _logits(model: Model) -> str:
    bias = f" {'+' if model.bias > 0 else '-'} {abs(model.bias):.4f}" if model.bias else ""
    return f"{model.scale:.4f} * image @ text.T{bias}" if model.trained.scale is not None else "image @ text.T"


def _chosen(model: Model) -> str:
    """That the scores are of the split that chose the checkpoint, and what it scored on the test split."""
    file, test = model.checkpoint / "best.json", model.checkpoint.parent / TESTED
    if not file.exists():
        return ""
    best = json.loads(file.read_text(encoding="utf-8"))
    told = f"This checkpoint was chosen by `{best['metric']}` on this split, so its scores here are optimistic."
    if test.exists():
        scores = json.loads(test.read_text(encoding="utf-8"))
        told += f" On split {scores['split']}, which chose nothing, that score is {scores['metrics'][best['metric']]:.1f}."
    return told


def _scores(parity: Parity) -> str:
    scores, rows = parity.theirs, list[tuple[str, ...]]()
    chance = chances(scores.baselines)
    for path, value in scores.metrics.items():
        n = scores.sample_sizes[path]
        interval = ""
        if path.rpartition("/")[2].startswith(_PROPORTIONS):
            interval = "{:.1f} to {:.1f}".format(*(100 * end for end in wilson(n * value / 100, n)))
        by_chance = f"{chance[path]:.1f}" if path in chance else ""
        rows.append((f"`{path}`", f"{value:.1f}", interval, by_chance, f"{n:,}"))
    return _table(("score, %", "value", "95 % interval", "chance", "n"), rows)


def _parity(parity: Parity, target: Target) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES[target.NAME])
    changed = [path for path, value in parity.ours.metrics.items() if parity.theirs.metrics[path] != value]
    scores = "all scores are equal"
    if changed:
        scores = f"{len(changed)} of {len(parity.ours.metrics)} scores differ ({', '.join(changed[:3])})"
    return (
        f"Loaded with {versions} and given the split's image files and texts, this export's rows differ from the run's by at "
        f"most {parity.images:.1e} (images) and {parity.texts:.1e} (texts); the smallest cosine of a row and its counterpart is "
        f"{parity.cosine:.6f}; {scores}."
    )


def _data(prepared: Prepared, model: Model) -> str:
    manifest = prepared.manifest
    counts = manifest["counts"]
    rejected = ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts["rejected"].items())) or "none"
    coverage = f"{counts['kept']:,} rows kept of {counts['listed']:,} listed and {counts['found']:,} found; rejected: {rejected}"
    rows: list[tuple[str, ...]] = [
        ("dataset", f"{prepared.name}, fingerprint `{prepared.fingerprint[:16]}`"),
        ("licence and attribution", credit(manifest) or "not stated"),
        ("coverage", coverage),
        ("content", f"{manifest['num_images']:,} different images, {manifest['num_texts']:,} different captions"),
    ]
    if model.settings.data.fraction < 1:
        rows.append(("used", f"{model.settings.data.fraction:g} of the training groups"))
    if prepared.shuffled:
        rows.append(("noise", f"{prepared.shuffled:,} training rows have another row's captions, on purpose"))
    return _table(("", ""), rows)


def _limits(model: Model, prepared: Prepared) -> list[str]:
    settings = model.settings
    limits = [
        f"It knows what {prepared.name} shows and says; nothing was measured on other data unless it is listed above.",
        f"Texts beyond {settings.text_tower.max_tokens} tokens are cut. Of an image only the centre square is seen.",
        "Fairness, safety and the content of the data were not examined.",
    ]
    if model.trained.scale is None:
        limits.append(f"The objective {settings.objective.name} has no temperature: its cosines are no logits.")
    return limits


def _short(settings: Any) -> str:
    """A part of the config in one line."""
    tree = settings.model_dump(mode="json", exclude_defaults=True) | {"name": settings.name} if hasattr(settings, "name") else {}
    tree = tree or settings.model_dump(mode="json")
    return shown(", ".join(f"{key} {json.dumps(value) if not isinstance(value, str) else value}" for key, value in tree.items()))


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _list(sentences: list[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
