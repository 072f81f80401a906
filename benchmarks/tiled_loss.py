"""The InfoNCE loss of a large batch: ours in blocks, ours held plainly, and open_clip's; time and peak memory side by side.

    python -m benchmarks.tiled_loss            # about 3 minutes on 2 cores, up to 8 GiB of memory

Time: forward and backward, the three forms in turn, median of the rounds. Peak memory: what a process of its own grows by
over its inputs (the kernel's high-water mark; on a GPU, the allocator's). On a CPU it is measured twice: with a malloc that
gives freed blocks back at once, which shows what the form needs, and with glibc's as it is, which keeps some for later.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runs import machine
from training.objectives.base import Embeddings
from training.objectives.clip import ClipSettings
from training.objectives.ops import blocks

WIDTH = 512
TIMED, LARGE = 8192, 16384
RESULT = Path("docs/benchmarks/tiled_loss.md")


def pairs(rows: int, device: str) -> tuple[Tensor, Tensor]:
    """Random unit rows [B, D], related as images and texts are."""
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(rows, WIDTH, generator=random)) for _ in range(2))
    return image.to(device).requires_grad_(), F.normalize(text + image.detach().cpu()).to(device).requires_grad_()


def ours(plain: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """CLIP's loss at temperature 0.07, in blocks as it would be chosen, or held plainly whatever its size."""
    objective = ClipSettings(mask_false_negatives=False).build(None)  # type: ignore[arg-type]

    def loss(image: Tensor, text: Tensor) -> Tensor:
        chosen, blocks.PLAIN = blocks.PLAIN, sys.maxsize if plain else blocks.PLAIN
        try:
            total = objective.to(image.device)(Embeddings(image, text, image, text), {}).total
            total.backward()
        finally:
            blocks.PLAIN = chosen
        return total

    return loss


def theirs() -> Callable[[Tensor, Tensor], Tensor]:
    """open_clip's ClipLoss at the same scale."""
    from open_clip.loss import ClipLoss

    module, scale = ClipLoss(), torch.tensor(1 / 0.07, requires_grad=True)

    def loss(image: Tensor, text: Tensor) -> Tensor:
        total = module(image, text, scale.to(image.device))
        total.backward()
        return total

    return loss


FORMS = {"tiled": lambda: ours(plain=False), "plain": lambda: ours(plain=True), "open_clip": theirs}


def peak(form: str, rows: int, device: str) -> float:
    """MiB beyond the inputs that one forward and backward needs, in this fresh process."""
    loss = FORMS[form]()
    loss(*pairs(64, device))  # threads, kernels and libraries are there from here on
    image, text = pairs(rows, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss(image, text)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    loss(image, text)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def times(rows: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each form, in turn."""
    image, text = pairs(rows, device)
    forms = {name: make() for name, make in FORMS.items()}
    found: dict[str, list[float]] = {name: [] for name in forms}
    values = {}
    for turn in range(rounds + 1):
        for name, loss in forms.items():
            start = time.perf_counter()
            values[name] = float(loss(image, text).detach())
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first is for warming up
                found[name].append(time.perf_counter() - start)
            image.grad = text.grad = None
    assert max(values.values()) - min(values.values()) < 1e-4, values
    return found


def child(form: str, rows: int, device: str, keeps: bool = False) -> float:
    """`peak` in a process of its own; `keeps`: with malloc as it is."""
    command = [sys.executable, "-m", "benchmarks.tiled_loss", "--peak", form, "--rows", str(rows), "--device", device]
    environment = os.environ | ({} if keeps else {"MALLOC_MMAP_THRESHOLD_": str(2**20)})
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(answer.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of the three forms")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--peak", choices=list(FORMS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=TIMED, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.peak:
        print(json.dumps(peak(told.peak, told.rows, told.device)))
        return
    seconds = times(TIMED, told.rounds, told.device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    memory = {name: child(name, TIMED, told.device) for name in FORMS}
    kept = {name: child(name, TIMED, told.device, keeps=True) for name in FORMS}
    large = {name: child(name, LARGE, told.device) for name in ("tiled", "open_clip")}
    lines = [
        "# The loss of a large batch",
        "",
        f"`python -m benchmarks.tiled_loss --rounds {told.rounds} --device {told.device}`; {machine()}.",
        f"CLIP's loss, D = {WIDTH}, float32; forward and backward; median (range) of {told.rounds} rounds; peak memory beyond",
        "the inputs, in a process of its own; resident: with glibc's malloc as it is, which keeps freed blocks.",
        "",
        f"| form | seconds, B = {TIMED:,} | relative to plain | peak, B = {TIMED:,} | relative to plain | resident "
        f"| peak, B = {LARGE:,} |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in FORMS:
        low, high = min(seconds[name]), max(seconds[name])
        cells = [name, f"{median[name]:.2f} ({low:.2f} to {high:.2f})", f"{median[name] / median['plain']:.2f}"]
        cells += [f"{memory[name]:,.0f} MiB", f"{memory[name] / memory['plain']:.3f}", f"{kept[name]:,.0f} MiB"]
        cells.append(f"{large[name]:,.0f} MiB" if name in large else "-")
        lines.append(f"| {' | '.join(cells)} |")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
