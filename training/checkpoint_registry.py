"""Which checkpoints a run has, whether each is intact, and from which one the run resumes.

A checkpoint is a folder that is registered once it is complete: by Ray Train in its list, of which a copy is kept, or, in runs
without Ray Train, in a list of our own. Any other folder called checkpoint_... is incomplete and is ignored. `digests.json` has a
digest of each file of a checkpoint, so that a truncated or altered one is reported, not used.
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
FORMAT = 2  # in checkpoint.json; those of 1, which do not name it, have no digests
NEWEST = "newest_checkpoint.json"  # names of all, the newest last, where a run was trained without Ray Train
_KEPT = "checkpoint_manager_snapshot.kept.json"  # our copy of Ray Train's list, the last that was whole
_NAME = re.compile(r"checkpoint_[0-9]+")
_BLOCK = 1 << 22  # bytes


def seal(folder: Path) -> None:
    """Write a digest of each file of a checkpoint; files with a digest are not read again."""
    known = _digests(folder) if (folder / DIGESTS).exists() else {}
    for file in sorted(folder.iterdir()):
        if file.name != DIGESTS and file.name not in known:
            known[file.name] = _digest(file)
    put(folder / DIGESTS, json.dumps({"files": known, "digest": digest(known)}, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as a clause that names the file; None if it is as saved."""
    if not folder.is_dir():
        return "is missing"
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        old = about["config"] is not None and "format" not in about
    except FileNotFoundError:
        return f"{ABOUT} is missing"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{ABOUT} is not what was saved ({type(error).__name__})"
    if old and not (folder / DIGESTS).exists():  # saved before there were digests
        return None if (folder / "state.pt").exists() else "state.pt is missing"
    return changed(folder)


def changed(folder: Path) -> str | None:
    """What has changed in a folder with digests, as a clause that names the file; None if nothing has."""
    try:
        known = _digests(folder)
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError) as error:
        return f"{DIGESTS} is not what was saved ({type(error).__name__})"
    for name, wanted in known.items():
        try:
            found = _digest(folder / name)
        except OSError as error:
            return f"{name} {'is missing' if isinstance(error, FileNotFoundError) else f'cannot be read ({error.strerror})'}"
        if found != wanted:
            return f"{name} is not what was saved"
    return None


def check(folder: Path) -> None:
    """Raises `UserError` that names the damaged file of a checkpoint and, if the run has one, the newest intact checkpoint."""
    what = damage(folder)
    if what is None:
        return
    others = [path for path in reversed(registered(folder.parent)) if path.name != folder.name]
    whole = next((path for path in others if damage(path) is None), None)
    way_out = "copy it again" + ("" if whole is None else f", or give {whole}, the newest that is whole")
    raise UserError(f"checkpoint: {folder} is damaged: {what}; {way_out}")


def registered(run: Path) -> list[Path]:
    """The finished checkpoints in a run's folder, the newest last, according to its lists; some may be damaged."""
    names: list[str] = []
    if (run / NEWEST).exists():
        found = _json(run / NEWEST)
        whole = [path.name for path in run.glob("checkpoint_*")]  # damaged list; folders are complete once renamed
        names = [found] if isinstance(found, str) else found if isinstance(found, list) else whole
    for tree in (_listed(run / _KEPT), _listed(run / SNAPSHOT)):
        if tree is not None:
            names += snapshot_checkpoints(tree)
    unique = dict.fromkeys(name for name in names if isinstance(name, str) and _NAME.fullmatch(name))
    return [run / name for name in sorted(unique, key=lambda name: int(name.removeprefix("checkpoint_")))]


def newest_checkpoint(run: Path) -> Path:
    """The newest finished checkpoint in a run's folder. Raises `UserError` if there is none."""
    found = registered(run)
    if not found:
        raise UserError(
            f"checkpoint: {run} holds no finished checkpoint; give a run's folder, or one checkpoint_... or best inside it"
        )
    return found[-1]


def settle(run: Path, tell: Callable[[str], None]) -> Path | None:
    """Before a run resumes: its newest intact checkpoint, which its lists name as the newest from now on.

    Newer damaged ones are reported and renamed to damaged-checkpoint_...; incomplete checkpoints are deleted. None if no
    checkpoint was ever finished: the run starts at step 0. Raises `UserError` if there are checkpoints, but none is intact.
    """
    for left in run.glob("*.json.partial-*"):
        left.unlink()
    found, wrong = registered(run), []
    while found and (what := damage(found[-1])) is not None:
        wrong.append((found.pop(), what))
    if wrong and not found:
        told = "; ".join(f"{path.name}: {what}" for path, what in wrong)
        raise UserError(
            f"checkpoint: {run} holds no checkpoint that is whole ({told}); copy one again, give another name=, or overwrite=true"
        )
    for path, what in wrong:
        tell(f"{path} is damaged: {what}; going on from {found[-1].name}, the newest that is whole")
        if path.is_dir():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    if not found:
        (run / SNAPSHOT).unlink(missing_ok=True)  # the very first list was cut off
        return None
    found = [path for path in found if path.is_dir()]
    if (run / NEWEST).exists():
        put(run / NEWEST, json.dumps([path.name for path in found]))
    else:
        _rewrite(run, [path.name for path in found])
    for path in run.glob("checkpoint_*"):
        if path.is_dir() and path not in found:
            shutil.rmtree(path)
    return found[-1]


def keep_snapshot(run: Path) -> bool:
    """Copy Ray Train's list of checkpoints; returns whether it was complete.

    Ray writes the list in place, so a process that is killed meanwhile leaves a truncated list, from which Ray cannot resume. The
    checkpoints in the previous list still exist: Ray deletes checkpoints only after it has written the new list.
    """
    tree = _listed(run / SNAPSHOT)
    if tree is not None:
        put(run / _KEPT, json.dumps({"list": tree, "digest": digest(tree)}))
    return tree is not None


def put(path: Path, text: str) -> None:
    """Write a temporary file, and rename it into place."""
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


def _rewrite(run: Path, names: Sequence[str]) -> None:
    """Ray Train's list with these checkpoints alone, the last being the newest.

    Our copy is the one to trust, which has a digest; Ray's, where a process died before it was copied.
    """
    trees = [tree for file in (_KEPT, SNAPSHOT) if (tree := _listed(run / file)) is not None]
    tree = next(tree for tree in trees if names[-1] in snapshot_checkpoints(tree))
    put(run / SNAPSHOT, json.dumps(snapshot_with(tree, names)))
    keep_snapshot(run)


def _listed(path: Path) -> dict[str, Any] | None:
    """A readable list of Ray Train's; None for any other content, and for a list without checkpoints."""
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
    found = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
