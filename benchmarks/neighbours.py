"""Neighbours by the approximate index beside those by the exact search: recall, and CPU seconds.

    python -m benchmarks.neighbours            # some 5 minutes on 2 cores, 2 GiB of memory

Rows: 100,000 random unit rows about 2,000 centres, tight and loose, and, where it was prepared, the images and captions of
OpenMoji (pipelines/configs/openmoji-features.yaml). Queries are rows themselves, and each leaves its own group out. Recall@1: the
share of the queries for which the index finds the very row that the exact search finds. Cosine lost: by how much less alike the
rows are that it finds, over all queries. Seconds are of all threads together: other programs on the machine count little.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import machine
from pipelines.dataset.prepared import Prepared
from pipelines.features.frozen_encoders import unit
from pipelines.features.knn import Approximate, nearest
from pipelines.features.rows_by_id import feature_rows
from pipelines.program.display import Display
from pipelines.program.settings import load
from training.features import FeatureSettings, compute_features

ROWS, WIDTH, CENTRES = 100_000, 384, 2000
RECIPE = Path("pipelines/configs/openmoji-features.yaml")
RESULT = Path("docs/benchmarks/neighbours.md")


def clusters(spread: float) -> np.ndarray:
    """Unit rows [ROWS, WIDTH] whose distance from their centre is `spread` times the centre's length, on average."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(CENTRES, WIDTH)).astype(np.float32)
    noise = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    return unit(centres[random.integers(CENTRES, size=ROWS)] + spread * noise)


def openmoji() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, unit rows, groups) of images and captions, computed where they are missing; nothing without the dataset."""
    settings = load(FeatureSettings, RECIPE)
    if not (Path(settings.dataset) / "manifest.json").exists():
        return
    images, texts, _ = compute_features(settings, Display())
    prepared = Prepared.open(settings.dataset)
    everybody = np.arange(prepared.num_samples)
    image_ids, firsts = prepared.row_ids.image(everybody), prepared.row_ids.text(everybody)
    yield "OpenMoji's images, EfficientNet-Lite0", unit(feature_rows(images)[:]), image_ids
    yield "OpenMoji's captions, MiniLM", unit(feature_rows(texts)[firsts]), image_ids


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def measured(name: str, rows: np.ndarray, groups: np.ndarray, queries: int) -> str:
    """A row of the table."""
    asked = np.sort(np.random.default_rng(1).permutation(len(rows))[:queries])
    exact, exact_seconds = timed(lambda: nearest(rows[asked], rows, groups[asked], groups))
    index, build_seconds = timed(lambda: Approximate(lambda places: rows[places], groups))
    found, seconds = timed(lambda: index.nearest(rows[asked], groups[asked]))
    assert (groups[found] != groups[asked]).all()
    lost = np.mean((rows[asked] * rows[exact]).sum(axis=1) - (rows[asked] * rows[found]).sum(axis=1))
    each = 1000 / len(asked)
    cells = [name, f"{len(rows):,} x {rows.shape[1]}", f"{len(asked):,}", f"{100 * np.mean(found == exact):.1f} %", f"{lost:.5f}"]
    cells += [f"{build_seconds:.1f}", f"{seconds * each:.2f}", f"{exact_seconds * each:.2f}", f"{exact_seconds / seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=4000)
    told = parser.parse_args()
    lines = [
        "# Neighbours: an approximate index beside the exact search",
        "",
        f"`python -m benchmarks.neighbours --queries {told.queries}`; {machine()}.",
        "`frozen_encoders.search: approximate` is faiss's inverted lists of 8-bit codes: 32 candidates a query, the best is",
        "chosen by the rows. Exact: one product with all rows, on the CPU. Seconds are CPU seconds of all threads. Cosine lost:",
        "of a neighbour, on average over all queries.",
        "",
        "| rows | size | queries | recall@1 | cosine lost | s to build | ms a query | exact, ms a query | times as fast |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for spread in (0.5, 1.0, 2.0):
        rows = clusters(spread)
        lines.append(measured(f"{CENTRES:,} clusters, spread {spread:g}", rows, np.arange(len(rows)), told.queries))
        print(lines[-1], flush=True)
    for name, rows, groups in openmoji():
        lines.append(measured(name, rows, groups, told.queries))
        print(lines[-1], flush=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
