"""Which nodes a label selector means is what Ray means by it, and what waits is told again and again, at growing intervals."""

from itertools import pairwise

import pytest
from ray._private.label_utils import validate_label_selector
from ray.autoscaler.v2.scheduler import SchedulingNode
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator

from pipelines.program import nodes
from pipelines.program.nodes import Bundle, Node, Notices, matches, shortage

NODES = ({}, {"role": "train"}, {"role": "data", "ray.io/market-type": "spot"}, {"role": "in"})
IN, NOT_IN = LabelSelectorOperator.LABEL_OPERATOR_IN, LabelSelectorOperator.LABEL_OPERATOR_NOT_IN


@pytest.mark.parametrize(
    ("condition", "operator", "values"),
    [
        ("train", IN, ["train"]),
        ("!train", NOT_IN, ["train"]),
        ("in(train, data)", IN, ["train", "data"]),
        ("!in(train,data)", NOT_IN, ["train", "data"]),
        ("in", IN, ["in"]),
    ],
)
def test_a_selector_means_the_nodes_that_ray_would_start_for_it(condition: str, operator: int, values: list[str]) -> None:
    """And Ray accepts it as it is written."""
    assert validate_label_selector({"role": condition}) is None
    request = ResourceRequestUtil.make({"CPU": 1}, label_selectors=[[("role", operator, values)]])
    for labels in NODES:
        node = SchedulingNode.__new__(SchedulingNode)
        node.labels = labels
        assert matches({"role": condition}, labels) == bool(node._satisfies_label_constraints([request])), labels
    assert matches({"role": condition, "ray.io/market-type": "!spot"}, {"role": "data", "ray.io/market-type": "spot"}) is False


def test_what_is_missing_is_told_by_kind() -> None:
    train, data = {"role": "train"}, {"role": "data"}
    worker, task = Bundle({"CPU": 1.0, "GPU": 1.0}, train), Bundle({"CPU": 0.5}, {})
    every = [Node({"CPU": 8.0, "GPU": 4.0, "memory": 1e9}, train), Node({"CPU": 4.0}, data)]
    free = [Node({"CPU": 0.3 + 0.2 + 0.5, "GPU": 0.0}, train), Node({"CPU": 0.4}, data)]
    words = shortage([worker, task, worker, task, task], free, every)
    assert words == "2 x {CPU: 1, GPU: 1} on nodes with {role: train}: 0 free of 4, 3 x {CPU: 0.5}: 2 free of 24"


def test_a_wait_is_told_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    now, notices = [0.0], Notices()
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])

    def told(until: int, waits: bool = True) -> list[float]:
        found = []
        while now[0] < until:
            if (seconds := notices.due(waits)) is not None:
                found.append(seconds)
            now[0] += 1
        return found

    assert told(100) == [5, 10, 20, 40, 80]
    assert told(101, waits=False) == []
    assert told(112) == [5, 10], "a new wait"
    later = told(10_000)
    assert max(second - first for first, second in pairwise(later)) == 600
