"""What keeps the house in order: imports point one way, few talk to torch.distributed, and names say what a file is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["pipelines", "evaluation", "training", "tuning", "raylign"]  # each may import those before it, and itself
# `python -m pipelines` computes banks too, and encoders are training's towers. It is a program, which nobody imports; it does so
# only where a config asks for banks.
EXCEPTION = ("pipelines/__main__.py", "training.features")
MODULES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 40 and {path.parts[0] for path in MODULES} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    above = [*LAYERS[LAYERS.index(layer) + 1 :], "tests", "benchmarks"]
    wrong = [
        f"{path}: {name}"
        for path in MODULES
        if path.parts[0] == layer
        for name in imports(ROOT / path)
        if any(within(name, other) for other in above) and not (str(path) == EXCEPTION[0] and within(name, EXCEPTION[1]))
    ]
    assert wrong == []
    below = [path for path in MODULES if path.parts[0] != "raylign"]
    assert not [str(path) for path in below for name in imports(ROOT / path) if name == "pipelines.__main__"]


def test_one_module_talks_to_torch_distributed() -> None:
    """The class DistributedDataParallel, from torch.nn.parallel, is another matter."""
    found = {str(path) for path in MODULES if any(within(name, "torch.distributed") for name in imports(ROOT / path))}
    attributes = {
        str(path)
        for path in MODULES
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
    }
    assert found | attributes == {"training/distributed.py"}


@pytest.mark.parametrize("forbidden", ["ray", "torch.distributed", "training.config", "training.towers", "training.encoder"])
def test_objectives_know_nothing_of_ray_workers_or_networks(forbidden: str) -> None:
    files = list((ROOT / "training" / "objectives").rglob("*.py"))
    assert len(files) >= 4
    assert [f"{f.name}: {name}" for f in files for name in imports(f) if within(name, forbidden)] == []


def test_evaluation_needs_no_torch() -> None:
    """An embedder belongs to whoever brings it: only pixels, strings and arrays cross that border."""
    assert [str(p) for p in MODULES if p.parts[0] == "evaluation" for name in imports(ROOT / p) if within(name, "torch")] == []


def test_no_drawer_for_odds_and_ends() -> None:
    assert [str(path) for path in MODULES if path.stem in {"utils", "util", "common", "helpers", "helper", "misc", "tools"}] == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    assert docstring is not None and len(docstring.split()) >= 4


def test_files_stay_short_enough_to_read() -> None:
    """The loop on one screen or two, an objective in 130 lines, hardly a file over 300."""
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert lines["training/loop.py"] <= 200
    assert {name: count for name, count in lines.items() if name.startswith("training/objectives/") and count > 130} == {}
    assert {name: count for name, count in lines.items() if count > 400} == {}
