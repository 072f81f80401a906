"""Text towers and dual encoders of many architectures: the rows that transformers gives for each text alone, or a refusal.

Tiny random models and tokenizers, saved as folders from the hub. A text alone, unpadded, is the reference: neither padding, nor
masks, nor other texts may change its row. SigLIP's alone is padded to its full length, as it was trained, and so is ConvBERT's,
whose convolutions run over the padding.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.dataset.prepared import Prepared
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.one_step import one_step
from tests.training.towers.text_models import DUAL, POSITIONS, TEXT, save, tokenizer_of
from tests.training.towers.text_rows import CAPTIONS, tower_rows
from training.checkpoint import load_embedder
from training.config import TrainSettings
from training.embedders import huggingface
from training.precision import unit
from training.towers.padding import Padded
from training.towers.text import HuggingFaceTextSettings, TextTower

RUNS = ["roberta", "t5-encoder", "gpt2", "siglip"]  # a pad that is 1, half of a model, no pad, no mask


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(kind, model, root / name) for name, (kind, model) in (TEXT | DUAL).items()}


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path], stamps: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints after one step with such towers."""
    root = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        (root / name).mkdir()
        one_step(run_of(stamps, {"weights": str(folders[name]), "projected": name in DUAL}), root / name)
    return {name: root / name for name in RUNS}


@pytest.fixture(scope="module")
def elsewhere(folders: dict[str, Path], runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Rows from another process."""
    root = tmp_path_factory.mktemp("elsewhere")
    towers = {name: {"weights": str(folders[name]), "projected": name in DUAL} for name in folders}
    wanted = {"towers": towers, "checkpoints": {f"run-{name}": str(folder) for name, folder in runs.items()}}
    (root / "wanted.json").write_text(json.dumps(wanted))
    program = [sys.executable, "-m", "tests.training.towers.text_rows", str(root / "wanted.json"), str(root / "rows.npz")]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(root / "rows.npz"))


Built = tuple[HuggingFaceTextSettings, Any, TextTower]


@pytest.fixture(scope="module")
def built(folders: dict[str, Path]) -> Callable[[str], Built]:
    """A tower by the name of its model, with its settings and its tokenizer. It is built once."""

    @cache
    def get(name: str) -> Built:
        weights, projected = str(folders[name]), name in DUAL
        settings = HuggingFaceTextSettings(name="huggingface", weights=weights, max_tokens=POSITIONS, projected=projected)
        tokenizer = settings.tokenizer(list)
        return settings, tokenizer, settings.build(tokenizer.vocabulary_size).eval()

    return get


def run_of(stamps: Prepared, text: dict[str, Any], **changes: Any) -> TrainSettings:
    tree = {
        "name": "run",
        "data": {"path": str(stamps.path)},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
        "text_tower": {"name": "huggingface", "max_tokens": POSITIONS} | text,
        "embed_dim": 12,
        "epochs": 1,
        "global_batch_size": 24,
    }
    return validate(TrainSettings, tree | changes, "run")


@torch.no_grad()
def alone(folder: Path, dual: bool, pooling: str = "mean") -> np.ndarray:
    """By transformers, each caption by itself."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer, rows = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), []
    padding = {"padding": "max_length"} if model.config.model_type in ("siglip", "siglip2", "convbert") else {}
    for text in CAPTIONS:
        given = tokenizer([text], truncation=True, max_length=POSITIONS, return_tensors="pt", **padding)
        if dual:
            rows.append(model.get_text_features(**given).pooler_output[0])
            continue
        half = model.get_encoder() if model.config.model_type in ("t5", "bart", "marian") else model
        states = half(**given).last_hidden_state[0, given["attention_mask"][0] == 1]
        rows.append(states.mean(0) if pooling == "mean" else states[0])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", [*TEXT, *DUAL])
def test_a_tower_gives_the_rows_of_each_text_alone_in_every_process(
    name: str, folders: dict[str, Path], elsewhere: dict[str, np.ndarray]
) -> None:
    right = alone(folders[name], name in DUAL)
    assert np.abs(right[:, None] - right[None]).max(-1)[~np.eye(len(right), dtype=bool)].min() > 1e-3, "no two are alike"
    own = tower_rows(str(folders[name]), projected=name in DUAL)
    np.testing.assert_allclose(own, right, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(elsewhere[name], own, atol=1e-6, rtol=1e-6)


# Without a mask in training, or with one that its convolutions do not look at.
READ_PADDING = {"siglip", "siglip2", "convbert"}


@pytest.mark.parametrize("name", [*TEXT, *DUAL])
def test_short_captions_are_read_short_and_have_the_same_rows(name: str, built: Callable[[str], Built]) -> None:
    """Pooled by the mean, the end of a text or its first token; positions counted from 0, from behind the padding's or relative;
    causal or not.
    """
    _, tokenizer, tower = built(name)
    short = ["a red cat", "two", "zebra cat"]
    ids, mask = Padded(tower, tokenizer)(short)
    assert ids.shape[1] == mask.shape[1] == (POSITIONS if name in READ_PADDING else POSITIONS // 2)
    with torch.no_grad():
        torch.testing.assert_close(tower(ids, mask), tower(*map(torch.from_numpy, tokenizer(short))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [*TEXT, *DUAL])
def test_it_is_built_again_without_its_files(name: str, built: Callable[[str], Built]) -> None:
    """Of what a checkpoint tells and its weights: the same rows, and the same parameters to be trained."""
    settings, tokenizer, tower = built(name)
    gone = settings.model_copy(update={"weights": "/nowhere/at/all"})
    again = gone.rebuild(json.loads(json.dumps(tower.about)), tokenizer.vocabulary_size)
    again.load_state_dict(tower.state_dict())
    ids, mask = map(torch.from_numpy, tokenizer(CAPTIONS))
    with torch.no_grad():
        torch.testing.assert_close(again(ids, mask), tower(ids, mask))
    assert again.width == tower.width and again.states_width == tower.states_width  # type: ignore[attr-defined]
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {n: p.requires_grad for n, p in tower.named_parameters()}


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "deberta", "modernbert"])
def test_the_first_token_of_models_that_look_both_ways(name: str, folders: dict[str, Path]) -> None:
    own = tower_rows(str(folders[name]), pooling="cls")
    np.testing.assert_allclose(own, alone(folders[name], False, "cls"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DUAL)
def test_an_embedder_gives_them_too(name: str, folders: dict[str, Path]) -> None:
    """At once or one by one: what stands beside a text does not matter."""
    embedder, right = huggingface(str(folders[name])), unit(torch.from_numpy(alone(folders[name], True))).numpy()
    np.testing.assert_allclose(embedder.embed_texts(CAPTIONS), right, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([embedder.embed_texts([text]) for text in CAPTIONS]), right, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_in_every_process(name: str, runs: dict[str, Path], elsewhere: dict[str, np.ndarray]) -> None:
    rows = load_embedder(str(runs[name])).embed_texts(CAPTIONS)
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(elsewhere[f"run-{name}"], rows, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["roberta", "t5-encoder", "gpt2", "siglip", "clip", "altclip", "align", "blip", "vision-text-bert"]
)
def test_a_forward_that_leaves_states_gives_the_row_that_is_served(
    name: str, folders: dict[str, Path], built: Callable[[str], Built]
) -> None:
    from transformers import AutoModel

    _, tokenizer, tower = built(name)
    ids, mask = map(torch.from_numpy, tokenizer(CAPTIONS))
    model = AutoModel.from_pretrained(folders[name]).eval()
    half = getattr(model, "text_model", model.get_encoder() if name == "t5-encoder" else model)
    with torch.no_grad():
        rows, states = tower.with_states(ids, mask)
        right = half(input_ids=ids, attention_mask=mask).last_hidden_state
        assert rows.shape[1] == tower.width and states.shape[2] == tower.states_width
        torch.testing.assert_close(rows, tower(ids, mask))
        torch.testing.assert_close(states[mask == 1], right[mask == 1], atol=1e-5, rtol=1e-5)


MASKED: dict[str, dict[str, Any]] = {
    "mcd": {"name": "mcd"},
    "declip": {"name": "declip", "queue": 24},
}


@pytest.mark.parametrize(
    ("kind", "objective"), [("roberta", "mcd"), ("vision-text-bert", "declip"), ("run", "declip"), ("run-of-run", "mcd")]
)
def test_masked_words_are_guessed_from_states_of_their_own_width(
    kind: str, objective: str, folders: dict[str, Path], stamps: Prepared, tmp_path: Path
) -> None:
    """States of 32 numbers, rows of 20 or 12. A tower of a run has those of the tower in it, however deep."""
    text: dict[str, Any] = {"weights": str(folders[kind if kind in folders else "roberta"]), "projected": kind in DUAL}
    for number in range(kind.count("run")):
        one_step(run_of(stamps, text), tmp_path / str(number))
        text = {"name": "run", "path": str(tmp_path / str(number))}
    _, metrics, state = one_step(run_of(stamps, text, objective=MASKED[objective]), tmp_path / "last")
    assert np.isfinite(metrics["mlm"]) and metrics["mlm"] > 0
    head: Any = state.objective.words
    assert head.in_features == 32 and head.weight.grad.abs().sum() > 0


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {  # model, settings, remedy, which is about the first of the settings
    "no-padding-for-the-offset": ("roberta", {"max_tokens": 17}, "text_tower.max_tokens=16"),
    "bert-has-no-offset": ("bert", {"max_tokens": 17}, "text_tower.max_tokens=16"),
    "siglip-short": ("siglip", {"max_tokens": 8, "projected": True}, "text_tower.max_tokens=16"),
    "siglip-mean-short": ("siglip", {"max_tokens": 8}, "text_tower.max_tokens=16"),
    "causal-cls": ("opt", {"pooling": "cls"}, "text_tower.pooling=mean"),
    "clip-cls": ("clip", {"pooling": "cls"}, "text_tower.pooling=mean"),
    "gpt2-cls": ("gpt2", {"pooling": "cls"}, "text_tower.pooling=mean"),
    "no-pooler": ("gpt2", {"pooling": "pooler"}, "text_tower.pooling=mean"),
    "no-pooler-in-encoder": ("t5", {"pooling": "pooler"}, "text_tower.pooling=mean"),
    "siglip-pooler-short": ("siglip", {"max_tokens": 8, "pooling": "pooler"}, "text_tower.max_tokens=16"),
    "no-dual": ("bert", {"projected": True}, "text_tower.projected=false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_without_a_sign_is_refused(case: str, folders: dict[str, Path]) -> None:
    name, settings, remedy = REFUSED[case]
    with refused(f"text_tower.{next(iter(settings))}", folders[name], remedy=remedy):
        tower_rows(str(folders[name]), **settings)


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "clip", "vision-text-bert"])
def test_weights_under_other_names_are_refused_by_those_that_are_missing(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    for file in folders[name].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(key for key in weights if ("text" if name in DUAL else "encoder") in key)
    weights[f"other.{missing}"] = weights.pop(missing)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    layer = missing.split(".")[-2]
    with refused("text_tower.weights", tmp_path, layer):
        tower_rows(str(tmp_path), projected=name in DUAL)
    if name in DUAL:
        with refused("embedder_arguments.weights", tmp_path, layer):
            huggingface(str(tmp_path))


LENGTHS = {"siglip": ["siglip", "siglip2"], "dual": ["vision-text-bert", "vision-text-roberta", "clip", "altclip"]}


@pytest.mark.parametrize("name", LENGTHS["siglip"] + LENGTHS["dual"])
def test_a_tokenizer_that_knows_no_length_is_told_the_models(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """1e30 stands in many a tokenizer_config.json. Long texts are cut all the same, and SigLIP's padded to the model's length."""
    kind, model = DUAL[name]
    save(kind, model, tmp_path, model_max_length=10**30)
    right = unit(torch.from_numpy(alone(folders[name], True))).numpy()
    np.testing.assert_allclose(huggingface(str(tmp_path)).embed_texts(CAPTIONS), right, atol=1e-5)
    np.testing.assert_allclose(unit(torch.from_numpy(tower_rows(str(tmp_path), projected=True))), right, atol=1e-5)


def test_a_model_that_reads_its_padding_keeps_its_length_whatever_its_tokenizer_says(tmp_path: Path) -> None:
    """SigLIP's has no mask, which tells; one that was saved with a mask does not, and the model is found out by running it."""
    save("siglip", DUAL["siglip"][1], tmp_path, model_input_names=["input_ids", "attention_mask"])
    with refused("text_tower.max_tokens", tmp_path, remedy=f"text_tower.max_tokens={POSITIONS}"):
        tower_rows(str(tmp_path), max_tokens=8, projected=True)
    right = unit(torch.from_numpy(alone(tmp_path, True))).numpy()
    np.testing.assert_allclose(huggingface(str(tmp_path)).embed_texts(CAPTIONS), right, atol=1e-5)
    np.testing.assert_allclose(unit(torch.from_numpy(tower_rows(str(tmp_path), projected=True))), right, atol=1e-5)


def test_what_no_text_is_told_apart_by_is_refused(tmp_path: Path) -> None:
    """A CLIP reads the end of a text that its config names, and this tokenizer adds another: the first token stands for all."""
    save("clip", DUAL["clip"][1], tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    tree["text_config"]["eos_token_id"] = 50
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with refused("embedder_arguments.weights", tmp_path):
        huggingface(str(tmp_path))


def test_case_and_signs_are_read_as_by_transformers_own_tokenizer(folders: dict[str, Path]) -> None:
    """SigLIP2's class lowers case, which its tokenizer.json does not say."""
    from transformers import AutoTokenizer

    texts = ["A CAT", "a cat", "", "Two  DOGS, on_a mat!", "cat " * 50]
    for name in (*TEXT, *DUAL):
        own = HuggingFaceTextSettings(name="huggingface", weights=str(folders[name]), max_tokens=POSITIONS).tokenizer(list)
        theirs: Any = AutoTokenizer.from_pretrained(folders[name])
        if theirs.pad_token is None:
            theirs.pad_token = theirs.eos_token
        right = theirs(texts, padding="max_length", truncation=True, max_length=POSITIONS)["input_ids"]
        assert own(texts)[0].tolist() == right, name
    assert np.array_equal(*own_ids(folders["siglip2"], ["A CAT", "a cat"]))
    assert tokenizer_of("siglip2")(["A CAT"])["input_ids"] == tokenizer_of("siglip2")(["a cat"])["input_ids"]


def own_ids(folder: Path, texts: list[str]) -> np.ndarray:
    settings = HuggingFaceTextSettings(name="huggingface", weights=str(folder), max_tokens=POSITIONS)
    return settings.tokenizer(list)(texts)[0]


def test_every_parameter_that_trains_gets_a_gradient(built: Callable[[str], Built]) -> None:
    """One without would stop several workers: poolers that we do not use, cross attention, a logit scale."""
    for name in (*TEXT, *DUAL):
        _, tokenizer, tower = built(name)
        ids, mask = map(torch.from_numpy, tokenizer(CAPTIONS))
        rows: Tensor = tower.train()(ids, mask)
        rows.sum().backward()
        assert [key for key, p in tower.named_parameters() if p.requires_grad and p.grad is None] == [], name
        tower.eval().zero_grad(set_to_none=True)
