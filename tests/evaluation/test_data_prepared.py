"""A prepared dataset as evaluation data: what the suite scores, in the readers' words."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evaluation.data.prepared import PreparedData
from evaluation.suite import SuiteSettings, held_out
from evaluation.zero_shot import build_prompts
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import MANIFEST, Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from tests.evaluation.images import read
from tests.refusals import refused


def test_retrieval_is_what_the_suite_scores(stamps: Prepared) -> None:
    found, data = read(PreparedData, path=stamps.path), held_out(stamps, SuiteSettings())
    assert found.retrieval is not None and found.retrieval.texts == data.texts
    assert [own.tolist() for own in found.retrieval.texts_of_image] == [own.tolist() for own in data.texts_of_image]
    sent = pickle.loads(pickle.dumps(found.retrieval.images))
    some = np.asarray([3, 0])
    for ours, theirs in zip(sent.read(some), whole_images(stamps, data.sample_ids[some]), strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    keys = stamps.rows(data.sample_ids, ("key",))["key"].to_pylist()
    assert [sent.name(row) for row in range(len(sent))] == keys
    assert (found.attribution, found.coverage) == (
        stamps.manifest["attribution"],
        {name: stamps.manifest["counts"][name] for name in ("listed", "found", "kept")},
    )
    assert found.coverage["kept"] == 40


def test_each_label_is_a_classification_with_the_suites_prompts(tiny_dataset: Prepared) -> None:
    """Hyphens and underscores of names are spaces in prompts, as they have always been."""
    found, data = read(PreparedData, path=tiny_dataset.path), held_out(tiny_dataset, SuiteSettings())
    assert list(found.classifications) == list(data.classes) == ["group", "subgroup"]
    prompts: list[str] = []
    for label, classification in found.classifications.items():
        prompts += build_prompts(classification.classes, classification.templates).texts
        assert classification.test.labels.tolist() == data.targets[label].tolist()
        assert len(classification.test.images) == len(data.sample_ids) and classification.metric == "top1"
    assert prompts == data.prompts and any("-" in name for names in data.classes.values() for name in names)


def test_probes_have_the_other_splits(stamps: Prepared, tiny_dataset: Prepared) -> None:
    kind = read(PreparedData, path=stamps.path).classifications["kind"]
    table = stamps.table("split", "label_kind").to_pydict()
    for split, part in (("train", kind.train), ("val", kind.validation), ("test", kind.test)):
        assert part is not None and [kind.classes[label][0] for label in part.labels] == [
            label for label, name in zip(table["label_kind"], table["split"], strict=True) if name == split
        ]
    assert read(PreparedData, path=tiny_dataset.path).classifications["group"].validation is None
    val = read(PreparedData, path=stamps.path, split="val").classifications["kind"]
    assert val.validation is None and val.train is not None and len(val.test.labels) == table["split"].count("val")


def test_data_that_are_for_evaluation_only(ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path) -> None:
    """Everything is held out: it can be scored, and who trains on it is told what is missing."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    root = folder_of({f"{i}.png": png_of(pixels + i) for i in range(5)} | {f"{i}.txt": f"thing {i}" for i in range(5)})
    config = {"source": {"name": "folder", "path": root}, "output": tmp_path / "out", "splits": {"test": 1.0}}
    prepared = prepare(PrepareSettings.model_validate(config), Display(quiet=True))
    assert prepared.manifest["splits"] == {"train": 0, "test": 5}
    found = read(PreparedData, path=prepared.path).retrieval
    assert found is not None and sorted(found.texts) == [f"thing {i}" for i in range(5)] and len(found.images) == 5
    with refused("data.split", "'train'", prepared.path, remedy="splits"):
        Order(prepared, "train", None, seed=0, global_batch_size=2).check()


def test_only_what_is_asked_for(tiny_dataset: Prepared) -> None:
    found = read(PreparedData, path=tiny_dataset.path, labels=["group"], retrieval=False, templates=["{c}?"])
    assert list(found.classifications) == ["group"] and found.retrieval is None
    assert found.classifications["group"].templates == ("{c}?",)
    assert read(PreparedData, path=tiny_dataset.path, labels=[]).classifications == {}


def test_the_fingerprint_tells_split_and_seed(tiny_dataset: Prepared) -> None:
    prints = [
        read(PreparedData, path=tiny_dataset.path, **settings).classifications["group"].test.images.fingerprint
        for settings in ({}, {"split": "train"}, {"split_seed": 5}, {"split_seed": 6}, {})
    ]
    assert len(set(prints)) == 4 and prints[0] == prints[-1]


def test_another_seed_holds_out_what_the_suite_would(tiny_dataset: Prepared) -> None:
    found, data = read(PreparedData, path=tiny_dataset.path, split_seed=5), held_out(tiny_dataset, SuiteSettings(), 5)
    assert found.retrieval is not None and found.retrieval.texts == data.texts
    assert found.retrieval.texts != held_out(tiny_dataset, SuiteSettings()).texts


def test_what_is_wrong_names_the_entry(tiny_dataset: Prepared, tmp_path: Path) -> None:
    own_splits = Path(shutil.copytree(tiny_dataset.path, tmp_path / "own_splits"))
    manifest = json.loads((own_splits / MANIFEST).read_text())
    (own_splits / MANIFEST).write_text(json.dumps(manifest | {"config": manifest["config"] | {"splits": "source"}}))
    for settings, key, named, remedy in (
        ({"path": tmp_path / "x"}, "data.toy.path", [tmp_path / "x"], "python -m pipelines"),
        ({"split": "dev"}, "data.toy.split", ["'dev'", tiny_dataset.path], "train, test"),
        ({"labels": ["colour"]}, "data.toy.labels", ["'colour'", tiny_dataset.path], "group, subgroup"),
        ({"labels": [], "retrieval": False}, "data.toy.retrieval", ["false"], "data.toy.retrieval=true"),
        ({"templates": ["a photo"]}, "templates", ["'a photo'"], "{}"),
        ({"split_seed": 3, "path": own_splits}, "data.toy.split_seed", [own_splits], "leave split_seed null"),
    ):
        with refused(key, *named, remedy=remedy):
            read(PreparedData, **({"path": tiny_dataset.path} | settings))


def test_an_image_that_cannot_be_used_is_named(tiny_dataset: Prepared, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset.path, tmp_path / "copy"))
    found = read(PreparedData, path=copy).retrieval
    assert found is not None
    sample = int(held_out(tiny_dataset, SuiteSettings()).sample_ids[2])
    place = Prepared.open(copy).places(np.asarray([sample]))[0]
    with Path(place.file).open("r+b") as file:
        file.seek(place.start)
        file.write(b"no image")
    with refused("data.toy.path", f"sample {sample}", place.file, "undecodable", remedy="prepare"):
        list(found.images.read(np.asarray([2])))
