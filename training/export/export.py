"""Exports a run: express it as the target's network, write, compare with the run, and only then give the folder its name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipelines.dataset.prepared import Prepared
from pipelines.program import path_keys
from pipelines.program.errors import UserError
from training.checkpoint import other_data
from training.export.card import card
from training.export.model import CannotHoldError, Model, open_model
from training.export.parity import Parity, compare, held_out_of
from training.export.target import TARGETS

TOLERANCE = 1e-4  # of numbers in unit rows


def export(
    run: Path | str,
    target: str,
    output: Path,
    data: Path | str | None = None,
    tolerance: float = TOLERANCE,
    tell: Callable[[str], None] = print,
    wise_ft: float | None = None,
) -> Parity:
    """Export the newest checkpoint of a run, or the checkpoint at `run`, into a new folder.

    Args:
        run: a folder, or a URI.
        target: a name of `TARGETS`.
        data: the prepared dataset, where it is no longer where the run was trained.
        tolerance: largest difference of the rows of the export from those of the run.
        wise_ft: alpha of weights between those that the run started from, 0, and its own, 1; None: its own.

    Raises: `UserError`, and leaves nothing behind, if the target cannot hold the run or gives other rows.
    """
    if output.exists():
        raise UserError("--output", f"{output} exists", "give another folder, or delete it")
    path_keys.check_folder(output, "--output")
    model, to = open_model(run, wise_ft), TARGETS[target]
    to.check_library()
    prepared = _data(model, data)
    held = held_out_of(model, prepared)
    try:
        network = to.express(model)
        aside = output.with_name(f".{output.name}.partial-{os.getpid()}")
        aside.mkdir(parents=True)
        try:
            to.write(model, network, aside)
            parity = compare(model, held, prepared, to.usage(), aside, tolerance)
            for line in parity.lines(target):
                tell(line)
            if parity.largest > tolerance:
                raise _differs(parity, target, tolerance)
            (aside / "README.md").write_text(card(model, prepared, parity, to, network, run, output), encoding="utf-8")
            aside.rename(output)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except CannotHoldError as reason:
        raise _cannot(model, target, reason) from None
    return parity


def _data(model: Model, data: Path | str | None) -> Prepared:
    """The dataset that the run was trained on. Raises `UserError` if it is not there, or other data are."""
    about = model.about["dataset"]
    try:
        prepared = Prepared.open(data or about["path"])
    except UserError as error:
        raise UserError("--data", error.problem, "give the prepared dataset of the run: its held-out split is compared") from None
    if prepared.fingerprint != about["fingerprint"]:
        problem = other_data(model.checkpoint, about["fingerprint"], prepared).problem
        raise UserError("--data", problem, "give the folder that holds the run's data")
    return prepared


def _cannot(model: Model, target: str, reason: CannotHoldError) -> UserError:
    """The reason, and the nearest target that can hold the run."""
    for other, to in TARGETS.items():
        if other == target:
            continue
        try:
            to.check_library()
            to.express(model)
        except (CannotHoldError, UserError):
            continue
        return UserError("--to", f"{target} cannot hold {model.settings.name}: {reason}", f"pass --to {other}")
    raise AssertionError("safetensors holds every run")


def _differs(parity: Parity, target: str, tolerance: float) -> UserError:
    what, why = ("images", "") if parity.images > tolerance else ("texts", "")
    if what == "images" and parity.squares is not None and parity.squares <= tolerance:
        why = f", and by {parity.squares:.1e} if images are cropped to the run's squares before: it crops or resizes otherwise"
    return UserError(
        "--tolerance",
        f"rows of {what} in {target} differ from the run's by {parity.largest:.1e}, more than {tolerance:g}{why}",
        f"pass --to onnx or safetensors, or accept it with --tolerance {_up(parity.largest)}",
    )


def _up(number: float) -> str:
    """Rounded up to one digit."""
    mantissa, exponent = f"{number:.0e}".split("e")
    rounded = float(f"{mantissa}e{exponent}")
    return f"{rounded if rounded >= number else rounded + float(f'1e{exponent}'):.0e}"
