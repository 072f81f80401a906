"""Trust boundaries (docs/security.md): what somebody else made is data, and nothing in it is run; the refusal is one line.

Each test has a file that would touch another one, were it unpickled, and sees that it was not.
"""

import ast
import json
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray

from evaluation.embeddings import Inputs
from evaluation.model_settings import ModelSettings
from evaluation.precomputed import precomputed
from pipelines.dataset.prepared import FORMAT_VERSION, Prepared
from pipelines.features.feature_store import StoredFeatures
from pipelines.io import storage
from pipelines.io.image_bytes import Location, read_location
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.program.settings import load, validate
from pipelines.sources.base import Rejected
from pipelines.sources.huggingface import HuggingFaceSource
from pipelines.sources.parquet import ParquetSource
from tests.pipelines.rows import image, read
from tests.test_architecture import tree_of
from training.checkpoint import load_encoder
from training.checkpoint_registry import seal
from training.config import TrainSettings
from training.saved_towers import frozen
from training.towers.base import Tower, load_weights
from training.towers.text import BagSettings

ROOT = Path(__file__).parent.parent


class Exploit:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, (self.path, "w")


@pytest.fixture
def touched(tmp_path: Path) -> Iterator[Path]:
    """The file that must not be there in the end."""
    path = tmp_path / "touched"
    yield path
    assert not path.exists(), "the data's code was run"


def one_line(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pickles(path: Path, count: int = 2) -> pa.Array:
    return ArrowPythonObjectArray.from_objects([Exploit(path)] * count)


def test_the_exploit_is_a_real_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"captions": pickles(tmp_path / "touched")}), tmp_path / "a.parquet")
    pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (tmp_path / "touched").exists()


# A column itself, and inside of all that Arrow can nest.
NESTED = {
    "column": lambda cells: cells,
    "struct": lambda cells: pa.StructArray.from_arrays([cells], ["inner"]),
    "list": lambda cells: pa.ListArray.from_arrays(pa.array([0, 1, 2]).cast("int32"), cells),
    "map": lambda cells: pa.MapArray.from_arrays(pa.array([0, 1, 2]).cast("int32"), pa.array(["a", "b"]), cells),
}


@pytest.mark.parametrize("form", NESTED)
def test_prepared_data(tmp_path: Path, touched: Path, form: str) -> None:
    shard = {"sample_id": [0, 1], "captions": NESTED[form](pickles(touched)), "group": ["a", "b"], "split": ["train", "test"]}
    (tmp_path / "content").mkdir()
    pq.write_table(pa.table(shard), tmp_path / "content" / "00000.parquet")
    manifest = {"format_version": FORMAT_VERSION, "shards": [{"file": "content/00000.parquet", "rows": 2}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"num_texts": 2, "split_shares": {"test": 0.5}}))
    prepared = Prepared.open(tmp_path)
    for call in (prepared.texts, prepared.split_ids, lambda: prepared.rows(np.asarray([1]), ("captions",))):
        said = one_line(call)
        assert "00000.parquet" in said and "'captions'" in said and "ray.data.arrow_pickled_object" in said


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format_version": 3, "shards": [{"file": "../a.parquet"}]}', '{"format_version": 3, "shards": 1}']
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert str(tmp_path) in one_line(lambda: Prepared.open(tmp_path))


def test_where_nobody_has_registered_the_type_its_name_is_enough(tmp_path: Path) -> None:
    field = pa.field("captions", pa.large_binary(), metadata={"ARROW:extension:name": "somebody.pickles"})
    pq.write_table(pa.table([pa.array([b"x"], pa.large_binary())], pa.schema([field])), tmp_path / "a.parquet")
    assert "somebody.pickles" in one_line(lambda: storage.read_table(tmp_path / "a.parquet"))


def test_reading_the_schema_alone_runs_nothing(tmp_path: Path, touched: Path) -> None:
    """Ray's tensor types once kept their shape as a pickle."""
    metadata = {"ARROW:extension:name": "ray.data.arrow_tensor", "ARROW:extension:metadata": pickle.dumps(Exploit(touched))}
    field = pa.field("x", pa.list_(pa.int64()), metadata=metadata)
    schema = pa.schema([field, pa.field("caption", pa.string())])
    pq.write_table(pa.table([pa.array([[1]]), pa.array(["a"])], schema), tmp_path / "a.parquet")
    assert "a.parquet" in one_line(lambda: storage.read_table(tmp_path / "a.parquet", ["caption"]))
    source = validate(ParquetSource, {"name": "parquet", "paths": str(tmp_path / "a.parquet")}, "test")
    assert "a.parquet" in one_line(source.units)


def test_tensors_and_arrows_own_types_are_read(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3), np.float32))
    pq.write_table(pa.table({"x": tensor, "jpg": [image(0), image(1)], "caption": ["a", "b"]}), tmp_path / "a.parquet")
    source = validate(ParquetSource, {"name": "parquet", "paths": str(tmp_path / "a.parquet")}, "test")
    assert len(read(source)) == 2


def test_tables_of_a_source(tmp_path: Path, touched: Path) -> None:
    good = pa.table({"jpg": [image(0), image(1)], "caption": ["a", "b"]})
    bad = good.set_column(0, "jpg", pickles(touched))
    pq.write_table(good, tmp_path / "0.parquet")
    pq.write_table(bad, tmp_path / "1.parquet")

    def source(name: str) -> ParquetSource:
        return validate(ParquetSource, {"name": "parquet", "paths": str(tmp_path / name)}, "test")

    assert "source.paths" in one_line(source("1.parquet").units)
    *_, last = read(source("*.parquet"))
    assert isinstance(last, Rejected) and last.reason == "unreadable_file" and "'jpg'" in last.detail
    with pytest.raises(Missing, match="arrow_pickled_object"):
        read_location(Location(str(tmp_path / "1.parquet"), 0, 0, "jpg"))
    # In place of a table that was listed.
    unit = source("0.parquet").units()[0].data
    (tmp_path / "1.parquet").replace(tmp_path / "0.parquet")
    assert [row.reason for row in source("0.parquet").read(unit, True)] == ["unreadable_file"] * 2


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_of_a_source_and_of_an_index(tmp_path: Path, touched: Path, kind: str) -> None:
    table = pa.table({"image": pickles(touched), "caption": ["a", "b"]})
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with new(str(tmp_path / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Missing, match="arrow_pickled_object"):
        read_location(Location(str(tmp_path / "data.arrow"), 0, 0, "image"))
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    source = validate(HuggingFaceSource, {"name": "huggingface", "path": str(tmp_path)}, "test")
    assert "data.arrow" in one_line(source.units)


def test_features(tmp_path: Path, touched: Path) -> None:
    """Stored features, and embeddings that somebody computed."""
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = Exploit(touched)
    stored = StoredFeatures(tmp_path, 1, {"of": "images"})
    stored.path.mkdir()
    np.save(stored.path / "rows.npy", cells, allow_pickle=True)
    (stored.path / "features.json").write_text(json.dumps(stored.about | {"width": 1, "rows": 1, "digest": ""}))
    assert "rows.npy" in one_line(stored.check)
    np.save(tmp_path / "set.texts.npy", cells, allow_pickle=True)
    inputs = Inputs("texts", ("a",), "set")
    settings = ModelSettings(embeddings=tmp_path)
    assert "set.texts.npy" in one_line(lambda: precomputed("models.x", settings, [inputs], tmp_path / "inputs"))


def test_checkpoints_and_weights(tmp_path: Path, touched: Path) -> None:
    config = load(TrainSettings, ROOT / "training/configs/from-scratch.yaml").model_dump(mode="json")
    torch.save(Exploit(touched), tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "checkpoint.json").write_text(json.dumps({"config": config}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        # What matters is how the state is read.
        patch.setattr("training.checkpoint.trained_tower", lambda *_: Tower().describe())
        patch.setattr(Tower, "width", 4, raising=False)
        patch.setattr("training.checkpoint.tokenizer_of", lambda *_: type("T", (), {"vocabulary_size": 1}))
        seal(tmp_path)
        assert "state.safetensors" in one_line(lambda: load_encoder(tmp_path))
    tower = tmp_path / "towers" / "text_tower"
    tower.mkdir(parents=True)
    torch.save(Exploit(touched), tower / "tower.safetensors")
    (tower / "tower.json").write_text("{}")
    seal(tower)
    assert "tower.safetensors" in one_line(lambda: frozen(BagSettings(name="bag"), "text_tower", tmp_path))
    weights = tmp_path / "weights.pt"
    torch.save(Exploit(touched), weights)
    assert "k: " in one_line(lambda: load_weights(torch.nn.Linear(1, 1), weights, "k"))


@pytest.mark.parametrize("text", ["", "[1]", "{}"])
def test_a_checkpoint_without_its_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoint.json").write_text(text)
    assert "checkpoint.json" in one_line(lambda: load_encoder(tmp_path))


# --- the code itself ---

MODULES = [path for layer in ("pipelines", "evaluation", "training", "tuning") for path in sorted((ROOT / layer).rglob("*.py"))]


@cache
def calls() -> list[tuple[str, str, ast.Call]]:
    """Of all modules: where, of what, and the call."""
    return [
        (str(path.relative_to(ROOT)), ast.unparse(node.func), node)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
    ]


def test_one_module_runs_what_a_config_names() -> None:
    running = {"importlib.import_module", "__import__", "eval", "exec", "compile", "runpy.run_path", "runpy.run_module"}
    assert {path for path, name, _ in calls() if name in running} == {"pipelines/program/import_string.py"}
    imported = {
        str(path.relative_to(ROOT))
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ImportFrom) and node.module == "pipelines.program.import_string"
        if {alias.name for alias in node.names} != {"names_of"}  # which only takes a name apart
    }
    assert imported == {
        "evaluation/embedder.py",
        "evaluation/data/function.py",
        "evaluation/plan.py",
        "pipelines/program/own_class.py",
        "training/optimizer.py",
    }, "keys of configs, which docs/security.md names"


def test_nothing_is_unpickled() -> None:
    for path, name, call in calls():
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path}:{call.lineno}: {name}"
        if name.startswith("Auto") and name.endswith(".from_pretrained"):  # left open, it asks the terminal
            assert options.get("trust_remote_code") == "False", where
        assert options.get("allow_pickle", "False") == "False" and options.get("trust_remote_code", "False") == "False", where
        unpickling = name in (
            "torch.load",
            "pickle.load",
            "pickle.loads",
            "cloudpickle.loads",
            "joblib.load",
            "yaml.load",
            "pd.read_pickle",
        )
        # What a process and the child that it started say to each other, where bytes of data are bytes; and, in `failure_of`,
        # what Ray Tune wrote into the session's folder in the same process.
        allowed = path == "pipelines/io/child_process.py" or (path.endswith("ray_internals.py") and "(file)" in ast.unparse(call))
        assert not unpickling or allowed, where
        opens = name in ("pq.ParquetFile", "pq.read_table", "pa.ipc.open_stream", "pa.ipc.open_file", "pd.read_parquet")
        assert not opens or path == "pipelines/io/tables.py", where
