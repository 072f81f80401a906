"""Settings: whatever a user gets wrong in a YAML file or an override comes back as one line with the key and the way out."""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, describe, load, parse_overrides, read_yaml, validate
from pipelines.program.settings_base import Settings, digest
from tests.refusals import refused


class Red(Settings):
    """A red tower."""

    name: Literal["red"]
    depth: float = 1.0


class Blue(Settings):
    """A blue tower."""

    name: Literal["blue"]
    width: int = Field(3, ge=1, description="how wide")
    tags: tuple[str, ...] = ()


class Inner(Settings):
    learning_rate: float = Field(0.1, description="of the optimizer")
    steps: int = 10


class Outer(Settings):
    title: str
    inner: Inner = Inner()
    tower: Annotated[Red | Blue, Field(discriminator="name")]
    sizes: tuple[int, ...] = (1, 2)
    share: float | None = 0.5
    splits: dict[str, float] = {}


GOOD = {"title": "t", "tower": {"name": "red"}}


@pytest.mark.parametrize(
    ("change", "key", "named", "remedy"),
    [
        ({"titel": "x"}, "titel", ["'x'", "inner, share, sizes, splits, title, tower"], "'title'"),
        ({"zzz": 1}, "zzz", ["1"], "inner, share"),
        ({"inner": {"learn_rate": 1}}, "inner.learn_rate", ["steps"], "'learning_rate'"),
        ({"inner": {"steps": "many"}}, "inner.steps", ["integer", "'many'"], ""),
        ({"inner": 3}, "inner", ["3"], "learning_rate, steps"),
        ({"title": 5}, "title", ["string", "5"], ""),
        ({"sizes": [1, "a"]}, "sizes.1", ["integer", "'a'"], ""),
        ({"splits": {"test": "half"}}, "splits.test", ["number", "'half'"], ""),
        ({"tower": {"name": "green"}}, "tower.name", ["'green'"], "blue, red"),
        ({"tower": {"depth": 1}}, "tower.name", [], "blue, red"),
        # A key of another member of the union is unknown here, and the member's own tag is no part of the key.
        ({"tower": {"name": "red", "width": 2}}, "tower.width", ["2"], "depth, name"),
        ({"tower": {"name": "blue", "widht": 2}}, "tower.widht", ["2"], "'width'"),
        ({"tower": {"name": "blue", "width": 0}}, "tower.width", ["greater than or equal to 1", "0"], ""),
    ],
)
def test_an_error_names_key_value_and_remedy(change: dict, key: str, named: list[str], remedy: str) -> None:
    with refused(key, "file.yaml", *named, remedy=remedy):
        validate(Outer, GOOD | change, "file.yaml")


@pytest.mark.parametrize(("tree", "key"), [({"tower": {"name": "red"}}, "title"), ({"title": "t"}, "tower")])
def test_a_missing_key_says_how_to_give_it(tree: dict, key: str) -> None:
    with refused(key, "file.yaml", remedy=f"{key}=VALUE"):
        validate(Outer, tree, "file.yaml")


def test_several_errors_are_one_about_the_first_key_that_names_all_keys() -> None:
    tree = GOOD | {"titel": 1, "sizes": "x", "inner": {"steps": None}, "share": "half", "splits": {"test": "some"}}
    with refused("inner.steps", "null", "file.yaml", "4 more", "share", "'half'", "sizes", "'x'", "titel", "splits.test"):
        validate(Outer, tree, "file.yaml")


class Range(Settings):
    low: float = 0.0
    high: float = 1.0

    @field_validator("high")
    @classmethod
    def _not_odd(cls, value: float) -> float:
        if value == 13:
            raise ValueError("low: is what people expect; write 12")
        return value

    @model_validator(mode="after")
    def _ascending(self) -> "Range":
        if self.high < 0:
            raise ValueError("not a key: negative; make it positive")
        if self.low > self.high:
            raise ValueError(f"low: {self.low:g} is above high; swap them")
        return self


class Ranges(Range):
    inner: Range = Range()
    several: tuple[Range, ...] = ()


@pytest.mark.parametrize(
    ("tree", "key", "problem", "remedy"),
    [
        ({"low": 2}, "low", "2 is above high", "swap them"),
        ({"inner": {"low": 2}}, "inner.low", "2 is above high", "swap them"),
        ({"several": [{}, {"low": 2}]}, "several.1.low", "2 is above high", "swap them"),
        # Not a field's name; and a validator of one field speaks about that field.
        ({"inner": {"high": -1, "low": -2}}, "inner", "not a key: negative", "make it positive"),
        ({"high": -1, "low": -2}, "", "not a key: negative", "make it positive"),
        ({"high": 13}, "high", "low: is what people expect", "write 12"),
    ],
)
def test_what_a_validator_raises_has_parts_too(tree: dict, key: str, problem: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        validate(Ranges, tree, "f")
    assert (caught.value.key, caught.value.problem, caught.value.remedy) == (key, f"{problem} [f]", remedy)


def test_numbers_that_yaml_reads_as_strings_become_numbers(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("title: t\ntower: {name: red, depth: 2e-3}\ninner: {learning_rate: 1e-3}\n")
    settings = load(Outer, file, parse_overrides(["share=5e-1"]))
    assert settings.inner.learning_rate == pytest.approx(0.001, rel=1e-12)
    assert isinstance(settings.tower, Red) and settings.tower.depth == pytest.approx(0.002, rel=1e-12)
    assert settings.share == 0.5


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("title: t\ntower: {name: blue, width: 7}\nsizes: [9]\n")
    given = ["sizes=[3, 4]", "share=null", "inner.steps=5", "title=a=b", "tower.tags=[x]", "splits.test=.25"]
    settings = load(Outer, file, parse_overrides(given))
    assert settings.sizes == (3, 4) and settings.share is None and settings.inner.steps == 5
    assert settings.title == "a=b" and settings.splits == {"test": 0.25}
    assert settings.tower == Blue(name="blue", width=7, tags=("x",))


@pytest.mark.parametrize("order", [["tower.name=blue", "tower.width=5"], ["tower.width=5", "tower.name=blue"]])
def test_another_name_drops_the_siblings_of_the_old_one(tmp_path: Path, order: list[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("title: t\ntower: {name: red, depth: 4}\n")
    assert load(Outer, file, parse_overrides(order)).tower == Blue(name="blue", width=5)
    # The same name again is no change.
    assert load(Outer, file, parse_overrides(["tower.name=red"])).tower == Red(name="red", depth=4)


def test_overrides_leave_the_tree_alone() -> None:
    tree = {"inner": {"steps": 1}, "sizes": [1]}
    changed = apply_overrides(tree, {"inner.steps": 2, "splits.a": 0.5, "name": "n"})
    assert tree == {"inner": {"steps": 1}, "sizes": [1]}
    # A top-level `name`, such as a run's, has no siblings to drop.
    assert changed == {"inner": {"steps": 2}, "sizes": [1], "splits": {"a": 0.5}, "name": "n"}


@pytest.mark.parametrize("argument", ["epochs", "=3", ""])
def test_an_override_without_a_key_is_explained(argument: str) -> None:
    with refused(f"'{argument}'", "key=value", remedy="="):
        parse_overrides([argument])


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 1")
    with refused(str(tmp_path / "b.yaml"), remedy=tmp_path / "a.yaml"):
        read_yaml(tmp_path / "b.yaml")
    with refused(str(tmp_path / "nowhere" / "b.yaml")) as caught:
        read_yaml(tmp_path / "nowhere" / "b.yaml")
    assert not caught.value.remedy


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"a: [1, 2", "YAML"),
        (b"a: 1\n b: 2\n", "line 2"),
        (b"\xff\xfe\x00", "YAML"),
        (b"- 1\n- 2\n", "list"),
        (b"just words", "str"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: bytes, named: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with refused(str(file), named):
        load(Outer, file)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with refused(str(tmp_path), "folder"):
        load(Outer, tmp_path)


def test_an_empty_file_misses_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("# nothing yet\n")
    with refused("title", str(file), remedy="title=VALUE"):
        load(Outer, file)


@pytest.mark.parametrize("value", ["2026-07-01", "2026-07-01 12:00:00"])
def test_a_value_that_json_does_not_know_is_an_error_of_its_key(tmp_path: Path, value: str) -> None:
    """YAML reads an unquoted date as a date: a run that is named by its day must not end in a traceback."""
    file = tmp_path / "c.yaml"
    file.write_text(f"title: {value}\ntower: {{name: red}}\n")
    with refused("title", "2026"):
        load(Outer, file)


def test_settings_are_frozen_and_digested_by_value() -> None:
    one = validate(Outer, GOOD, "x")
    with pytest.raises(ValidationError):
        one.title = "other"  # type: ignore[misc]
    assert one.digest() == validate(Outer, GOOD | {"share": "0.5"}, "x").digest()
    assert one.digest() != validate(Outer, GOOD | {"share": 0.25}, "x").digest()
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"b": [2, 1], "a": 1})
    assert len(digest(None)) == 32 and int(digest(None), 16)


def test_help_lists_every_key_with_default_and_meaning() -> None:
    text = describe(Outer)
    lines = [line.strip() for line in text.split("\n")]
    assert "title: required" in lines
    assert "learning_rate: of the optimizer - default 0.1" in lines
    assert "name: red - A red tower." in lines and "name: blue - A blue tower." in lines
    assert "width: how wide - default 3" in lines
    assert "sizes: default [1, 2]" in lines
    # Nested keys stand deeper than their parent.
    inner = next(line for line in text.split("\n") if "inner:" in line)
    rate = next(line for line in text.split("\n") if "learning_rate" in line)
    assert len(rate) - len(rate.lstrip()) > len(inner) - len(inner.lstrip())


class Quick(Settings):
    """Fast."""

    name: Literal["quick"] = "quick"
    steps: int = 3


class Slow(Settings):
    """Sure."""

    name: Literal["slow"] = "slow"
    extra: Annotated[Quick | Red, Field(discriminator="name")] = Quick()
    fixed: Quick = Quick(steps=7)


class Nested(Settings):
    """A choice within a choice."""

    pace: Annotated[Quick | Slow, Field(discriminator="name")] = Slow()


def test_help_shows_choices_within_choices_and_the_defaults_that_hold() -> None:
    text = describe(Nested)
    assert "pace: default name: slow" in text and "extra: default name: quick" in text
    assert text.count("name: quick - Fast.") == 2 and "name: red" in text
    # The class says 3, but where it stands alone its owner says 7.
    assert text.count("steps: default 3") == 2 and text.count("steps: default 7") == 1


@pytest.mark.parametrize(
    ("given", "key", "meant"),
    [
        (["inner.steps="], "inner.steps", "inner.steps=VALUE"),
        (["inner.steps=", "3"], "inner.steps", "inner.steps=3"),
        (["inner.steps", "3"], "'inner.steps'", "inner.steps=3"),
        (["inner.steps:", "3"], "'inner.steps:'", "inner.steps=3"),
        (["inner.steps:3"], "'inner.steps:3'", "inner.steps=3"),
        (["inner.steps", "=", "3"], "'inner.steps'", "inner.steps=3"),
        (["inner.steps", "=3"], "'inner.steps'", "inner.steps=3"),
        (["steps", "3"], "'steps'", "inner.steps=3"),
        (["lr", "3"], "'lr'", "inner.learning_rate=3"),
    ],
)
def test_an_argument_that_is_no_override_suggests_the_one_that_was_meant(given: list[str], key: str, meant: str) -> None:
    with refused(key, remedy=meant):
        parse_overrides(given, Outer)


@pytest.mark.parametrize("given", [["inner.steps=3", "inner.steps=4"], ["share=1", "title=t", "share=1"]])
def test_a_key_that_is_set_twice_is_an_error(given: list[str]) -> None:
    with refused(given[0].partition("=")[0], given[0].partition("=")[2], given[-1].partition("=")[2]):
        parse_overrides(given)


@pytest.mark.parametrize(("given", "twice"), [("inner={steps: 1, steps: 2}", "'steps'"), ("sizes=[{a: 1, a: 1}]", "'a'")])
def test_so_is_one_within_a_value(given: str, twice: str) -> None:
    with refused(given.partition("=")[0], twice):
        parse_overrides([given])


@pytest.mark.parametrize(
    ("change", "key", "named", "remedy"),
    [
        ({"tower": "blue"}, "tower", "'blue'", "tower.name=blue?"),
        ({"tower": "bleu"}, "tower", "'bleu'", "tower.name=blue?"),
        ({"tower": {"name": "BLUE"}}, "tower.name", "'BLUE'", "'blue'?"),
        ({"tower": {"name": "tower"}}, "tower.name", "'tower'", "'red' or 'blue'?"),  # a word of both descriptions
        ({"tower": {"name": "red", "width": 2}}, "tower.width", "2", "tower.name=blue"),
        ({"lr": 2}, "lr", "2", "'inner.learning_rate'?"),
        ({"steps": 2}, "steps", "2", "'inner.steps'?"),
        ({"sizes": 3}, "sizes", "3", "sizes=[3]?"),
        ({"title": None}, "title", "null", ""),
    ],
)
def test_the_remedy_suggests_what_was_probably_meant(change: dict, key: str, named: str, remedy: str) -> None:
    with refused(key, named, remedy=remedy):
        validate(Outer, GOOD | change, "file.yaml")


class Mode(Settings):
    mode: Literal["trainable", "frozen", "locked"] = "trainable"


@pytest.mark.parametrize(("value", "remedy"), [("froozen", "'frozen'?"), ("LOCKED", "'locked'?"), ("zzz", ""), (3, "")])
def test_a_choice_that_is_misspelt_is_suggested(value: object, remedy: str) -> None:
    with refused("mode", repr(value), "'trainable', 'frozen' or 'locked'", remedy=remedy) as caught:
        validate(Mode, {"mode": value}, "file.yaml")
    assert bool(caught.value.remedy) == bool(remedy)


def test_a_misspelt_key_that_must_be_there_is_one_mistake() -> None:
    with refused("titel", "'t'", remedy="'title'") as caught:
        validate(Outer, {"titel": "t", "tower": {"name": "red"}}, "file.yaml")
    assert "more" not in caught.value.problem


# Keys with dots, as a sweep's file has them


@pytest.mark.parametrize(
    ("tree", "key", "expected"),
    [
        ({"overrides": {"optimizer.lr": 1}}, "overrides.optimizer.lr", {"overrides": {"optimizer.lr": 2}}),
        ({"space": {"a.b": {"low": 1}}}, "space.a.b.low", {"space": {"a.b": {"low": 2}}}),
        ({"space": {"a.b": {"low": 1}}}, "space.a.b.high", {"space": {"a.b": {"low": 1, "high": 2}}}),
        ({"space": {"a.b": {"low": 1}}}, "space.a.b", {"space": {"a.b": 2}}),
        # The longest key that is there is the one that is meant.
        ({"a": {"b": {"c": 1}}, "a.b": {"c": 1}}, "a.b.c", {"a": {"b": {"c": 1}}, "a.b": {"c": 2}}),
        ({"a.b": {"c": 1}, "a.b.c": 1}, "a.b.c", {"a.b": {"c": 1}, "a.b.c": 2}),
        ({"x": {"a.b": {"c.d": {"e": 1}}}}, "x.a.b.c.d.e", {"x": {"a.b": {"c.d": {"e": 2}}}}),
        # What only begins alike is another key.
        ({"x": {"a.bc": 1}}, "x.a.b", {"x": {"a.bc": 1, "a": {"b": 2}}}),
        ({"x": {"a.b": 1}}, "x.a.c", {"x": {"a.b": 1, "a": {"c": 2}}}),
        # A value gives way to a mapping where the key goes on.
        ({"x": {"a.b": [1]}}, "x.a.b.c", {"x": {"a.b": {"c": 2}}}),
        ({"x": None}, "x.a", {"x": {"a": 2}}),
        ({}, "x.a.b", {"x": {"a": {"b": 2}}}),
    ],
)
def test_an_override_means_the_dotted_key_that_is_there(tree: dict, key: str, expected: dict) -> None:
    assert apply_overrides(tree, {key: 2}) == expected


def test_a_name_among_dotted_keys_has_no_siblings_to_drop() -> None:
    """`grid: {tower.name: [...]}` is an axis of its own; `grid: {tower.depth: [...]}` stays beside it."""

    class Grid(Settings):
        grid: dict[str, list] = {}
        tower: Annotated[Red | Blue, Field(discriminator="name")]

    tree = {"grid": {"tower.name": ["red"], "tower.depth": [1]}, "tower": {"name": "red", "depth": 2}}
    changed = apply_overrides(tree, {"grid.tower.name": ["red", "blue"], "tower.name": "blue"}, Grid)
    assert changed == {"grid": {"tower.name": ["red", "blue"], "tower.depth": [1]}, "tower": {"name": "blue"}}


def test_overrides_that_meet_leave_their_owner_alone() -> None:
    """A sweep's cell may set a whole part and its point a key of it; the next point must find the cell as it was."""
    overrides = {"tower": {"name": "red", "depth": 1.0}, "tower.depth": 5.0}
    assert apply_overrides({}, overrides, Outer) == {"tower": {"name": "red", "depth": 5.0}}
    assert overrides == {"tower": {"name": "red", "depth": 1.0}, "tower.depth": 5.0}


@pytest.mark.parametrize(
    ("model", "tree", "key", "now"),
    [
        (
            "pipelines.prepare.config:PrepareSettings",
            {"source": {"name": "openmoji"}, "output": "x", "way": "index"},
            "way",
            "mode",
        ),
        ("training.config:TrainSettings", {"name": "r", "data": {"path": "x", "share": 0.5}}, "data.share", "fraction"),
        ("training.config:TrainSettings", {"name": "r", "data": {"path": "x"}, "guides": {}}, "guides", "frozen_encoders"),
        (
            "training.config:TrainSettings",
            {"name": "r", "data": {"path": "x"}, "objective": {"name": "a-clip-ping", "xnn": 1}},
            "objective.xnn",
            "cross_nearest",
        ),
    ],
)
def test_a_key_of_earlier_versions_names_todays(model: str, tree: dict[str, Any], key: str, now: str) -> None:
    module, _, name = model.partition(":")
    settings = getattr(importlib.import_module(module), name)
    with refused(key, remedy=now):
        validate(settings, tree, "config.yaml")
