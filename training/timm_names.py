"""Names that timm registers, read from its source: importing timm takes seconds, and a misspelt name is reported at once."""

import importlib.util
import re
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path


def models() -> Collection[str]:
    """Names of timm's models, without tags and without deprecated names."""
    return _written(r"^@register_model\ndef (\w+)\(", "models/*.py")


def is_model(name: str) -> bool:
    """Whether timm builds a model of this name, which may have a tag; deprecated names and other packages' models count.

    timm is imported only if its source leaves that open.
    """
    model = name.partition(".")[0]
    if model in models():
        return True
    if "timm" not in sys.modules and model not in _written(r"['\"](\w+)['\"]", "models/*.py"):
        return False
    import timm

    return timm.is_model(name)


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
