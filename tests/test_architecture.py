"""What keeps the house in order: imports point one way, few talk to torch.distributed, and names say what a file is for."""

import ast
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["pipelines", "evaluation", "training", "tuning", "raylign"]  # each may import those before it, and itself
# `python -m pipelines` stores features too, and encoders are training's towers. It is a program, which nobody imports; it does so
# only where a config asks for that.
EXCEPTION = ("pipelines/__main__.py", "training.features")
MODULES = sorted(path.relative_to(ROOT) for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """Of a file's code; most tests here ask for every file's."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Every module that a file names in an import, wherever in the file it stands."""
    found: list[str] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            found += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(found)


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


def test_tasks_know_the_pages_kit_and_it_knows_no_task() -> None:
    """A task brings its block of the page, so that nothing else has to name it."""
    kit = [path for path in MODULES if path.parts[:2] == ("evaluation", "reporting") and path.name != "__main__.py"]
    above = ("evaluation.tasks", "evaluation.metrics", "evaluation.report", "evaluation.plan", "evaluation.config")
    assert len(kit) > 4 and [f"{p}: {n}" for p in kit for n in imports(ROOT / p) if any(within(n, a) for a in above)] == []
    tasks = {f"evaluation.tasks.{path.stem}" for path in MODULES if path.parts[:2] == ("evaluation", "tasks")}
    page = {name for name in imports(ROOT / "evaluation" / "report.py") if name in tasks}
    assert page == {"evaluation.tasks.base"}


def test_one_module_talks_to_torch_distributed() -> None:
    """The class DistributedDataParallel, from torch.nn.parallel, is another matter."""
    found = {str(path) for path in MODULES if any(within(name, "torch.distributed") for name in imports(ROOT / path))}
    attributes = {
        str(path)
        for path in MODULES
        for node in ast.walk(tree_of(ROOT / path))
        if isinstance(node, ast.Attribute) and node.attr == "distributed" and ast.unparse(node) == "torch.distributed"
    }
    assert found | attributes == {"training/distributed.py"}


@pytest.mark.parametrize("forbidden", ["ray", "torch.distributed", "training.config", "training.towers", "training.encoder"])
def test_objectives_know_nothing_of_ray_workers_or_networks(forbidden: str) -> None:
    files = list((ROOT / "training" / "objectives").rglob("*.py"))
    assert len(files) >= 4
    assert [f"{f.name}: {name}" for f in files for name in imports(f) if within(name, forbidden)] == []


# Packages of Ray that it does not document for others, whatever their names.
RAYS_OWN = ("ray.train.v2", "ray.tune.execution", "ray.core", "ray.dashboard", "ray.autoscaler", "ray.experimental")


def of_rays_own(tree: ast.Module) -> Iterator[str]:
    """What a module uses of Ray that Ray keeps to itself: private names, by import or attribute, and its variables.

    Private is a method too that a class of Ray's has and a subclass overrides.
    """
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {
                alias.asname or "ray": alias.name if alias.asname else "ray" for alias in node.names if within(alias.name, "ray")
            }
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and within(node.module or "", "ray"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            known |= {alias.asname or alias.name: name for alias, name in zip(node.names, names, strict=True)}
        else:
            continue
        yield from (name for name in names if private(name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and known:
            root, _, rest = ast.unparse(node).partition(".")
            if root in known and private(name := f"{known[root]}.{rest}"):
                yield name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"(RAY|TUNE)_\w+", node.value) and node.value != "RAY_ADDRESS":
                yield node.value
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                root, _, rest = ast.unparse(base).partition(".")
                if root in known:
                    owner = pkgutil.resolve_name(f"{known[root]}.{rest}".rstrip("."))
                    methods = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                    yield from (f"{owner.__name__}.{name}" for name in methods if private(f"ray.{name}") and hasattr(owner, name))


def private(name: str) -> bool:
    """Of a dotted name."""
    parts = name.split(".")
    return parts[0] == "ray" and (
        any(part.startswith("_") and not part.endswith("__") for part in parts) or any(within(name, own) for own in RAYS_OWN)
    )


def test_one_place_knows_what_ray_keeps_to_itself() -> None:
    found = {str(path) for path in MODULES if any(of_rays_own(tree_of(ROOT / path)))}
    assert found == {f"pipelines/program/{name}.py" for name in ("ray_internals", "ray_elastic", "ray_data")}


@pytest.mark.parametrize(
    "source",
    [
        "from ray._raylet import PlacementGroupID",
        "def f():\n    from ray.train.v2._internal.execution.callback import ControllerCallback",
        "from ray.experimental import internal_kv as store",
        "import ray\nray._private.worker._global_node.get_logs_dir_path()",
        "import ray.data as data\ndata.context._settings",
        "import os\nos.environ['TUNE_MAX_PENDING_TRIALS_PG'] = '1'",
        "from ray.train.torch import TorchTrainer\nclass T(TorchTrainer):\n    def _register_sigint_handler(self, c): ...",
    ],
)
def test_what_ray_keeps_to_itself_is_seen(source: str) -> None:
    assert list(of_rays_own(ast.parse(source)))


def test_evaluation_needs_no_torch() -> None:
    """An embedder belongs to whoever brings it: only pixels, strings and arrays cross that border."""
    assert [str(p) for p in MODULES if p.parts[0] == "evaluation" for name in imports(ROOT / p) if within(name, "torch")] == []


def test_no_drawer_for_odds_and_ends() -> None:
    assert [str(path) for path in MODULES if path.stem in {"utils", "util", "common", "helpers", "helper", "misc", "tools"}] == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(ROOT / path))
    assert docstring is not None and len(docstring.split()) >= 4


def test_files_stay_short_enough_to_read() -> None:
    """The loop on one screen or two, an objective in 130 lines, hardly a file over 300."""
    lines = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert lines["training/loop.py"] <= 200
    assert {name: count for name, count in lines.items() if name.startswith("training/objectives/") and count > 130} == {}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_what_tests_replace_by_name_is_there() -> None:
    """A name that moved is found here, in a second, and not by the slow test with Ray that replaces it."""
    replaced = {
        (path, node.args[0].value)
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("setattr", "delattr")
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
    assert len(replaced) > 20
    for path, name in replaced:
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError) as error:
            pytest.fail(f"{path.relative_to(ROOT)}: {name}: {error}")
