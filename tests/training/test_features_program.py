"""`python -m pipelines` for a config with the key dataset: features of real frozen encoders, which a run finds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipelines.__main__ import main
from pipelines.dataset.images import decode
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.views import eval_view
from pipelines.features.pool import Pool
from pipelines.io import hub
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import load, validate
from tests.patience import PATIENCE
from tests.refusals import refused
from tests.training.squares import write_root
from training.config import TrainSettings
from training.features import FeatureSettings, compute_features
from training.plan import plan_of
from training.saved_towers import frozen
from training.towers import ImageFeatures, TextFeatures
from training.towers.base import TowerSettings
from training.weight_sources import check_sources

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipelines" / "configs" / "openmoji-features.yaml"


@pytest.fixture(scope="module")
def computed(tiny_dataset: Prepared) -> set[Path]:
    """The features that the recipe computes of the tiny dataset, actors and all."""
    assert main([str(RECIPE), f"dataset={tiny_dataset.path}", "actors=1", "--quiet"]) == 0
    return set((tiny_dataset.path / "features").iterdir())


def identities(image: TowerSettings | None, text: TowerSettings | None) -> list[dict[str, Any]]:
    """What names the features of two encoders."""
    assert image is not None and text is not None
    return [image.identity("image_encoder"), text.identity("text_encoder")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets of squares and weights of small towers."""
    root = tmp_path_factory.mktemp("features")
    write_root(root)
    return root


def test_the_recipe_names_the_encoders_that_the_demo_has_by_default() -> None:
    """A run that names no frozen encoders uses its towers with the weights that they start from."""
    settings, demo = load(FeatureSettings, RECIPE), load(TrainSettings, ROOT / "training/configs/openmoji.yaml")
    assert demo.frozen_encoders is None
    assert identities(settings.image_encoder, settings.text_encoder) == identities(*demo.frozen_encoder_pair)
    assert settings.neighbours


def test_towers_without_weights_are_no_frozen_encoders() -> None:
    from_scratch = load(TrainSettings, ROOT / "training/configs/from-scratch.yaml", {"objective.name": "clip-ping"})
    with refused("frozen_encoders.image_encoder", remedy="frozen_encoders.image_encoder."):
        check_sources(from_scratch)


@pytest.mark.parametrize("key", ["image_encoder", "text_encoder"])
def test_weights_that_no_hub_provides_are_told_first(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a run, and before the dataset is opened: the library would ask the hub for minutes."""
    encoder = {"name": "huggingface", "weights": "somebody/small"}
    settings = validate(FeatureSettings, {"dataset": "nowhere", "neighbours": False, key: encoder}, "features")
    monkeypatch.setattr(hub, "_hub_failure", lambda repository: "cannot be reached")
    with refused(f"{key}.weights", "somebody/small", remedy="hf download somebody/small"):
        compute_features(settings, Display(quiet=True))


def test_a_run_finds_the_features_and_computes_nothing(tiny_dataset: Prepared, computed: set[Path], tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "name": "run",
        "storage": str(tmp_path),
        "data": {"path": str(tiny_dataset.path)},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [8]},
        "text_tower": {"name": "bag", "width": 8, "vocabulary_size": 200},
        "objective": {"name": "clip-ping"},
        "frozen_encoders": {name: yaml.safe_load(RECIPE.read_text())[name] for name in ("image_encoder", "text_encoder")},
        "epochs": 1,
        "global_batch_size": 8,
    }
    settings = validate(TrainSettings, tree, "run")
    features = plan_of(settings, Pool(0), Display(quiet=True)).stream.frozen_features
    assert features is not None and features.neighbours is not None
    assert {features.image_features, features.text_features, features.neighbours} <= computed
    assert set((tiny_dataset.path / "features").iterdir()) == computed

    ids = np.asarray([0, 40, 95])
    views = np.stack([eval_view(decode(data), 192) for data in tiny_dataset.images(ids)])
    texts = tiny_dataset.texts().to_numpy()[ids]
    image_encoder, text_encoder = settings.frozen_encoder_pair
    for path, direct in (
        (features.image_features, ImageFeatures(frozen(image_encoder, "k", None))(views)),
        (features.text_features, TextFeatures(frozen(text_encoder, "k", None), text_encoder.tokenizer(list))(texts)),
    ):
        np.testing.assert_allclose(np.load(path / "rows.npy")[ids], direct, atol=0.01)


def test_the_same_command_again_computes_nothing_and_names_them(
    tiny_dataset: Prepared, computed: set[Path], capsys: pytest.CaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (tiny_dataset.path / "features").rglob("*")}
    assert main([str(RECIPE), f"dataset={tiny_dataset.path}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tiny_dataset.path / "features").rglob("*")} == before
    shown = capsys.readouterr().out
    assert all(str(path) in shown for path in computed if np.load(path / "rows.npy").dtype == np.int64)
    for title in ("features of the images", "features of the captions", "neighbours"):
        assert f"{title}: {tiny_dataset.path}" in shown


def test_damaged_features_are_one_line_and_exit_code_2(
    tiny_dataset: Prepared, computed: set[Path], capsys: pytest.CaptureFixture
) -> None:
    (path,) = (path for path in computed if np.load(path / "rows.npy", mmap_mode="r").shape[1] == 1280)
    rows = np.load(path / "rows.npy")
    np.save(path / "rows.npy", np.where(np.arange(96)[:, None] == 5, np.float16(0), rows))
    try:
        assert main([str(RECIPE), f"dataset={tiny_dataset.path}"]) == 2
    finally:
        np.save(path / "rows.npy", rows)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and str(path) in printed and "tf_efficientnet_lite0" in printed and "row 5" in printed


@pytest.mark.parametrize(
    ("change", "named"),  # the key first
    [
        ({"image_encoder": None, "text_encoder": None}, ["image_encoder: ", "text_encoder"]),
        ({"text_encoder": None}, ["neighbours: ", "image_encoder", "text_encoder", "neighbours=false"]),
        ({"image_encoder": {"name": "timn"}}, ["image_encoder.name: ", "'timn'", "'timm'", "conv, huggingface, "]),
    ],
)
def test_configs_that_ask_for_nothing_or_too_much(change: dict, named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validate(FeatureSettings, yaml.safe_load(RECIPE.read_text()) | change, "c.yaml")
    assert all(part in str(caught.value) for part in named), caught.value


def test_random_weights_and_a_missing_dataset_are_refused(
    tiny_dataset: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main([str(RECIPE), f"dataset={tmp_path}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: dataset: {tmp_path} ") and "python -m pipelines" in printed
    assert main([str(RECIPE), f"dataset={tiny_dataset.path}", "image_encoder.weights=null"]) == 2
    assert capsys.readouterr().err.startswith("error: image_encoder: ")


def test_weights_of_another_model_are_refused_before_a_cluster_starts(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("training.features.cluster.start", start)
    encoder = f"image_encoder={{name: timm, model: test_vit, weights: {root}/image.pth, image_size: 32}}"
    assert main([str(RECIPE), f"dataset={root}/squares", encoder]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: image_encoder.weights: ") and "image.pth" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "named"),  # the key first
    [
        (["use_gpu=true"], ["use_gpu", "1 x 1 GPU", "has 0", "use_gpu=false"]),
        (["use_gpu=true", "actors=2"], ["use_gpu", "2 x 1 GPU", "has 0", "use_gpu=false"]),
        (["actors=3"], ["actors", "3 x 1 CPUs = 3", "has 2", "actors=2"]),
    ],
)
def test_actors_that_would_wait_for_ever_are_told_before_a_cluster_starts(
    given: list[str], named: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("training.features.cluster.start", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    encoder = f"image_encoder={{name: timm, model: test_resnet, weights: {root}/image.pth, image_size: 32}}"
    assert main([str(RECIPE), f"dataset={root}/squares", "neighbours=false", "text_encoder=null", encoder, *given]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {named[0]}: ") and printed.count("\n") == 1
    assert all(part in printed for part in named)


def test_the_keys_decide_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In the file or among the overrides; help and --show are of what would be done."""
    both = tmp_path / "c.yaml"
    both.write_text("image_encoder: {name: timm, model: resnet18, weights: hub}\n")
    assert main([str(both), "dataset=data/x", "--show"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert list(shown) == list(FeatureSettings.model_fields) and shown["image_encoder"]["image_size"] == 224
    assert main([str(ROOT / "pipelines" / "configs" / "openmoji.yaml"), "--show"]) == 0
    assert "max_rejected_rate" in yaml.safe_load(capsys.readouterr().out)
    assert main([str(ROOT / "pipelines" / "configs" / "openmoji.yaml"), "dataset=x"]) == 2
    assert "dataset: unknown key" in capsys.readouterr().err
    for arguments, told in (
        ([], ["source:", "openmoji-features.yaml --help", "key dataset"]),
        ([str(RECIPE)], ["text_encoder:"]),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--help"])
        help_text = capsys.readouterr().out
        assert all(part in help_text for part in told)


def test_preparing_does_not_wait_for_torch() -> None:
    code = "import sys, pipelines.__main__ as m; m.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    ended = subprocess.run(
        [sys.executable, "-c", code, "pipelines/configs/openmoji.yaml", "--show"], cwd=ROOT, capture_output=True, timeout=PATIENCE
    )
    assert ended.returncode == 0, ended.stderr
