"""Everything used of Ray that is not part of its public API: private names, files, resources, variables and message texts.

Only ray_elastic.py, ray_errors.py and ray_data.py, parts of this, use more of them (tests/test_architecture.py). Each item gives
its reason and its place in Ray 2.60, as a path below `ray/`. tests/test_ray_internals.py checks each against the installed
release, and says what has changed. To accept a new release: run that file, then the tests of cluster, placement, resuming and
sweeps.

Ray is not imported at the top: its variables have to be set first, and few programs need all of this.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.program.nodes import Bundle, Node
from pipelines.program.ray_elastic import COUNT_AGAIN, policy

if TYPE_CHECKING:
    import ray.train.torch
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler
    from ray.util.placement_group import PlacementGroup

# --- variables -----------------------------------------------------------------------------------------------------------------

# Ray reads most of them in processes that it starts, hence variables. Name: (value, the file that reads it). RAY_AUTH_MODE is not
# set: a local Ray makes a token, which its processes find; a job client has to be given one (docs/cluster.md).
VARIABLES = {
    # No usage report to the vendor, and no notice about it.
    "RAY_USAGE_STATS_ENABLED": ("0", "_common/usage/usage_constants.py"),
    # The train controller polls its workers this often: the default of 2 s delays metrics, checkpoints and the end of a run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": ("0.2", "train/v2/_internal/constants.py"),
    # Otherwise every line that a worker prints appears twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": ("0", "train/v2/_internal/constants.py"),
    # We show our own progress.
    "RAY_DATA_DISABLE_PROGRESS_BARS": ("1", "data/context.py"),
    "RAY_AIR_NEW_OUTPUT": ("0", "tune/experimental/output.py"),
    # Reader V2 packs small Parquet files into one or two tasks: no parallel decoding, and the first batch comes at the end.
    "RAY_DATA_USE_DATASOURCE_V2": ("0", "data/context.py"),
    # On a cloud, nodes take minutes to come up; the default of 60 s only fills the log with retries.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": ("600", "train/v2/_internal/constants.py"),
    # The defaults of 30 and 60 s are too short on a busy machine.
    "RAY_raylet_start_wait_time_s": ("60", "_raylet.so"),
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": ("300", "_private/ray_constants.py"),
    # Otherwise one notice a second about actor states, which need the dashboard.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": ("0", "train/constants.py"),
    # Trials run where the driver runs, so that relative paths mean the same; they log what the sweep's `loggers` name.
    "RAY_CHDIR_TO_TRIAL_DIR": ("0", "train/constants.py"),
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": ("1", "tune/utils/callback.py"),
    # Ctrl-C ends a sweep at once: to resume, it needs no state of Tune's.
    "TUNE_DISABLE_SIGINT_HANDLER": ("1", "tune/tune.py"),
    "TUNE_GLOBAL_CHECKPOINT_S": ("600", "tune/execution/tune_controller.py"),
    # A trial that fails before its first evaluation has no score.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": ("1", "tune/execution/tune_controller.py"),
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": ("0", "tune/execution/experiment_state.py"),
    # Keeps CUDA_VISIBLE_DEVICES as it is for tasks without GPUs, and silences the notice about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": ("0", "_private/accelerators/accelerator.py"),
    # Inside a job Ray rejects a variable that the job's own runtime environment also sets, even to an equal value. We send the
    # values of this process, so those of the job's submission hold.
    "RAY_OVERRIDE_JOB_RUNTIME_ENV": ("1", "_private/worker.py"),
    # Ray Train's controller does, and sets this in a runtime environment (`trainer`).
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": ("0", "_common/constants.py"),
    # Processes that wait for work are kept for a minute, not for a second: the next epoch's tasks would start them again.
    "RAY_idle_worker_killing_time_threshold_ms": ("60000", "_raylet.so"),
    # Ours takes its place (`watch_nodes` in ray_elastic.py), without a process for each group of workers.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": ("0", "train/v2/_internal/constants.py"),
}
_PENDING_TRIALS = "TUNE_MAX_PENDING_TRIALS_PG"  # tune/execution/tune_controller.py


def let_trials_wait(count: int) -> None:
    """Let this many trials wait for resources at once: for a searcher that is not Tune's own, Tune allows one."""
    os.environ[_PENDING_TRIALS] = str(count)


def empty_trial(trial: Any) -> None:
    """Drop what a trial that has ended holds of its settings and scores.

    Tune keeps every trial until the sweep ends, with its last result, statistics of each score, and all of it as text once more.
    """
    known = trial.run_metadata  # tune/trainable/metadata.py
    for values in (trial.evaluated_params, known.metric_analysis, known.metric_n_steps):
        values.clear()
    trial._Trial__unresolved_config = trial.config  # a second one, of which the first was copied
    known.last_result = {key: known.last_result[key] for key in ("done", "training_iteration") if key in known.last_result}
    trial.experiment_tag = trial.trial_id  # which lists the settings
    trial._default_result_or_future = None  # an object of its process, which Ray keeps with the call that made it
    trial.invalidate_json_state()


# --- nodes ---------------------------------------------------------------------------------------------------------------------

# The resource that every head node has, and no other (HEAD_NODE_RESOURCE_NAME in _common/constants.py).
HEAD_NODE = "node:__internal_head__"
# Variables of every process in which work runs: the job's id for which it was started, or this one for any job, and the number of
# the process of its node's daemon (core/src/ray/raylet/worker_pool.cc).
JOB_VARIABLE, NO_JOB, NODE_VARIABLE = "RAY_JOB_ID", "ffffffff", "RAY_RAYLET_PID"
NODE_GROUP = "ray.io/node-group"  # the label with the node's type
# What Ray's errors say, in lower case, about a local node that did not start in time: three have it, two without an exception
# class of their own (_private/node.py, _private/services.py).
NOT_UP_IN_TIME = "timed out"


@contextmanager
def small_node(logs: bool) -> Iterator[None]:
    """Inside the block, `ray.init` starts a node without what a single machine does not need; it has no arguments for that
    (`RayParams` in _private/parameter.py, `start_api_server` in _private/services.py, `Node` in _private/node.py).

    Its agent takes any free port for HTTP. By default it is 52365 alone: beside another Ray on the machine, each start would try
    for four seconds to get it, and go on without the service (dashboard/http_server_agent.py). No processes start that would look
    for nodes to add, that report usage, and, unless `logs`, that follow the workers' logs for a driver that prints them.
    """
    from ray._private import parameter, services

    params, api_server = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, dashboard_agent_listen_port=0, no_monitor=True, include_log_monitor=logs)
    services.start_api_server = lambda *_, **__: (None, None)  # as if it had not started, which Ray only logs
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, api_server


def can_grow() -> bool:
    """Whether the cluster has an autoscaler that may add nodes: who starts one, `ray up` or KubeRay, names the head's node type
    in its environment, which Ray makes a label. The autoscaler itself tells nobody what it could add (`get_cluster_config` in
    _private/state.py is always empty; autoscaler/_private/commands.py, _private/resource_and_label_spec.py).
    """
    import ray

    return any(node["Alive"] and HEAD_NODE in node["Resources"] and NODE_GROUP in node["Labels"] for node in ray.nodes())


def logs_folder() -> Path:
    """Folder of this session's logs, after `ray.init`; no public function returns it (`Node` in _private/node.py)."""
    import ray

    return Path(ray._private.worker._global_node.get_logs_dir_path())


class Store:
    """A store of values by `namespace` and key in the cluster's head (experimental/internal_kv.py): a named actor may be lost."""

    def __init__(self, namespace: str):
        self._space = namespace

    @property
    def ready(self) -> bool:
        """Whether this process is part of a cluster."""
        return _store()._internal_kv_initialized()

    def get(self, key: str) -> bytes | None:
        """The value; None if there is none."""
        return _store()._internal_kv_get(key, namespace=self._space)

    def put(self, key: str, value: bytes) -> None:
        """Set the value, replacing any other."""
        _store()._internal_kv_put(key, value, namespace=self._space)

    def has(self, key: str) -> bool:
        """Whether there is a value."""
        return bool(_store()._internal_kv_exists(key, namespace=self._space))

    def delete(self, key: str) -> None:
        """Delete the value, if there is one."""
        _store()._internal_kv_del(key, namespace=self._space)


def _store() -> Any:
    from ray.experimental import internal_kv

    return internal_kv


# --- placement groups ----------------------------------------------------------------------------------------------------------


def placement_group_of(group_id: str) -> "PlacementGroup":
    """A group of another process, from its id in hexadecimal: Ray's API finds groups by name, and ours have none (`_raylet`).

    Raises `ValueError` if this is not an id.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(group_id)))  # `from_hex` turns what is not an id into an empty one


def bundles_of(group: "PlacementGroup") -> list[tuple[Bundle, str | None]]:
    """A group's bundles, each with the id of its live node, or None; Ray's public table of groups has no label selectors, and
    after a loss it still names the lost node (_private/state.py, `Bundle` in core/generated/common_pb2).
    """
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    import ray  # isort: skip

    held = state._connect_and_get_accessor().get_placement_group_info(group.id)
    if held is None:
        return []
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    found = [
        (Bundle(dict(bundle.unit_resources), dict(bundle.label_selector)), bundle.node_id.hex())
        for bundle in PlacementGroupTableData.FromString(held).bundles
    ]
    return [(bundle, node if node in alive else None) for bundle, node in found]


def beside_workers(bundles: Sequence[Bundle], booked: Callable[[str], object]) -> Any:
    """A callback for Ray Train's `RunConfig`: a run's placement groups get these bundles after those of its workers.

    Ray Train reserves resources for workers only. Its controller creates their group with a class that is one of its attributes,
    which we replace in the controller's process before the first group is created (train/v2/_internal/execution: callback.py,
    controller/controller.py, worker_group/worker_group.py, worker_group/placement_group_handle.py). `booked` is called there
    with the id of each group, in hexadecimal, before its resources are reserved.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Beside(ControllerCallback):
        _local = "RAY_ADDRESS" not in os.environ

        def after_controller_start(self, train_run_context: Any) -> None:
            from ray.train.v2._internal.execution.controller import TrainController

            TrainController.worker_group_cls = _group_with(bundles, booked, self._local)

    return Beside()


def _group_with(bundles: Sequence[Bundle], booked: Callable[[str], object], local: bool) -> type:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
    from ray.util.placement_group import placement_group

    class Group(WorkerGroup):
        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
            count = worker_group_context.num_workers
            workers = [worker_group_context.resources_per_worker] * count
            labels = [*(worker_group_context.label_selector or [{}] * count), *(dict(bundle.labels) for bundle in bundles)]
            group = placement_group(
                workers + [dict(bundle.resources) for bundle in bundles],
                strategy=worker_group_context.placement_strategy,
                bundle_label_selector=labels if any(labels) else None,
            )
            booked(group.id.hex())
            if worker_group_context.num_workers > scaling_config.min_workers:
                self._worker_group_start_timeout_s = COUNT_AGAIN
            return DefaultPlacementGroupHandle(group)

        @staticmethod
        def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
            """None of Ray Train's on a local Ray; see `trainer`."""
            return {} if local else WorkerGroup._get_worker_runtime_env(custom_runtime_env)

    return Group


# --- Ray Train -----------------------------------------------------------------------------------------------------------------


def trainer(
    function: Callable[[dict[str, Any]], Any], fitting: Callable[[list[Node]], int], beside: Sequence[Bundle], **options: Any
) -> "ray.train.torch.TorchTrainer":
    """A `TorchTrainer` that leaves signals to the program, and starts no processes that our runs do not use.

    Ray Train's own handler of Ctrl-C would end the run at once, and no setting turns it off
    (train/v2/api/data_parallel_trainer.py). Two of its callbacks start a process for each run: one hands out datasets, of which
    we pass none; the other frees the resources of a run whose controller died, as `training.placement` does, and asks for that a
    service that a local Ray does not start (train/v2/_internal/callbacks: datasets.py, placement_group_callback.py).
    It hands on variables in a runtime environment, whose processes start Python twice (_private/workers/setup_worker.py), and
    none of which has been started before. A local Ray has this process's variables, and needs none.

    Args:
        fitting: how many workers fit on nodes with these free resources; for a range of workers.
        beside: bundles of a CPU each that are booked beside the workers, for which a cluster that grows is asked too.
    """
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """Do nothing."""

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            if self.scaling_config.elasticity_enabled:
                arguments["scaling_policy"] = policy(self.scaling_config, fitting, beside)
            if "RAY_ADDRESS" in os.environ:
                return super()._initialize_and_run_controller(**arguments)
            here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
            controller = ray.remote(num_cpus=0, label_selector=here)(TrainController).remote(**arguments)
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

        def _create_default_callbacks(self) -> list[Any]:
            unused = (DatasetsCallback, PlacementGroupCleanerCallback)
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)]

    return Trainer(function, **options)


def unreported() -> int:
    """In a worker: its calls of `ray.train.report` that have not reached the controller's queue yet, since a checkpoint that is
    uploaded in another thread holds them up. Ray's API waits for all of them, and only once they are registered
    (train/v2/_internal/execution/context.py).
    """
    from ray.train.v2._internal.execution.context import get_train_context

    context = get_train_context()
    return context.report_call_index - context.current_report_index


# Ray Train's list of a run's checkpoints, in the run's folder. Ray reads it when a run resumes and writes it in place, so it may
# be truncated; we read and repair it (train/v2/_internal/constants.py, execution/checkpoint/checkpoint_manager.py). Its keys:
SNAPSHOT = "checkpoint_manager_snapshot.json"
_RESULTS, _INDICES, _LATEST = "checkpoint_results", "checkpoint_report_indices", "latest_checkpoint_result"
_COUNT, _FOLDER = "current_report_index", "checkpoint_dir_name"
_PENDING = ("pending_training_results", "pending_validation_specs")


def is_snapshot(tree: Any) -> bool:
    """Whether this is such a list, complete and with at least one checkpoint."""
    try:
        names = [result[_FOLDER] for result in tree[_RESULTS]]
        return tree[_LATEST][_FOLDER] in names and len(tree[_INDICES]) == len(names) and tree[_COUNT] >= 0
    except (KeyError, TypeError):
        return False


def snapshot_checkpoints(tree: dict[str, Any]) -> list[str]:
    """The folder names in a list, including the one that was registered last."""
    return [result[_FOLDER] for result in (*tree[_RESULTS], tree[_LATEST])]


def snapshot_with(tree: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The list with only these of its checkpoints, the last being the newest: Ray rejects a list that names a missing one."""
    results = {result[_FOLDER]: result for result in (*tree[_RESULTS], tree[_LATEST])}
    indices = dict(zip([result[_FOLDER] for result in tree[_RESULTS]], tree[_INDICES], strict=True))
    left = [name for name in names if name in indices]
    changed = {_RESULTS: [results[name] for name in left], _INDICES: [indices[name] for name in left]}
    return tree | changed | {_LATEST: results[names[-1]]} | {name: [] for name in _PENDING}


# --- Ray Tune ------------------------------------------------------------------------------------------------------------------


def remind(scheduler: "TrialScheduler", name: str, results: Iterable[Mapping[str, Any]]) -> None:
    """Report to one of Tune's schedulers the results of a trial that ended before this process started.

    Schedulers learn from running trials only, and restore saved state only as a whole. So a stub of the trial, which has no
    function to run, reports again, without a controller. ASHA does not use the controller. The median rule would, and would
    ignore further results of a trial that it stops; so each result is reported as a final one, which it only records
    (tune/experiment/trial.py, tune/schedulers/async_hyperband.py, tune/schedulers/median_stopping_rule.py).
    """
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import MedianStoppingRule

    trial = Trial("ended", stub=True, trial_id=name)
    scheduler.on_trial_add(None, trial)
    tell = scheduler.on_trial_complete if isinstance(scheduler, MedianStoppingRule) else scheduler.on_trial_result
    for result in results:
        tell(None, trial, dict(result))


def drop_idle_actors(controller: Any) -> None:
    """End processes that Tune keeps for further trials, with what they hold: it would keep one even if none comes
    (tune/execution/tune_controller.py). `controller`: as Tune gives it to a scheduler."""
    controller._tune_controller._cleanup_cached_actors(force_all=True)


def failure_of(trial: "Trial") -> tuple[BaseException | None, int]:
    """A failed trial's error (None if there is none) and its number of failures: Tune gives a scheduler neither.

    The error is in a file that this process has just written. Tune's own method unpickles the copy of it in the sweep's storage,
    where it arrives later, and where others may write (tune/experiment/trial.py).
    """
    from ray import cloudpickle

    file = trial.pickled_error_file
    return cloudpickle.loads(Path(file).read_bytes()) if file else None, trial.run_metadata.num_failures
