"""Retrieval both ways among 100,000 images and 500,000 captions: time beside the matrix products alone, and peak memory.

    python -m benchmarks.retrieval            # the whole case, 51 TFLOP of products, and a tenth again; inputs of 1.2 GB
    python -m benchmarks.retrieval --quick    # 5,000 images, seconds; writes no page

Random unit rows, D = 512, float32, five captions an image. The limit is what no ranking of these rows can beat: the same
products, tile by tile, by numpy alone, thrown away; half of a tenth of them before the ranking and half after it, times ten.
Peak memory: what a process of its own grows by over its inputs, which it
has read from disk (the kernel's high-water mark). The figures of a part of 2,000 x 10,000 are compared with those of the full
matrix.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.runs import machine
from evaluation import retrieval

WIDTH, CAPTIONS = 512, 5
IMAGES, PART = 100_000, 2_000
KS = (1, 5, 10)
RESULT = Path("docs/benchmarks/retrieval.md")


def rows(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images [I, D], captions [5 I, D], and for each image its captions [I, 5], which are anywhere."""
    random = np.random.default_rng(0)
    both = []
    for count in (images, CAPTIONS * images):
        array = random.standard_normal((count, WIDTH), dtype=np.float32)
        array /= np.sqrt(np.einsum("nd,nd->n", array, array))[:, None]
        both.append(array)
    return both[0], both[1], random.permutation(CAPTIONS * images).reshape(images, CAPTIONS)


def products(images: np.ndarray, texts: np.ndarray, tile: int) -> float:
    """Seconds of the products alone."""
    start = time.perf_counter()
    for i in range(0, len(images), tile):
        for t in range(0, len(texts), tile):
            images[i : i + tile] @ texts[t : t + tile].T
    return time.perf_counter() - start


def measured(images: int) -> dict[str, float]:
    """Seconds of ranking both ways and MiB that it adds to the inputs, in this fresh process; and the products' seconds."""
    image_rows, text_rows, right = rows(images)
    # Retrieval's own tiles or larger ones, whichever numpy does faster.
    tile = min((retrieval._TILE, 2048, 4096), key=lambda size: products(image_rows[:4096], text_rows[:40960], size))
    part = images // 20
    alone = products(image_rows[:part], text_rows, tile)
    retrieval.both_ranks(image_rows[:1024], text_rows[right[:1024].ravel()], np.arange(5120).reshape(-1, CAPTIONS))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    start = time.perf_counter()
    by_image, by_text = retrieval.both_ranks(image_rows, text_rows, right)
    seconds = time.perf_counter() - start
    grown = _status("VmHWM") - before
    alone += products(image_rows[-part:], text_rows, tile)
    medians = {"median by image": retrieval.median_rank(by_image), "median by caption": retrieval.median_rank(by_text)}
    return {"seconds": seconds, "MiB": grown, "products": alone * images / (2 * part)} | medians


def difference(part: int) -> float:
    """Largest difference, in points, of R@1/5/10 and the share of ranks that differ, from those of the whole matrix."""
    images, texts, right = rows(part)
    texts += 0.6 * images[np.argsort(right, axis=None) // CAPTIONS]  # some are found, and some are not
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    ours = retrieval.both_ranks(images, texts, right)
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    best = np.take_along_axis(scores, right, axis=1).max(axis=1)
    own = np.empty(len(texts), dtype=np.int64)
    own[right] = np.arange(part)[:, None]
    theirs = (  # of an image's own captions only the best is at or above itself, and is taken off
        (scores >= best[:, None]).sum(axis=1) - 1,
        (scores >= scores[own, np.arange(len(texts))]).sum(axis=0) - 1,
    )
    worst = 0.0
    for found, expected in zip(ours, theirs, strict=True):
        at = [abs(retrieval.recalls(found, KS)[k] - 100.0 * float(np.mean(expected < k))) for k in KS]
        worst = max(worst, *at, 100.0 * float(np.mean(found != expected)))
    return worst


def _status(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def child(images: int) -> dict[str, float]:
    """`measured` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.retrieval", "--measure", str(images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5,000 images, and no page")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.measure:
        print(json.dumps(measured(told.measure)))
        return
    images, part = (5_000, 400) if told.quick else (IMAGES, PART)
    apart = difference(part)
    found = child(images)
    inputs, matrix = (1 + CAPTIONS) * images * WIDTH * 4 / 2**20, CAPTIONS * images**2 * 4 / 2**30
    lines = [
        "# Retrieval in tiles",
        "",
        f"`python -m benchmarks.retrieval{' --quick' if told.quick else ''}`; {machine()}.",
        f"{images:,} images x {CAPTIONS * images:,} captions, both ways; random unit rows, D = {WIDTH}, float32. Inputs:",
        f"{inputs:,.0f} MiB; the matrix of scores: {matrix:,.1f} GiB.",
        "",
        "| | seconds | relative to the products | peak memory above the inputs |",
        "|---|---|---|---|",
        f"| ranks both ways | {found['seconds']:.1f} | {found['seconds'] / found['products']:.2f} | {found['MiB']:,.0f} MiB |",
        f"| one pass of the products alone (a tenth, times ten) | {found['products']:.1f} | 1 | |",
        "",
        f"Median rank of images {found['median by image']:,.0f}, of captions {found['median by caption']:,.0f}; of random",
        f"rows {CAPTIONS * images * (1 - 0.5 ** (1 / CAPTIONS)):,.0f} and {images / 2:,.0f} are expected.",
        "",
        f"Beside the full matrix in double precision, {part:,} x {CAPTIONS * part:,}: largest difference {apart:.6f} points of",
        "R@1/5/10, or percent of ranks.",
    ]
    print("\n".join(lines))
    if not told.quick:
        RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
