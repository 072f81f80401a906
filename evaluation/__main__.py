"""`python -m evaluation CONFIG.yaml`: score an embedder on a prepared dataset's held-out split."""

import json
import os
import sys

from evaluation.config import EvaluateSettings
from evaluation.suite import Scores, held_out, mean_recalls, score
from pipelines.cli import run_program
from pipelines.display import Display
from pipelines.prepared import Prepared
from pipelines.settings import UserError

PURPOSE = """Score anything that embeds pictures and texts on the held-out split of a prepared dataset: retrieval both ways and
zero-shot classification, each beside chance. Embeds with Ray Data; writes result.json and prints a table."""


def evaluate(settings: EvaluateSettings, display: Display) -> dict:
    """Embed, score, write `result.json` and return its content."""
    from evaluation.embed import embed
    from pipelines import cluster

    prepared = Prepared.open(settings.data)
    if settings.checkpoint is not None and not settings.checkpoint.exists():
        raise UserError(
            f"checkpoint: {settings.checkpoint} does not exist; give a run such as runs/demo, or one of its checkpoints"
        )
    data = held_out(prepared, settings.suite, settings.split_seed)
    cluster.start(display.verbose)
    scores = score(data, *embed(settings, prepared, data, display))
    result = {
        "embedder": settings.embedder,
        "arguments": settings.arguments(),
        "dataset": {"name": prepared.name, "fingerprint": prepared.fingerprint, "split": settings.suite.split}
        | {"split_seed": settings.split_seed, "counts": prepared.manifest["counts"]}
        | {"attribution": prepared.manifest["attribution"]},
        "metrics": scores.metrics | mean_recalls(scores.metrics),
        "baselines": scores.baselines,
        "sample_sizes": scores.sample_sizes,
    }
    settings.output.mkdir(parents=True, exist_ok=True)
    aside = settings.output / f"result.json.partial-{os.getpid()}"
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.rename(settings.output / "result.json")
    title = f"{settings.embedder} on {len(data.sample_ids)} pairs of {prepared.name}, split {settings.suite.split}"
    display.table(title, Scores.HEADER, scores.rows())
    display.line(f"result: {settings.output / 'result.json'}")
    return result


def _run(settings: EvaluateSettings, display: Display) -> None:
    evaluate(settings, display)


if __name__ == "__main__":
    sys.exit(run_program("evaluation", PURPOSE, EvaluateSettings, _run))
