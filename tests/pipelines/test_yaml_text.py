"""Text to values and back: the numbers of YAML 1.2, and nothing that grows without bounds or vanishes without a word."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.program import yaml_text
from pipelines.program.settings import parse_overrides, read_yaml
from pipelines.program.yaml_text import dump, parse
from pipelines.sources.configurations import by_readme
from tests.refusals import refused

# YAML 1.2.2, section 10.3.2: tag:yaml.org,2002:float of the core schema, without infinities.
CORE_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@given(st.from_regex(CORE_FLOAT, fullmatch=True))
def test_whatever_yaml_1_2_calls_a_number_is_that_number(text: str) -> None:
    if text.isascii():
        number = int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
        assert parse(f"k: [{text}]") == {"k": [number]}


@pytest.mark.parametrize(("text", "number"), [("010", 10), ("-007", -7), ("0o17", 15), ("0x1F", 31), ("-.inf", float("-inf"))])
def test_a_whole_number_is_what_it_looks_like(text: str, number: float) -> None:
    assert parse(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "12:30",
        "190:20:30.15",
        "1_000",
        "0b11",
        "1_0.5",
        "1e-3x",
        "e5",
        "1e",
        "1-3",
        "v1e3",
        ".",
        "1.2.3",
        "--1e3",
        "1 e3",
        "'1e-3'",
        '"1e-3"',
    ],
)
def test_what_is_no_number_stays_text(text: str) -> None:
    assert parse(text) == text.strip("'\"")


def test_the_same_holds_for_what_is_typed() -> None:
    assert parse_overrides(["a=1e-3", "b=[1E5, -2e+1]", "c='1e-3'"]) == {"a": 0.001, "b": [1e5, -20.0], "c": "1e-3"}


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(CORE_FLOAT, fullmatch=True),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.booleans())
def test_what_is_written_is_read_again_as_it_was(value: Any, flow: bool) -> None:
    again = parse(dump(value, flow))
    assert again == value and str(again) == str(value)  # 1 and True and 1.0 are equal in Python


def laughs(depth: int, width: int = 9) -> str:
    """Each line repeats the one before it: width ** depth values in a few hundred characters."""
    lines = ["a0: &a0 [x, x]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth + 1)])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (laughs(9), "20,000"),
        (f"[{'1,' * 20_001}]", "20,000"),
        ("[" * 5000 + "]" * 5000, "100"),
        ("a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 150)), "100"),
        ("a: &a [1, *a]", "anchor"),
        ("a: &a {b: *a}", "anchor"),
        ("a: 1\na: 2", "'a'"),
        ("{b: {c: 1, d: 2, 'c': 3}}", "'c'"),
        ("b: {<<: {c: 1, c: 2}, d: 3}", "'c'"),
        ("b: {<<: [{d: 1}, {c: 1, c: 2}]}", "'c'"),
        ("day: 2024-13-45", "month"),
        (f"n: {'9' * 5000}", "digits"),
    ],
    ids=[
        "laughs",
        "many",
        "depth",
        "depth of aliases",
        "own list",
        "own mapping",
        "key",
        "inner key",
        "merged key",
        "listed key",
        "date",
        "digits",
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_before_it_grows(
    text: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_text, "MOST_VALUES", 20_000)
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with refused(str(file), named) as caught:
        read_yaml(file)
    assert len(str(caught.value)) < 400


def test_anchors_that_repeat_a_little_are_what_they_are_for() -> None:
    text = "base: &base {name: adamw, lr: 1e-3}\nmine: {<<: *base, lr: 2e-3}\nsame: *base\nlist: [*base, *base]"
    assert parse(text)["mine"] == {"name": "adamw", "lr": 0.002}
    assert parse(text)["list"] == [{"name": "adamw", "lr": 0.001}] * 2
    assert parse(laughs(4))["a4"][8][8][8][8] == ["x", "x"]


def test_what_is_typed_is_bounded_too_and_other_mistakes_are_text() -> None:
    with refused("grid", "anchor"):
        parse_overrides(["grid=&a [*a]"])
    assert parse_overrides(["k=[1", "d=2024-13-45"]) == {"k": "[1", "d": "2024-13-45"}


def test_the_header_of_a_strangers_readme_is_bounded_too() -> None:
    assert by_readme("---\nconfigs: [{config_name: en, data_files: 'en/*'}]\n---\n") == {"en": ["en/*"]}
    with refused("source.path", "README.md", "250,000"):
        by_readme(f"---\n{laughs(9)}\n---\n")


def test_a_file_too_large_to_be_a_config_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.yaml"
    with file.open("wb") as out:
        out.truncate(2**33)
    monkeypatch.setattr(yaml_text, "parse", lambda text: pytest.fail("it was read"))
    with refused(str(file), "8,589,934,592", "4,194,304"):
        read_yaml(file)


def test_the_count_is_of_what_a_naive_reader_would_build() -> None:
    def measure(value: Any) -> tuple[int, int]:
        inner = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        parts = [measure(part) for part in inner] if isinstance(value, dict | list) else []
        return 1 + sum(count for count, _ in parts), 1 + max((depth for _, depth in parts), default=0)

    for text in ("a: 1", "[1, [2, 3], {}]", laughs(3), laughs(2, 3), "a: &a {b: [1]}\nc: [*a, *a]"):
        assert yaml_text._expanded(yaml.compose(text), {}) == measure(parse(text))
    assert yaml_text._expanded(yaml.compose(laughs(9)), {})[0] > 9**9
