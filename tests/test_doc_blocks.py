"""What the documentation tells readers to write and to call exists: keys, values, files, programs, options, messages."""

import importlib.util
import re
from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter

from evaluation.config import EvaluateSettings
from pipelines.prepare.config import PrepareSettings
from pipelines.program import yaml_text
from pipelines.program.cli import VERBS
from pipelines.program.config_files import find_shipped
from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, parse_overrides, read_config, readings, validate
from pipelines.program.settings_base import Settings
from raylign.__main__ import _USAGE
from tests.blocks import PAGES, ROOT, Block, blocks_of, commands_of
from training.config import TrainSettings
from training.features import FeatureSettings
from tuning.config import SweepSettings

MODELS: dict[str, type[Settings]] = {
    "pipelines": PrepareSettings,
    "training": TrainSettings,
    "evaluation": EvaluateSettings,
    "tuning": SweepSettings,
}
PACKAGES = {verb: package for package, verb in VERBS.items()}
OPTIONS = {"--check", "--help", "--quiet", "--verbose", "--show"}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
REST: dict[str, dict[str, Any]] = {
    package: yaml_text.parse((ROOT / "raylign" / "templates" / f"{verb}.yaml").read_text(encoding="utf-8"))
    for package, verb in VERBS.items()
}
"""What an excerpt of a config leaves out: the config that `raylign init` writes."""
START = {"name": "open_clip", "model": "ViT-B-32", "weights": "laion2b_s34b_b79k"}  # in place of files that are elsewhere
FILLED = {"image_tower", "text_tower", "embed_dim"}  # by a start


def of(language: str) -> Any:
    return pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == language], ids=lambda block: block.place)


def trees_of(text: str) -> list[dict[str, Any]]:
    """The config of a block, or several, if a key at the left begins another one."""
    parts: list[list[str]] = [[]]
    seen: set[str] = set()
    for line in text.splitlines():
        key = re.match(r"[\w.]+(?=:)", line)
        if key and key[0] in seen:
            parts.append([])
            seen.clear()
        seen.update([key[0]] if key else [])
        parts[-1].append(line)
    return [yaml_text.parse("\n".join(part)) for part in parts]


def owner(tree: dict[str, Any]) -> str:
    """The program whose config has these keys."""
    keys = set(tree) - {"base"}
    fits = [package for package, model in MODELS.items() if keys <= set(model.model_fields)]
    assert fits, f"no program has the keys {', '.join(sorted(keys))}"
    return "tuning" if "tuning" in fits and {"grid", "space"} & keys else fits[0]


def check(package: str, tree: dict[str, Any], overrides: dict[str, Any] | None = None) -> None:
    """Raises `UserError` for a key or value that the program does not take. Readers' files and hubs' models are not looked up."""
    model, tree = MODELS[package], dict(tree)
    overrides = overrides or {}
    if package == "pipelines" and ("dataset" in tree or "dataset" in overrides):
        model = FeatureSettings
    if (start := tree.get("start")) is not None:
        TypeAdapter(TrainSettings.model_fields["start"].annotation).validate_python(start)
        tree["start"] = START
    if package == "training" and isinstance(tree.get("base"), str):
        file = find_shipped(tree.pop("base"), package)
        assert file is not None, "its base is not included"
        tree = merged(read_config(file, model), tree)
    settings = validate(model, apply_overrides(tree, overrides, model), "docs")
    if isinstance(settings, SweepSettings):
        given = [*settings.overrides.items(), *((key, value) for key, values in settings.grid.items() for value in values)]
        unknown = [key for key, value in given if not readings(TrainSettings, key, value)]
        assert not unknown, f"a training config has no {unknown}, or not such values"


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`; another `name` drops what belongs to the base's."""
    result = dict(base)
    for key, value in own.items():
        old = result.get(key)
        same = isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name")
        result[key] = merged(old, value) if same else value
    return result


@of("yaml")
def test_configs_have_the_keys_and_values_that_programs_take(block: Block) -> None:
    for tree in trees_of(block.text):
        package = owner(tree)
        rest = REST[package]
        if {"models", "wise_ft"} & tree.keys():
            rest = {key: value for key, value in rest.items() if key != "checkpoint"}
        if "start" in tree:
            rest = {key: value for key, value in rest.items() if key not in FILLED}
        check(package, tree if "base" in tree and package == "training" else merged(rest, tree))


@of("python")
def test_python_is_python(block: Block) -> None:
    compile(block.text, block.place, "exec")


@cache
def written_by_readers() -> dict[str, dict[str, Any]]:
    """Configs that the pages have readers save, by name."""
    return {block.file: yaml_text.parse(block.text) for block in BLOCKS if block.file and block.language == "yaml"}


def config(package: str, name: str) -> dict[str, Any]:
    """The content of a config that a command names: included, from a page, or one of a reader's own."""
    if file := find_shipped(name, package):
        return read_config(file, MODELS[package])
    assert not re.search(r"(^|/)(training|pipelines|evaluation|tuning)/", name), f"{name} is not included"
    return written_by_readers().get(name) or REST[package]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_with_their_keys_and_options(page: str) -> None:
    for block in blocks_of(page):
        for command in commands_of(block):
            try:
                check_command(command)
            except (UserError, AssertionError) as error:
                raise AssertionError(f"{block.place}: {' '.join(command)}: {error}") from error


def check_command(command: list[str]) -> None:
    program, first, *rest = command
    if program == "make":
        targets = [word for word in command[1:] if "=" not in word and not word.startswith("-")]
        assert set(targets) <= TARGETS
        return
    package = PACKAGES.get(first, first) if program == "raylign" else first
    if package not in MODELS or rest[:1] == ["report"]:
        known = re.search(rf"raylign {re.escape(first)} ", _USAGE) if program == "raylign" else importlib.util.find_spec(first)
        assert known, "there is no such program"
        return
    options = {word for word in rest if word.startswith("-")}
    assert options <= OPTIONS
    if "--help" in options:
        return
    name, *overrides = [word for word in rest if not word.startswith("-") and "..." not in word]
    check(package, config(package, name), parse_overrides(overrides, MODELS[package]))


def test_messages_of_the_troubleshooting_page_are_said() -> None:
    """Between `...`, which stands for what differs, a message is written so in the code."""
    packages = ("raylign", "pipelines", "training", "evaluation", "tuning")
    code = "\n".join(file.read_text(encoding="utf-8") for package in packages for file in (ROOT / package).rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # one text over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = [text for row in re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE) for text in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 40
    for message in messages:
        key, _, text = message.rpartition(": ")
        for fragment in [*key.replace("...", " ").split(), *text.split("...")]:
            said = re.escape(fragment.strip())
            assert re.search(rf"(?<!\w){said}(?!\w)" if said else "", code), message


def test_a_wrong_block_is_noticed() -> None:
    with pytest.raises(UserError):
        check("training", merged(REST["training"], {"optimizer": {"lr": "fast"}}))
    with pytest.raises(UserError):
        check_command(["raylign", "train", "openmoji.yaml", "optimzer.lr=1"])
    for command in (["make", "cake"], ["raylign", "trane"], ["python -m", "benchmarks.nothing"], ["raylign", "train", "--chek"]):
        with pytest.raises(AssertionError):
            check_command(command)
    with pytest.raises(AssertionError):
        check_command(["raylign", "train", "training/configs/none.yaml"])
