"""Names that timm registers, read from its source: importing timm takes seconds, and a misspelt name is reported at once."""

import importlib.util
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path


def models() -> Collection[str]:
    """Names of timm's models, without tags. If timm is imported, also those that other packages have registered with it."""
    if "timm" in sys.modules:
        return sys.modules["timm"].list_models()
    return _written(r"^@register_model\ndef (\w+)\(", "models/*.py")


def optimizers(wanted: str) -> Collection[str]:
    """Names of timm's optimizers; timm is imported only if its source leaves open whether `wanted` is one of them."""
    names = _written(r"^ +name='(\w+)',$", "optim/_optim_factory.py")
    if wanted in names or wanted not in _written(r"['\"](\w+)['\"]", "optim/_optim_factory.py"):
        return names
    from timm.optim import list_optimizers

    return list_optimizers()


@cache
def _written(pattern: str, files: str) -> frozenset[str]:
    """What the pattern's group matches in timm's files."""
    spec = importlib.util.find_spec("timm")
    folders = map(Path, spec.submodule_search_locations or []) if spec else []
    texts = (file.read_text(encoding="utf-8") for folder in folders for file in folder.glob(files))
    return frozenset(name for text in texts for name in re.findall(pattern, text, re.MULTILINE))
