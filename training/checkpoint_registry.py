"""Which checkpoints a run has, whether each is intact, and from which one the run resumes.

A checkpoint is a folder that is registered once it is complete: by Ray Train in its list, of which we keep a copy, or, in runs
without Ray Train, in a list of our own. Any other folder called checkpoint_... is incomplete and ignored. `digests.json` has a
digest of each file of a checkpoint, so that a truncated or altered file is reported and not used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.program.errors import UserError
from pipelines.program.ray_internals import SNAPSHOT, is_snapshot, snapshot_checkpoints, snapshot_with
from pipelines.program.settings_base import digest

DIGESTS = "digests.json"
ABOUT = "checkpoint.json"
STATE = "state"  # the name of the tree (tensor_tree.py)
FORMAT = 3  # in checkpoint.json; formats 1 and 2 had the state in a pickle
_OLD_STATE = "state.pt"
NEWEST = "newest_checkpoint.json"  # in runs without Ray Train: names of all checkpoints, the newest last
KEPT_LIST = "checkpoint_manager_snapshot.kept.json"  # our copy of Ray Train's list, as of the last time it was complete
TESTED = "test.json"  # scores of the best checkpoint on the test split (final_test.py)
_NAME = re.compile(r"checkpoint_[0-9]+")
_BLOCK = 1 << 22  # bytes


def seal(folder: Path) -> None:
    """Write a digest of each file of a checkpoint; files that have one already are not read again."""
    digests = _digests(folder) if (folder / DIGESTS).exists() else {}
    for file in sorted(folder.iterdir()):
        if file.name != DIGESTS and file.name not in digests:
            digests[file.name] = _digest(file)
    put(folder / DIGESTS, json.dumps({"files": digests, "digest": digest(digests)}, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as a clause that names the file; None if it is intact."""
    if not folder.is_dir():
        return "is missing"
    try:
        json.loads((folder / ABOUT).read_text(encoding="utf-8"))["config"]
    except FileNotFoundError:
        return f"{ABOUT} is missing"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{ABOUT} is not what was saved ({type(error).__name__})"
    return changed(folder)


def changed(folder: Path) -> str | None:
    """What has changed in a folder with digests, as a clause that names the file; None if nothing has."""
    try:
        digests = _digests(folder)
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError) as error:
        return f"{DIGESTS} is not what was saved ({type(error).__name__})"
    for name, saved in digests.items():
        try:
            now = _digest(folder / name)
        except OSError as error:
            return f"{name} {'is missing' if isinstance(error, FileNotFoundError) else f'cannot be read ({error.strerror})'}"
        if now != saved:
            return f"{name} is not what was saved"
    return None


def check(folder: Path) -> None:
    """Raises a `UserError` that names the damaged file of a checkpoint and, if the run has one, the newest intact checkpoint."""
    _check_format(folder)
    what = damage(folder)
    if what is None:
        return
    others = [path for path in reversed(registered(folder.parent)) if path.name != folder.name]
    intact = next((path for path in others if damage(path) is None), None)
    remedy = "copy it again" + ("" if intact is None else f", or give {intact}, the newest intact one")
    raise UserError("checkpoint", f"{folder} is damaged: {what}", remedy)


def _check_format(folder: Path) -> None:
    """Raises `UserError` for a checkpoint of an earlier version, whose state is a pickle: loading one can run code."""
    if (folder / _OLD_STATE).exists():
        problem = f"{folder} is of an earlier version of raylign, which saved {_OLD_STATE}, a pickle; this one loads none"
        remedy = "train again, or export it with that version: raylign export RUN --to safetensors"
        raise UserError("checkpoint", problem, remedy)


def registered(run: Path) -> list[Path]:
    """The finished checkpoints in a run's folder according to its lists, the newest last; some may be damaged."""
    names: list[str] = []
    if (run / NEWEST).exists():
        listed = _json(run / NEWEST)
        folders = [path.name for path in run.glob("checkpoint_*")]  # if the list is damaged: a folder is complete once renamed
        names = [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else folders
    for tree in (_listed(run / KEPT_LIST), _listed(run / SNAPSHOT)):
        if tree is not None:
            names += snapshot_checkpoints(tree)
    unique = dict.fromkeys(name for name in names if isinstance(name, str) and _NAME.fullmatch(name))
    return [run / name for name in sorted(unique, key=lambda name: int(name.removeprefix("checkpoint_")))]


def is_checkpoint(name: str) -> bool:
    """Whether this is the name of a checkpoint's folder."""
    return _NAME.fullmatch(name) is not None


def newest_checkpoint(run: Path) -> Path:
    """The newest finished checkpoint in a run's folder. Raises `UserError` if there is none."""
    checkpoints = registered(run)
    if not checkpoints:
        remedy = "give a run's folder, or one checkpoint_... or best inside it"
        raise UserError("checkpoint", f"{run} holds no finished checkpoint", remedy)
    return checkpoints[-1]


def newest_step(run: Path) -> int | None:
    """The step from which a run would resume; None if it would start at the beginning."""
    try:
        return int(newest_checkpoint(run).name.rpartition("_")[2])
    except (UserError, ValueError):
        return None


def settle(run: Path, tell: Callable[[str], None]) -> Path | None:
    """Prepare a run's folder for resuming: returns its newest intact checkpoint, which its lists then name as the newest.

    Newer damaged ones are reported and renamed to damaged-checkpoint_...; incomplete checkpoints are deleted. None if no
    checkpoint was ever finished: the run starts at step 0. Raises `UserError` if there are checkpoints, but none is intact, or no
    list of them, or of an earlier version.
    """
    for leftover in run.glob("*.json.partial-*"):
        leftover.unlink()
    checkpoints, damaged = registered(run), []
    for path in checkpoints:
        _check_format(path)
    while checkpoints and (what := damage(checkpoints[-1])) is not None:
        damaged.append((checkpoints.pop(), what))
    if damaged and not checkpoints:
        problem = "; ".join(f"{path.name}: {what}" for path, what in damaged)
        remedy = "copy one again, give another name=, or pass overwrite=true"
        raise UserError("checkpoint", f"{run} holds no intact checkpoint ({problem})", remedy)
    for path, what in damaged:
        tell(f"{path} is damaged: {what}; resuming from {checkpoints[-1].name}, the newest intact one")
        if path.is_dir():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    if not checkpoints:
        _check_list(run)
        (run / SNAPSHOT).unlink(missing_ok=True)  # the very first list was cut off
        return None
    checkpoints = [path for path in checkpoints if path.is_dir()]
    if (run / NEWEST).exists():
        put(run / NEWEST, json.dumps([path.name for path in checkpoints]))
    else:
        _rewrite(run, [path.name for path in checkpoints])
    for path in run.glob("checkpoint_*"):
        if path.is_dir() and path not in checkpoints:
            shutil.rmtree(path)
    return checkpoints[-1]


def _check_list(run: Path) -> None:
    """Raises `UserError` for several intact checkpoints without a list of them: the second is begun after the first list."""
    intact = [path for path in run.glob("checkpoint_*") if _NAME.fullmatch(path.name) and damage(path) is None]
    if len(intact) > 1 and not any((run / name).exists() for name in (NEWEST, SNAPSHOT, KEPT_LIST)):
        problem = f"{run} holds {len(intact)} checkpoints, and no list of them ({NEWEST}, or {SNAPSHOT} and {KEPT_LIST})"
        raise UserError("checkpoint", problem, "copy it too, give another name=, or pass overwrite=true")


def keep_snapshot(run: Path) -> bool:
    """Copy Ray Train's list of checkpoints; returns whether it was complete.

    Ray writes the list in place, so a process that is killed meanwhile leaves a truncated list, from which Ray cannot resume. The
    checkpoints in the previous list still exist: Ray deletes checkpoints only after it has written the new list.
    """
    tree = _listed(run / SNAPSHOT)
    if tree is not None:
        put(run / KEPT_LIST, json.dumps({"list": tree, "digest": digest(tree)}))
    return tree is not None


def put(path: Path, text: str) -> None:
    """Write a temporary file, and rename it into place."""
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _rewrite(run: Path, names: Sequence[str]) -> None:
    """Reduce Ray Train's list to these checkpoints, the last being the newest.

    Our copy of the list is trusted first, because it has a digest; then Ray's, if a process died before it was copied.
    """
    trees = [tree for file in (KEPT_LIST, SNAPSHOT) if (tree := _listed(run / file)) is not None]
    tree = next(tree for tree in trees if names[-1] in snapshot_checkpoints(tree))
    put(run / SNAPSHOT, json.dumps(snapshot_with(tree, names)))
    keep_snapshot(run)


def _listed(path: Path) -> dict[str, Any] | None:
    """Ray Train's list, or our copy of it; None for any other content, and for a list without checkpoints."""
    tree = _json(path)
    try:
        if "list" in tree:  # our copy
            tree = tree["list"] if tree["digest"] == digest(tree["list"]) else None
    except (KeyError, TypeError):
        return None
    return tree if is_snapshot(tree) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, truncated or changed
        return None


def _digests(folder: Path) -> dict[str, str]:
    tree = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or tree.get("digest") != digest(tree.get("files")):
        raise ValueError("not what was written")
    return tree["files"]


def _digest(file: Path) -> str:
    digest_of_file = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest_of_file.update(block)
    return digest_of_file.hexdigest()
