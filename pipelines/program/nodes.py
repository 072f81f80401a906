"""Nodes of a cluster and what shall run on them: resources, labels, and what does not fit.

A label selector is Ray's: a mapping from keys to conditions, all of which a node's labels must meet. A condition is a value,
`in(a, b)`, or one of these after an exclamation mark, which a node without the label meets too.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from pipelines.program.config_errors import plain

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_WORD}(?:\.{_WORD})*/)?{_WORD}")
_CONDITION = re.compile(rf"(!?)(?:in\(({_WORD}(?:, ?{_WORD})*)\)|({_WORD}))")
_ALMOST = 1e-6  # of a resource: sums of fractions are not exact

_FIRST = 5.0  # seconds within which what fits is placed: Ray counts with a delay
_LONGEST = 600.0  # between two notices


def _selector(value: Any) -> Any:
    """Raises `ValueError` for what Ray does not take for a label selector."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{plain(value)} is no mapping from labels to values; write, for example, {{role: train}}")
    for key, condition in value.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise ValueError(f"{plain(key)} is no label's key; write letters, digits, dots, hyphens and underscores")
        if not isinstance(condition, str) or not _CONDITION.fullmatch(condition):
            example = "as text, a value, '!value', 'in(one, other)' or '!in(one, other)'"
            raise ValueError(f"{plain(condition)} is no condition for the label {key}; write, {example}")
    return dict(value)


Selector = Annotated[dict[str, str], BeforeValidator(_selector)]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels meets all conditions. Only for a valid selector."""
    for key, condition in selector.items():
        found = _CONDITION.fullmatch(condition)
        assert found is not None
        values = re.split(", ?", found[2] or found[3])
        if (labels.get(key) in values) == bool(found[1]):
            return False
    return True


class Node(NamedTuple):
    """Resources of a node, all or those that are free, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = {}


class Bundle(NamedTuple):
    """Resources that something needs, all on one node, and the selector of that node."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = {}

    def room(self, node: Node) -> int:
        """How often it fits on a node."""
        if not matches(self.labels, node.labels):
            return 0
        counts = [node.resources.get(kind, 0) / amount for kind, amount in self.resources.items() if amount]
        return math.floor(min(counts, default=1) + _ALMOST)

    def __str__(self) -> str:
        resources = ", ".join(f"{kind}: {amount:g}" for kind, amount in self.resources.items() if amount)
        return f"{{{resources}}}{f' on nodes with {in_words(self.labels)}' if self.labels else ''}"


def in_words(labels: Mapping[str, str]) -> str:
    """Labels or a selector as in YAML, on one line."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in sorted(labels.items())) + "}"


def all_fit(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> bool:
    """Whether bundles fit, the largest first; those without a GPU go to nodes without one, if they have room."""

    def size(one: Node | Bundle) -> tuple[float, float]:
        return one.resources.get("GPU", 0), one.resources.get("CPU", 0)

    free = [Node(dict(node.resources), node.labels) for node in sorted(nodes, key=size)]
    for bundle in sorted(bundles, key=lambda bundle: (bool(bundle.labels), *size(bundle)), reverse=True):
        home = next((node for node in free if bundle.room(node)), None)
        if home is None:
            return False
        for kind, amount in bundle.resources.items():
            home.resources[kind] = home.resources.get(kind, 0) - amount  # type: ignore[index]
    return True


def shortage(bundles: Sequence[Bundle], free: Sequence[Node], every: Sequence[Node]) -> str:
    """What bundles wait for, such as `2 x {CPU: 1, GPU: 1}: 0 free of 4`: how many of a kind fit now, and on empty nodes.

    Each kind is counted as if there were no other.
    """
    kinds = Counter((tuple(sorted(bundle.resources.items())), tuple(sorted(bundle.labels.items()))) for bundle in bundles)
    parts = []
    for (resources, labels), count in kinds.items():
        bundle = Bundle(dict(resources), dict(labels))
        now, ever = (sum(map(bundle.room, nodes)) for nodes in (free, every))
        parts.append(f"{count} x {bundle}: {now} free of {ever}")
    return ", ".join(parts)


def waits_for(shortage: str, seconds: float) -> str:
    """A line about what has been waiting for so long."""
    return f"waiting for {shortage}; pending {seconds:.0f} s: it continues when a node joins or another job ends"


class Notices:
    """When to say that something waits: after five seconds, and again whenever the wait is twice as long as at the last time."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._next = _FIRST

    def due(self, waits: bool) -> float | None:
        """Seconds of this wait if it is to be told now, else None. A wait that ended is forgotten."""
        if not waits:
            self._since = None
            return None
        now = time.monotonic()
        if self._since is None:
            self._since, self._next = now, _FIRST
        waited = now - self._since
        if waited < self._next:
            return None
        self._next = waited + min(waited, _LONGEST)
        return waited
