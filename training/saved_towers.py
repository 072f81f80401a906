"""What a run saves of its towers, so that its folder opens on a machine without their packages, files or a hub.

    RUN/checkpoint_.../checkpoint.json   the architecture of each tower in `state`, without weights (`Tower.about`)
    RUN/checkpoint_.../tokenizer.json    the text tower's tokenizer
    RUN/towers/KEY/tower.safetensors     of a tower that is not in checkpoints (a locked one or a frozen encoder): its weights;
               ... tower.json            its architecture, identity, and a text tower's tokenizer
    DATASET/features/towers/DIGEST/      the same, if the dataset is on a disk: the hundreds of runs of a sweep link to it

A resumed run reads its own copies and never the originals, which may be gone or different by now.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.program.errors import UserError
from pipelines.program.settings import difference
from pipelines.program.settings_base import digest
from training.checkpoint_registry import ABOUT, changed, seal
from training.run_store import RunStore, kept, store_of
from training.tensor_tree import load_tree, save_tree
from training.towers.base import TowerSettings
from training.towers.image import ImageTowerSettings
from training.towers.text import TextTowerSettings

_TOWERS = "towers"
_TREE = "tower"  # the name of the tree (tensor_tree.py)
_OLD_FILE = "tower.pt"
About = dict[str, Any]


def towers_of(checkpoint: Path | None) -> tuple[About | None, About | None]:
    """Architectures of a checkpoint's towers, image and text; None for a tower that it does not hold, or does not describe."""
    try:
        about = json.loads((checkpoint / ABOUT).read_text(encoding="utf-8")) if checkpoint else {}
        image, text = about["towers"]
        return image, text
    except (OSError, ValueError, LookupError, TypeError):  # of an earlier version; a damaged file is reported when it is loaded
        return None, None


def tokenizer_of(checkpoint: Path, max_tokens: int) -> TextTokenizer:
    """The text tower's tokenizer with which the checkpoint was trained."""
    about = json.loads((checkpoint / ABOUT).read_text(encoding="utf-8"))
    tokenizer = (checkpoint / "tokenizer.json").read_text(encoding="utf-8")
    return TextTokenizer(tokenizer, max_tokens, **about.get("tokenizer", {}))


@dataclass(frozen=True)
class Frozen:
    """A tower that is not in checkpoints: a locked one, or a frozen encoder."""

    settings: TowerSettings
    key: str  # in the config, such as image_tower
    folder: Path | None  # the run's copy; None: its weights are those that the settings name
    identity: dict[str, Any]  # what determines its features, as JSON values
    store: RunStore | None = None  # of the run; `folder` is the driver's copy

    def tokenizer(self, corpus: Callable[[], list[str]]) -> TextTokenizer:
        """The text tower's tokenizer."""
        assert isinstance(self.settings, TextTowerSettings)
        if self.folder is None:
            return self.settings.tokenizer(corpus, self.key)
        saved = self._saved()["tokenizer"]
        return TextTokenizer(saved["json"], self.settings.max_tokens, **saved["reading"])

    def build(self, vocabulary_size: int = 0) -> Any:
        """The tower with its weights."""
        if self.folder is None:
            return build(self.settings, vocabulary_size, self.key)
        saved = self._saved()
        tower = self.settings.rebuild(saved["about"], vocabulary_size)
        tower.load_state_dict(saved["state"])
        return tower.eval()

    def _saved(self) -> dict[str, Any]:
        assert self.folder is not None
        return _read(self.folder if self.store is None else self.store.opened(f"{_TOWERS}/{self.key}"))

    def weights_name(self) -> str | None:
        """Where its weights come from."""
        return self.settings.weights_name() if self.folder is None else str(self.folder)


def build(settings: TowerSettings, vocabulary_size: int, key: str) -> Any:
    """A tower from the weights that its settings name."""
    if isinstance(settings, ImageTowerSettings):
        return settings.build(key)
    assert isinstance(settings, TextTowerSettings)
    return settings.build(vocabulary_size, key)


def frozen(settings: TowerSettings, key: str, run: Path | None) -> Frozen:
    """A tower that is not in checkpoints: the run's copy if there is one. Raises `UserError` if that is damaged, or if there is
    none and the settings name no pretrained weights."""
    folder = None if run is None else run / _TOWERS / key
    if folder is None or not folder.exists():
        return Frozen(settings, key, None, settings.identity(key))
    if (damage := changed(folder)) is not None:
        raise UserError(key, f"{folder} is damaged: {damage}", f"copy it again, or delete it, and {key}.weights is read again")
    return Frozen(settings, key, folder, _read(folder)["identity"], store_of(folder.parent.parent))


def trained_tower(settings: TowerSettings, key: str, about: About | None, vocabulary_size: int) -> Any:
    """A tower for a checkpoint's weights. Without `about` it is built from the weights that its settings name."""
    return build(settings, vocabulary_size, key) if about is None else settings.rebuild(about, vocabulary_size)


def locked_tower(
    settings: TowerSettings, key: str, checkpoint: Path, identity: dict[str, Any] | None, vocabulary_size: int
) -> Any:
    """A locked tower of a checkpoint: the run's copy, or else built from the weights that its settings name.

    `identity`: its identity when the run was trained; None if it is not recorded. Raises `UserError` if it is different now.
    """
    remedy = f"copy the run's folder {_TOWERS} too, beside the checkpoint"
    try:
        tower = frozen(settings, key, checkpoint.parent)
    except UserError as error:
        if (checkpoint.parent / _TOWERS / key).exists():
            raise
        problem = f"{checkpoint} does not hold its {key}, which is locked ({error.key}: {error.problem})"
        raise UserError("checkpoint", problem, remedy) from None
    if identity is not None and tower.identity != identity:
        changes = ", ".join(difference(identity, tower.identity)[:2])
        problem = f"{checkpoint} was trained with another {key} than {tower.weights_name()} is now ({changes})"
        raise UserError("checkpoint", problem, remedy)
    return tower.build(vocabulary_size)


def keep(towers: Iterable[Frozen], run: Path, cache: Path | None) -> None:
    """Put a copy of each tower into the run's folder unless it has one. `cache`: a folder of copies to link to, or None."""
    for tower in towers:
        folder = run / _TOWERS / tower.key
        if folder.exists():
            continue
        aside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        source = None if cache is None else _shared_copy(tower, cache)
        if source is not None and _cached(tower, source):
            shutil.copytree(source, aside, copy_function=_link)
        else:
            _write(tower, aside)
        aside.rename(folder)
        kept(run, f"{_TOWERS}/{tower.key}")


def has_copy(tower: Frozen, cache: Path | None) -> bool:
    """Whether the run or the cache has a copy, damaged or not: then the tower was built before."""
    return tower.folder is not None or (cache is not None and _shared_copy(tower, cache).exists())


def _shared_copy(tower: Frozen, cache: Path) -> Path:
    return cache / _TOWERS / digest([_TREE, tower.identity, tower.settings.model_dump(mode="json")])


def _cached(tower: Frozen, source: Path) -> bool:
    """Put the tower into the cache unless it is there. False if that fails, as on a read-only disk."""
    if source.exists() and changed(source) is None:
        return True
    aside = source.with_name(f"{source.name}.partial-{os.getpid()}")
    shutil.rmtree(source, ignore_errors=True)  # a damaged one
    try:
        shutil.rmtree(aside, ignore_errors=True)
        _write(tower, aside)
        aside.rename(source)
    except OSError:  # among others, if another process was faster
        shutil.rmtree(aside, ignore_errors=True)
    return source.exists() and changed(source) is None


def _write(tower: Frozen, folder: Path) -> None:
    tokenizer = tower.tokenizer(list) if isinstance(tower.settings, TextTowerSettings) else None
    built = tower.build(0 if tokenizer is None else tokenizer.vocabulary_size)
    saved: dict[str, Any] = {
        "identity": json.loads(json.dumps(tower.identity)),
        "about": json.loads(json.dumps(built.about)),
        "state": built.state_dict(),
    }
    if tokenizer is not None:
        saved["tokenizer"] = {"json": tokenizer.json, "reading": tokenizer.reading}
    folder.mkdir(parents=True)
    save_tree(saved, folder, _TREE)
    seal(folder)


def _link(source: str, target: str) -> None:
    """A link instead of a copy: these files never change, so one per disk is enough."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or a disk without links
        shutil.copyfile(source, target)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return load_tree(folder, _TREE)
    except (OSError, ValueError) as error:
        problem = f"holds no tower ({' '.join(str(error).split())[:150]})"
        if (folder / _OLD_FILE).exists():
            problem = f"is of an earlier version of raylign, which saved {_OLD_FILE}, a pickle; this one loads none"
        raise UserError(str(folder), problem, "delete it, and the weights are read again; or copy it again") from None
