"""YAML as people type it, to values and back.

PyYAML follows YAML 1.1, in which `1e-3` is text, `010` is 8 and `12:30` is 750. Here numbers are those of YAML 1.2 (core schema,
section 10.3.2). Dumped values are read back unchanged. Files are untrusted: anchors that multiply one another, or contain
themselves, are refused before any objects are built from them.
"""

import re
from collections import Counter
from typing import Any

import yaml

MOST_VALUES = 250_000  # in one text, where each alias counts as all values of its anchor; about 200 MB while it is read
_DEEPEST = 100  # levels of nested lists and mappings
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NUMBERS = {
    _INT: re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    _FLOAT: re.compile(
        r"^((?=.*[.eE])[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
_MERGE = "tag:yaml.org,2002:merge"


class TooMuch(yaml.YAMLError):
    """More content than a config can reasonably have."""


class Twice(yaml.constructor.ConstructorError):
    """A mapping with a duplicate key."""


class _Loader(yaml.SafeLoader):
    """Safe types only, no duplicate keys, and at most `MOST_VALUES` values."""

    def __init__(self, text: str):
        super().__init__(text)
        self._composed = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._composed += 1
        if self._composed > MOST_VALUES:
            raise _too_many()
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # On the nodes as typed: a mapping that is only merged (`<<`) is never built, and its keys may be set again.
        node = super().compose_mapping_node(anchor)
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE)
        for (_, key), count in keys.items():
            if count > 1:
                raise Twice(None, None, f"the key '{key}' is there twice", node.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that would be read as a number."""


for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _pattern in _NUMBERS.items():
        _kind.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    digits = loader.construct_scalar(node)
    return int(digits, 0) if digits.startswith(("0o", "0x")) else int(digits)


_Loader.add_constructor(_INT, _int)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Quotes text with line ends other than \\n, which would be read as \\n or a space unless they are escaped."""
    style = '"' if any(end in value for end in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def parse(text: str) -> Any:
    """The single value in a text; None for an empty one. Raises `yaml.YAMLError`, such as `TooMuch` or `Twice`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        count, depth = _expanded(node, {})
        if count > MOST_VALUES:
            raise _too_many()
        if depth > _DEEPEST:
            raise _too_deep()
        return loader.construct_document(node)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # no such date, a whole number of thousands of digits
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def dump(value: Any, flow: bool = False) -> str:
    """A text that `parse` reads as `value`, with keys in order; `flow`: on one line."""
    width = float("inf") if flow else None
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)


def line(value: Any) -> str:
    """A value on one line, as it is typed after a key."""
    return dump(value, flow=True).removesuffix("...\n").strip()


def _expanded(node: yaml.Node, visited: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of values in a node, with all aliases expanded, and their depth. `visited`: results so far, by the node's id."""
    if id(node) in visited:
        if not visited[id(node)][0]:
            raise TooMuch("an anchor contains an alias of itself")
        return visited[id(node)]
    visited[id(node)] = 0, 0
    inner = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    parts = [_expanded(part, visited) for part in inner]
    visited[id(node)] = 1 + sum(count for count, _ in parts), 1 + max((depth for _, depth in parts), default=0)
    return visited[id(node)]


def _too_many() -> TooMuch:
    return TooMuch(f"holds more than {MOST_VALUES:,} values, counting those that aliases repeat")


def _too_deep() -> TooMuch:
    return TooMuch(f"lists or mappings are nested more than {_DEEPEST} deep")
