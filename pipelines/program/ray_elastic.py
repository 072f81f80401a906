"""The part of `ray_internals` about a range of workers: Ray Train's policy for it is replaced by one of ours."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.program.nodes import Bundle, Node

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

# Seconds until a run with a range of workers counts again how many fit, if those that it started are not placed: a node that had
# just been lost was counted, or another job was faster.
COUNT_AGAIN = 10.0


def free_resources(group: "PlacementGroup | None") -> list[Node]:
    """What is free on each live node, counting what `group` holds there (_private/state.py)."""
    import ray
    from ray._private.state import available_resources_per_node
    from ray.util import placement_group_table

    nodes = available_resources_per_node()
    table = {} if group is None else placement_group_table(group)
    if table.get("state") in ("CREATED", "RESCHEDULING"):
        for index, node in table["bundles_to_node_id"].items():
            for kind, amount in table["bundles"][index].items() if node in nodes else ():
                nodes[node][kind] = nodes[node].get(kind, 0) + amount
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    return [Node(resources, labels.get(node, {})) for node, resources in nodes.items()]


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
