"""What tests share: one local Ray for the whole session, and two small real datasets, each prepared once."""

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program import cluster
from pipelines.program.display import Display

QUIET = Display(quiet=True)

# What else runs on the machine makes nothing wrong. Tests assert nothing about time; they start their own Ray, whatever other one
# the shell is set up for; and their Ray ends no process because others have taken the machine's memory, nor runs its own at a low
# priority, which beside four busy processes would leave them next to nothing, nor gives up a worker that takes a minute to start.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")
os.environ.pop("RAY_ADDRESS", None)
_NO_RAY = "a-test-not-marked-ray"  # no address: Ray refuses it at once, and names it
os.environ |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Ray is marked `ray`: all that asks for the session's Ray, however far down, and whole programs."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()) or item.get_closest_marker("e2e"):
            item.add_marker("ray")
    # Files that run whole programs first, then those with most tests: of two workers, none is left with a long one at the end.
    long, tests = {item.path for item in items if item.get_closest_marker("e2e")}, Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in long, -tests[item.path], item.path))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Other tests find no Ray, neither here nor in processes of theirs: to start one fails.

    The session's Ray is started again where a test with a cluster of its own has stopped it.
    """
    if not item.get_closest_marker("ray"):
        os.environ["RAY_ADDRESS"] = _NO_RAY
    elif "ray_session" in getattr(item, "fixturenames", ()):
        import ray

        if not ray.is_initialized():
            cluster.start(verbose=False, cpus=2)
    try:
        return (yield)
    finally:
        os.environ.pop("RAY_ADDRESS", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[pytest.TestReport]:
    """A test that fails beside the session's Ray shows what Ray held at that time: who has the CPUs, and what waits for them."""
    report = yield
    import ray

    if report.failed and item.get_closest_marker("ray") and ray.is_initialized():
        logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
        for name, count in (("debug_state.txt", 90), ("raylign-driver.err", 40)):
            if (logs / name).exists():
                lines = (logs / name).read_text(errors="replace").splitlines()
                report.sections.append((f"Ray's {name}", "\n".join(lines[:count] if name.endswith("txt") else lines[-count:])))
    return report


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with two CPUs. Starting it takes seconds, so no test starts its own in this process."""
    import ray

    cluster.start(verbose=False, cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """96 emojis of OpenMoji at 48 pixels, a quarter of the concepts held out, two labels."""
    settings = PrepareSettings.model_validate(
        {
            "source": {"name": "openmoji", "limit": 96},
            "output": tmp_path_factory.mktemp("openmoji") / "prepared",
            "image": {"size": 48, "format": "png"},
            "splits": {"test": 0.25},
        }
    )
    return prepare(settings, QUIET)


@pytest.fixture(scope="session")
def stamps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder source of 40 usable images in three subfolders and one broken one.

    Images 2i and 2i + 1 share their first caption, every third has a second one, and images 4 and 5 are the same file.
    """
    root = tmp_path_factory.mktemp("stamps")
    files: dict[str, bytes | str] = {"tools/broken.png": b"\x89PNG\r\n\x1a\nbroken", "tools/broken.txt": "a broken thing"}
    for i in range(40):
        stem = f"{('animals', 'food', 'tools')[i % 3]}/{i:02d}"
        number = 4 if i == 5 else i
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        files[f"{stem}.png"] = png(pixels)
        files[f"{stem}.txt"] = f"A thing of kind {i // 2}" + (f"\nimage number {i}. It is small.\n" if i % 3 == 0 else "")
    write_files(root, files)
    return root


@pytest.fixture(scope="session")
def stamps_config(stamps_folder: Path) -> dict:
    """Settings of the stamps but for `output`: all lines are captions, one unit of the source, 16 rows, a shard."""
    source = {"name": "folder", "path": str(stamps_folder), "dataset": "stamps", "captions": "all_lines", "label": "kind"}
    image = {"size": 16, "format": "png"}
    return {"source": source, "image": image, "splits": {"test": 0.2, "val": 0.1}, "shard_rows": 16}


@pytest.fixture(scope="session")
def stamps(ray_session: None, stamps_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The stamps, prepared: several shards, two held-out splits, several captions an image, one label."""
    output = tmp_path_factory.mktemp("stamps-prepared") / "prepared"
    return prepare(PrepareSettings.model_validate(stamps_config | {"output": output}), QUIET)


def png(pixels: np.ndarray) -> bytes:
    """Pixels as an encoded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_files(root: Path, files: Mapping[str, bytes | str]) -> None:
    """Files with their folders; strings as UTF-8."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(scope="session")
def png_of() -> Callable[[np.ndarray], bytes]:
    """Pixels to an encoded PNG."""
    return png


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[Mapping[str, bytes | str]], Path]:
    """A function that writes named files into a fresh folder and returns it."""

    def write(files: Mapping[str, bytes | str]) -> Path:
        root = tmp_path / "source"
        root.mkdir()
        write_files(root, files)
        return root

    return write
