"""The part of `ray_internals` about nodes that come and go: a range of workers, for which Ray Train's policy is replaced by one
of ours, and why a run's workers are started again."""

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.program.nodes import Bundle, Node

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

# Seconds until a run with a range of workers counts again how many fit, if those that it started are not placed: a node that had
# just been lost was counted, or another job was faster.
COUNT_AGAIN = 10.0
# Why workers are started again: one of their nodes is about to be lost, or was lost, or anything else.
NOTICE, LOST_NODE, FAILURE = "notice", "lost node", "failure"
_MOVED = 5.0  # seconds after which it is asked again on which nodes a run is
_REACH = 3.0  # seconds within which a live node accepts a connection
_GOING = 2.0  # seconds for which a node that is shut down may still accept one when its workers have ended


def all_nodes() -> list[Node]:
    """The live nodes that stay, with all their resources."""
    import ray

    leave = draining_nodes()
    return [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leave]


def free_resources(group: "PlacementGroup | None") -> list[Node]:
    """What is free on each live node that stays, counting what `group` holds there (_private/state.py)."""
    from ray.util import placement_group_table

    nodes = free_by_node()
    table = {} if group is None else placement_group_table(group)
    if table.get("state") in ("CREATED", "RESCHEDULING"):
        for index, node in table["bundles_to_node_id"].items():
            for kind, amount in table["bundles"][index].items() if node in nodes else ():
                resources = nodes[node].resources
                resources[kind] = resources.get(kind, 0) + amount  # type: ignore[index]
    return list(nodes.values())


def free_by_node() -> dict[str, Node]:
    """What is free on each live node that stays, by the node's id (_private/state.py)."""
    import ray
    from ray._private.state import available_resources_per_node

    leave, labels = draining_nodes(), {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    free = available_resources_per_node()
    return {node: Node(dict(resources), labels.get(node, {})) for node, resources in free.items() if node not in leave}


class Group(NamedTuple):
    """A placement group: the id of the job that made it, and its bundles, each with its node's id; None while it waits."""

    job: str
    bundles: list[tuple[Bundle, str | None]]


def groups() -> list[Group]:
    """All of the cluster that hold resources or wait for some; Ray's public table of groups names no jobs, and no label
    selectors (_private/state.py, `PlacementGroupTableData` in core/generated/gcs_pb2).
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    import ray  # isort: skip

    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    return [
        Group(
            data.creator_job_id.hex(),
            [
                (Bundle(dict(bundle.unit_resources), dict(bundle.label_selector)), node if node in alive else None)
                for bundle in data.bundles
                for node in [bundle.node_id.hex()]
            ],
        )
        for data in found
        if data.state != PlacementGroupTableData.REMOVED
    ]


def policy(scaling_config: Any, fitting: Callable[[list[Node]], int], beside: Sequence[Bundle]) -> Any:
    """Decides about the number of workers in a range: as many as there is room for.

    Ray Train's own policy does not know what is booked beside the workers or by other jobs, is silent while too few fit, and
    restarts the workers in the middle between two checkpoints. This one starts as many as fit, or waits for the smallest number
    as a fixed one would; and it adds workers when a checkpoint has been saved and they train on, so next to no step is repeated.
    To remove workers is not its task: those on a lost node fail (train/v2/_internal/execution/scaling_policy/elastic.py,
    worker_group/poll.py).
    """
    from ray.train import ScalingConfig
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import TrainAutoscalingCoordinatorClient

    class Policy(ElasticScalingPolicy):
        _handle: Any = None  # of the placement group of the workers that ran last
        _reports: list[int]  # that each of them has made
        _due = 0  # the report with a checkpoint, if not all of them have made it yet
        _fresh = False  # whether a checkpoint was registered at the last call
        _beside: Any = None  # asks for what is beside the workers

        def after_controller_start(self, train_run_context: Any) -> None:
            super().after_controller_start(train_run_context)
            if beside:
                self._beside = TrainAutoscalingCoordinatorClient(f"{self._requester_id}-beside")

        def _maybe_send_resource_request(self) -> None:
            super()._maybe_send_resource_request()
            if self._beside is not None:  # else a cluster would grow until there was room for the workers alone
                wanted = ScalingConfig(num_workers=len(beside), label_selector=dict(beside[0].labels) or None)
                self._beside.maybe_send_resource_request(wanted, len(beside))

        def _cancel_resource_request(self) -> None:
            super()._cancel_resource_request()
            if self._beside is not None:
                self._beside.cancel_resource_request()

        def make_decision_for_non_running_worker_group(self) -> Any:
            self._maybe_send_resource_request()
            return self._get_resize_decision(max(self.scaling_config.min_workers, self._possible()))

        def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
            self._maybe_send_resource_request()
            workers = worker_group_state.num_workers
            if self._handle is not worker_group_state.placement_group_handle:
                self._handle, self._fresh = worker_group_state.placement_group_handle, False
                self._reports, self._due = [0] * workers, 0
            statuses = worker_group_status.worker_statuses
            fresh, self._fresh = self._fresh, self._saved(statuses)
            # After its last checkpoint a worker returns.
            if fresh and all(status.running for status in statuses.values()) and (possible := self._possible()) > workers:
                return self._get_resize_decision(possible)
            return NoopDecision()

        def _saved(self, statuses: Mapping[int, Any]) -> bool:
            """Whether a checkpoint has just been registered: its report is the last that any worker has made, and all have."""
            for rank, status in statuses.items():
                if status.training_report is not None:
                    self._reports[rank] += 1
                    if status.training_report.checkpoint is not None:
                        self._due = self._reports[rank]
            if not self._due or min(self._reports) < self._due:
                return False
            self._due = 0
            return True

        def _possible(self) -> int:
            try:
                return fitting(free_resources(None if self._handle is None else self._handle.placement_group))
            except Exception:  # the head does not answer; raised, it would end the run
                return 0

    return Policy(scaling_config)


def beyond_limits(group: "PlacementGroup") -> bool:
    """Whether the autoscaler found in its last round that it cannot add nodes for a group, by their types and limits.

    It says the same of a cluster that never grows (autoscaler/v2: instance_manager/reconciler.py, schema.py).
    """
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status())
    refused = reply.autoscaling_state.infeasible_gang_resource_requests
    return any(request.details.split(":")[0] == group.id.hex() for request in refused)


def draining_nodes() -> dict[str, int]:
    """The nodes that will be taken away according to a notice, and when: in ms since 1970, 0 if unknown (_private/state.py)."""
    from ray._private.state import state

    return state.get_draining_nodes()


def watch_nodes(restarting: Callable[[str, str | None, Mapping[int, BaseException]], object]) -> Any:
    """A callback for Ray Train's `RunConfig` that knows on which nodes a run's workers are, and what is booked beside them.

    It tells rank 0 of a notice that such a node will be taken away; and it tells why workers are started again, which Ray Train
    tells its own callbacks only (train/v2/_internal/execution: callback.py, controller/controller.py, controller/state.py).

    Ray Train's own watcher would start a process for each group of workers, ask every 5 s, and not know what is beside them. It
    would also tell the controller and the workers at the same time. The controller then no longer waits for the workers on that
    node, which may come later to a report than the others, would wait there for ever, and with them the others at the next step.
    Here the controller is told by `leave`, at the last report (train/v2/_internal: callbacks/preemption_callback.py,
    execution/checkpoint/sync_actor.py, execution/worker_group/worker.py).

    Args:
        restarting: called in the controller before workers are started again, with the kind, the cause where the workers do not
            know it, and their errors by rank; what it raises ends the run.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.controller.state import RestartingState
    from ray.train.v2.api.preemption import PreemptionInfo

    class Watch(ControllerCallback, WorkerGroupCallback):
        _workers: list[Any]  # that run, or ran last
        _group: Any  # of them and what is beside them
        _nodes: frozenset[str]  # of both
        _known: float  # when they were asked for: what is beside the workers moves if its node is lost, and the workers run on
        _leave: dict[str, int]  # those of the nodes that will be taken away, and when

        def after_worker_group_start(self, worker_group: Any) -> None:
            self._workers, self._leave = worker_group.get_workers(), {}
            self._group = worker_group.get_worker_group_state().placement_group_handle.placement_group
            self._nodes, self._known = _nodes_of(self._group), time.monotonic()

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            with suppress(Exception):  # the head may not answer at the moment; raised, it would end the run
                self._look()

        def _look(self) -> None:
            if time.monotonic() - self._known > _MOVED:
                self._nodes, self._known = _nodes_of(self._group), time.monotonic()
            new = {node: when for node, when in draining_nodes().items() if node in self._nodes - self._leave.keys()}
            if not new:
                return
            self._leave |= new
            ranks = {
                node: [worker.distributed_context.world_rank for worker in self._workers if worker.metadata.node_id == node]
                for node in self._leave
            }
            info = PreemptionInfo(min((when for when in self._leave.values() if when), default=None), ranks)
            for worker in self._workers:
                if worker.distributed_context.world_rank == 0:
                    worker.execute_async(_receive, info)

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if not isinstance(current_state, RestartingState):
                return
            errors = getattr(current_state.training_failed_error, "worker_failures", {})
            if self._leave:
                restarting(NOTICE, f"{_named(_addresses(self._leave))} about to be taken away", errors)
            elif lost := lost_nodes(self._nodes):
                restarting(LOST_NODE, f"{_named(lost)} lost", errors)
            else:
                restarting(FAILURE, None, errors)

    return Watch()


_notice: Any = None  # on rank 0, what Ray Train needs to know about the nodes that will be taken away


def _receive(info: Any) -> None:
    global _notice
    _notice = info


def noticed() -> bool:
    """In a worker: whether it is rank 0, and one of the run's nodes will be taken away."""
    return _notice is not None


def leave() -> None:
    """On rank 0, before the last report: let Ray Train register it even if the nodes are taken away meanwhile.

    If rank 0 stays, it no longer waits for the workers that do not (train/v2/_internal/execution: context.py, preemption.py).
    """
    from ray.train.v2._internal.execution.context import get_train_context

    get_train_context().preemption_context.preemption_info = _notice


def _nodes_of(group: "PlacementGroup") -> frozenset[str]:
    from ray.util import placement_group_table

    return frozenset(placement_group_table(group)["bundles_to_node_id"].values())


def _addresses(nodes: Iterable[str]) -> list[str]:
    import ray

    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in nodes)


def _named(addresses: list[str]) -> str:
    """The beginning of a clause about nodes."""
    return f"node {addresses[0]} was" if len(addresses) == 1 else f"nodes {', '.join(addresses)} were"


def lost_nodes(nodes: Iterable[str]) -> list[str]:
    """The addresses of those of these nodes that are lost, after their workers failed.

    Workers on a lost node fail at once, and the head notices up to half a minute later; so the nodes are asked, too.
    """
    import ray

    until = time.monotonic() + _GOING
    while True:
        try:
            table = {node["NodeID"]: node for node in ray.nodes()}
        except Exception:  # the head does not answer; raised, it would end the run
            return []
        lost = sorted(table[node]["NodeManagerAddress"] for node in nodes if node in table and not _lives(table[node]))
        if lost or time.monotonic() > until:
            return lost
        time.sleep(0.2)


def _lives(node: Mapping[str, Any]) -> bool:
    if not node["Alive"]:
        return False
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_REACH):
            return True
    except OSError:
        return False
