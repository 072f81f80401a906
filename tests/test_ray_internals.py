"""Canaries: what raylign rests on in Ray and Ray does not promise (`pipelines.program.ray_internals`) is as it was in Ray 2.60.

All but the last test start no Ray. One that fails says what Ray has changed, and what of raylign rests on it.
"""

import ast
import asyncio
import dataclasses
import functools
import inspect
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest
import ray
import ray.cloudpickle
import ray.data
import ray.exceptions
import ray.train
from ray.core.generated.autoscaler_pb2 import AutoscalingState, GetClusterStatusReply
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal import exceptions as train_exceptions
from ray.train.v2._internal.execution import callback as train_callbacks
from ray.train.v2._internal.execution.checkpoint import checkpoint_manager
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport
from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupContext
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.util.placement_group import PlacementGroup

from pipelines.program import ray_data, ray_elastic, ray_errors
from pipelines.program import ray_internals as module
from pipelines.program.nodes import Bundle
from tests.patience import PATIENCE, wait_until
from tests.refusals import refused
from training.config import ResourceSettings
from training.resources import check_driver, current_cluster

import psutil  # isort: skip  comes with ray

RAY = Path(ray.__file__).parent


def holds(is_so: Any, changed: str, rests: str) -> None:
    """`changed`: what is no longer so; `rests`: what of raylign needs it."""
    assert is_so, f"Ray {ray.__version__}: {changed}; {rests} rests on it, see pipelines/program/ray_internals.py"


@functools.cache
def texts(file: str) -> list[str]:
    """All strings of a file of Ray's, also the constant parts of those that are put together."""
    tree = ast.parse((RAY / file).read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def names_used(owner: type) -> set[str]:
    """Attributes and globals that a class's own methods use."""

    def of(code: CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from of(constant)

    return {name for method in vars(owner).values() if hasattr(method, "__code__") for name in of(method.__code__)}


# --- variables, nodes ---


@pytest.mark.parametrize("name", module.VARIABLES)
def test_ray_reads_the_variable(name: str) -> None:
    _, file = module.VARIABLES[name]
    holds((RAY / file).exists(), f"there is no file {file}", f"the variable {name}")
    known = name.encode() in (RAY / file).read_bytes() if file.endswith(".so") else name in texts(file)
    holds(known, f"{file} does not name the variable {name} any more", "what its comment says")


def test_variables_mean_what_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose effect shows without starting Ray."""
    from ray.data import context
    from ray.tune.execution.tune_controller import _get_max_pending_trials
    from ray.tune.experimental.output import get_air_verbosity
    from ray.tune.progress_reporter import TrialProgressCallback
    from ray.tune.utils.callback import _create_default_callbacks

    if os.environ["RAY_DATA_USE_DATASOURCE_V2"] == "0":
        holds(context.DEFAULT_USE_DATASOURCE_V2 is False, "RAY_DATA_USE_DATASOURCE_V2=0 does not choose reader V1", "reading")
    holds(get_air_verbosity(0) is None, "RAY_AIR_NEW_OUTPUT=0 does not choose Tune's older output", "a sweep's progress")
    ours = type("Ours", (TrialProgressCallback,), {})()
    found = _create_default_callbacks([ours])
    holds(found == [ours], f"Tune adds callbacks beside ours ({found})", "a sweep's progress, and which loggers it has")
    monkeypatch.setenv(module._PENDING_TRIALS, "auto")
    module.let_trials_wait(7)
    holds(_get_max_pending_trials(SimpleNamespace()) == 7, f"{module._PENDING_TRIALS} does not count", "HyperBand")


def test_the_head_node_has_its_resource() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    holds(module.HEAD_NODE == HEAD_NODE_RESOURCE_NAME, f"the head's resource is {HEAD_NODE_RESOURCE_NAME}", "where trials wait")


def test_a_node_that_was_not_up_in_time_is_told_in_these_words() -> None:
    from ray._private import node, services

    for where in (node.Node.__init__, services.wait_for_node, services.get_node_with_retry):
        told = module.NOT_UP_IN_TIME in inspect.getsource(where).lower()
        holds(told, f"{where.__qualname__} does not say '{module.NOT_UP_IN_TIME}'", "starting a slow node again")


def test_a_local_node_starts_only_what_one_machine_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as `ray.init` comes before it starts anything."""
    from ray._private import node, services

    rests = "starting a local Ray in a second, beside another one too"

    class Stopped(Exception):  # noqa: N818 - no error
        pass

    def made(*, ray_params: Any, **_: Any) -> None:
        assert services.start_api_server() == (None, None)
        found.append(ray_params)
        raise Stopped

    found: list[Any] = []
    used = names_used(node.Node)
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token is made
    monkeypatch.setattr(node, "Node", made)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray._private.worker.global_worker, "mode", None)
    before = services.start_api_server
    for logs in (False, True):
        with pytest.raises(Stopped), module.small_node(logs):
            ray.init("local")
        parameters_of_node = found.pop()
        holds(parameters_of_node.dashboard_agent_listen_port == 0, "the agent's port is another parameter", rests)
        holds(parameters_of_node.no_monitor is True, "what adds nodes is another parameter", rests)
        holds(parameters_of_node.include_log_monitor is logs, "what follows logs is another parameter", rests)
    assert services.start_api_server is before
    holds({"no_monitor", "include_log_monitor", "start_api_server"} <= used, "a node starts otherwise", rests)
    port = inspect.signature(ray._private.parameter.RayParams).parameters["dashboard_agent_listen_port"].default
    holds(port, "the agent's port is not fixed any more", "our own port")


def test_ray_init_takes_sigterm_and_exits_with_its_number() -> None:
    """`cluster.start` asks for its number, and takes the signal again after it."""
    source = inspect.getsource(ray.init)
    holds("set_sigterm_handler" in source and "sys.exit(signum)" in source, "ray.init handles SIGTERM otherwise", "stopping")
    assert int(signal.SIGTERM) == 15


def test_the_heads_store_is_called_as_it_was() -> None:
    from ray.experimental import internal_kv

    for name in ("_internal_kv_initialized", "_internal_kv_get", "_internal_kv_put", "_internal_kv_exists", "_internal_kv_del"):
        holds(hasattr(internal_kv, name), f"internal_kv has no {name}", "asking a run to stop")
    holds(
        parameters(internal_kv._internal_kv_put)[:2] == ["key", "value"], "_internal_kv_put takes others", "asking a run to stop"
    )


def test_the_head_of_a_cluster_that_grows_has_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    rests = "waiting for nodes where there will be some"
    monkeypatch.setenv("RAY_NODE_TYPE_NAME", "head")
    labels = ResourceAndLabelSpec._get_default_labels(None)
    holds(labels.get(module.NODE_GROUP) == "head", f"the type of a node becomes the labels {labels}", rests)
    holds("RAY_NODE_TYPE_NAME" in texts("autoscaler/_private/commands.py"), "`ray up` does not tell the head its type", rests)
    head, worker = {"Alive": True, "Resources": {module.HEAD_NODE: 1.0}}, {"Alive": True, "Resources": {"CPU": 1.0}}
    for own, others, grows in ((labels, {}, True), ({}, labels, False), ({}, {}, False)):
        nodes = [head | {"Labels": own}, worker | {"Labels": others}, head | {"Labels": labels, "Alive": False}]
        monkeypatch.setattr(ray, "nodes", lambda nodes=nodes: nodes)
        assert module.can_grow() == grows


# --- placement groups ---


def test_a_group_is_found_by_its_id() -> None:
    from ray._raylet import PlacementGroupID
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    known = PlacementGroupID.from_random()
    group = module.placement_group_of(known.hex())
    holds(isinstance(group, PlacementGroup) and group.id == known, "an id makes another group", "giving back what a run booked")
    for wrong in ("", "xyz", known.hex()[:-2]):
        with pytest.raises(ValueError):
            module.placement_group_of(wrong)
    states = set(PlacementGroupTableData.PlacementGroupState.keys())
    holds(states >= {"PENDING", "RESCHEDULING", "REMOVED"}, f"a group's states are {states}", "saying what a run waits for")


def test_ray_trains_group_of_workers_is_made_by_our_class(monkeypatch: pytest.MonkeyPatch) -> None:
    rests = "booking the CPUs of reading tasks beside the workers"
    told: list[str] = []
    beside = [Bundle({"CPU": 1.0}, {"role": "data"}), Bundle({"CPU": 0.5})]
    callback = ray.cloudpickle.loads(ray.cloudpickle.dumps(module.beside_workers(beside, told.append)))
    holds(isinstance(callback, train_callbacks.RayTrainCallback), "a ControllerCallback is no RayTrainCallback", rests)
    holds(not isinstance(callback, ray.train.UserCallback), "a ControllerCallback is a UserCallback", rests)
    assert ray.train.RunConfig(name="run", storage_path="/nowhere", callbacks=[callback]).callbacks == [callback]
    hook = train_callbacks.ControllerCallback.after_controller_start
    holds(parameters(hook) == ["self", "train_run_context"], f"after_controller_start takes {parameters(hook)}", rests)

    used = "worker_group_cls" in vars(TrainController) and "worker_group_cls" in names_used(TrainController)
    holds(used, "the controller has no class of groups", rests)
    holds("_create_placement_group" in names_used(WorkerGroup), "a group books otherwise", rests)
    taken = parameters(WorkerGroup._create_placement_group)
    holds(taken == ["self", "scaling_config", "worker_group_context"], f"_create_placement_group takes {taken}", rests)
    fields = set(parameters(WorkerGroupContext))
    wanted = {"num_workers", "resources_per_worker", "placement_strategy", "label_selector"}
    holds(fields >= wanted, f"a WorkerGroupContext has no {wanted - fields}", rests)

    booked: list[tuple[list, str, list | None]] = []
    group = module.placement_group_of("ab" * 18)

    def placement_group(bundles: list, strategy: str, bundle_label_selector: list | None) -> PlacementGroup:
        booked.append((bundles, strategy, bundle_label_selector))
        return group

    monkeypatch.setattr(sys.modules["ray.util.placement_group"], "placement_group", placement_group)
    monkeypatch.setattr(TrainController, "worker_group_cls", WorkerGroup)
    ids: list[str] = []
    module.beside_workers(beside, ids.append).after_controller_start(None)
    made = TrainController.worker_group_cls
    holds(issubclass(made, WorkerGroup) and made is not WorkerGroup, "the controller's class of groups cannot be set", rests)
    context = SimpleNamespace(
        num_workers=2, resources_per_worker={"CPU": 2}, placement_strategy="PACK", label_selector=[{"role": "train"}] * 2
    )
    workers = object.__new__(made)
    workers._worker_group_start_timeout_s = 600.0
    handle = made._create_placement_group(workers, ray.train.ScalingConfig(num_workers=2), context)
    holds(handle.placement_group is group, "a handle hands on another group", rests)
    bundles, labels = [{"CPU": 2}, {"CPU": 2}, {"CPU": 1.0}, {"CPU": 0.5}], [{"role": "train"}] * 2 + [{"role": "data"}, {}]
    assert booked == [(bundles, "PACK", labels)], "Ray takes the first for its workers"
    context.label_selector = None
    made._create_placement_group(workers, ray.train.ScalingConfig(num_workers=2), context)
    assert booked[1] == (bundles, "PACK", [{}] * 2 + labels[2:])
    assert ids == ["ab" * 18] * 2

    rests = "workers of a local Ray that start Python once"
    given = parameters(WorkerGroup._get_worker_runtime_env) == ["custom_runtime_env"]
    holds(given and "_get_worker_runtime_env" in names_used(WorkerGroup), "workers get their variables otherwise", rests)
    assert made._get_worker_runtime_env(custom_runtime_env={})["env_vars"], "this process is told of a cluster"
    assert module._group_with(beside, ids.append, True)._get_worker_runtime_env(custom_runtime_env={}) == {}

    rests = "counting again where more workers than the least are not placed"
    patience = "_worker_group_start_timeout_s" in names_used(WorkerGroup)
    holds(patience, "a group waits for its placement otherwise", rests)
    assert workers._worker_group_start_timeout_s == 600.0, "a fixed number waits"
    for least, seconds in ((2, 600.0), (1, ray_elastic.COUNT_AGAIN)):
        made._create_placement_group(workers, ray.train.ScalingConfig(num_workers=(least, 3)), context)
        assert workers._worker_group_start_timeout_s == seconds


# --- Ray Train ---


def test_ray_train_registers_its_handler_where_ours_stands() -> None:
    rests = "ending with a checkpoint on Ctrl-C"
    trainer = module.trainer(lambda config: None, len, [], train_loop_config={})
    name = "_register_sigint_handler"
    owner = next((base for base in type(trainer).__mro__[1:] if name in vars(base)), None)
    assert owner is not None, f"Ray {ray.__version__}: no trainer has {name}; {rests} rests on it"
    holds(name in names_used(owner), f"{owner.__name__} does not call {name}", rests)
    before = signal.getsignal(signal.SIGINT)
    trainer._register_sigint_handler(None)
    assert signal.getsignal(signal.SIGINT) is before


def test_ray_trains_policy_for_a_range_of_workers_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts as many as fit, or the least; and adds workers once all have reported a checkpoint, at no other time."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
    from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState
    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

    rests = "a run whose number of workers follows its cluster"
    made: dict[str, Any] = {}
    name = "_initialize_and_run_controller"
    owner = next((base for base in TorchTrainer.__mro__ if name in vars(base)), None)
    assert owner is not None, f"Ray {ray.__version__}: no trainer has {name}; {rests} rests on it"
    holds(name in names_used(owner), f"{owner.__name__} does not call {name}", rests)
    monkeypatch.setattr(owner, name, lambda self, **arguments: made.update(arguments))
    room = [5]
    for number in (2, (2, 4)):
        scaling = ray.train.ScalingConfig(num_workers=number)
        beside = [Bundle({"CPU": 1.0})] * 2
        trainer = module.trainer(lambda config: None, lambda nodes: room[0], beside, train_loop_config={}, scaling_config=scaling)
        getattr(trainer, name)(scaling_policy="Ray's")
        assert (made["scaling_policy"] == "Ray's") == isinstance(number, int)
    names = ("make_decision_for_non_running_worker_group", "make_decision_for_running_worker_group", "_get_resize_decision")
    holds(all(hasattr(ElasticScalingPolicy, n) for n in names), "a policy decides by other methods", rests)
    holds("_maybe_send_resource_request" in names_used(ElasticScalingPolicy), "a policy asks for nodes otherwise", rests)
    told = "placement_group_handle" in parameters(WorkerGroupState) and "worker_statuses" in parameters(WorkerGroupPollStatus)
    holds(told, "a group tells its state otherwise", rests)

    counted: list[Any] = []
    monkeypatch.setattr(ray_elastic, "free_resources", lambda group: counted.append(group) or [])
    policy = made["scaling_policy"]
    policy._maybe_send_resource_request = lambda: None
    for free, started in ((0, 2), (1, 2), (3, 3)):
        room[0] = free
        decision = policy.make_decision_for_non_running_worker_group()
        assert isinstance(decision, ResizeDecision) and decision.num_workers == started
    assert counted == [None] * 3, "nothing of ours runs yet"
    with monkeypatch.context() as patch:
        patch.setattr(ray_elastic, "free_resources", lambda group: 1 // 0)
        assert policy.make_decision_for_non_running_worker_group().num_workers == 2, "a head that does not answer ends no run"

    handle, saved = SimpleNamespace(placement_group="ours"), _TrainingReport(ray.train.Checkpoint("/nowhere"), {}, False)

    def poll(*reports: str, workers: int = 3, ended: int | None = None) -> int | None:
        """The number of workers decided on, if any, after each worker's report: none, plain or a checkpoint."""
        plain = _TrainingReport(None, {}, False)
        given = [{"-": None, "p": plain, "c": saved}[report] for report in reports]
        statuses = {rank: WorkerStatus(rank != ended, training_report=report) for rank, report in enumerate(given)}
        state = SimpleNamespace(placement_group_handle=handle, num_workers=workers)
        decision = policy.make_decision_for_running_worker_group(state, WorkerGroupPollStatus(statuses))
        assert isinstance(decision, NoopDecision | ResizeDecision)
        return decision.num_workers if isinstance(decision, ResizeDecision) else None

    room[0] = 4
    assert poll("-", "-", "-") is None and poll("p", "p", "p") is None and poll("-", "-", "-") is None, "steps would be lost"
    assert poll("c", "-", "p") is None and poll("-", "-", "-") is None, "one of them has not reported it yet"
    assert poll("-", "p", "-") is None and poll("-", "-", "-") == 4
    assert poll("-", "-", "-") is None
    assert counted == [None] * 3 + ["ours"], "what its own workers hold is room too"
    assert poll("c", "p", "p") is None and poll("-", "-", "-", ended=1) is None, "it was the last one"
    for free in (3, 2):  # none is taken away
        room[0] = free
        assert poll("c", "p", "p") is None and poll("-", "-", "-") is None
    assert poll("c", "p", "p") is None
    handle = SimpleNamespace(placement_group="ours, the second")
    room[0] = 4
    assert poll("-", "-", workers=2) is None, "that checkpoint was of others"
    assert poll("p", "-", workers=2) is None and poll("c", "p", workers=2) is None and poll("-", "p", workers=2) is None
    assert poll("-", "-", workers=2) == 4
    room[0] = 3
    assert policy.make_decision_for_non_running_worker_group().num_workers == 3
    assert counted[-1] == "ours, the second", "its workers have failed, and still hold what they held"
    ray.cloudpickle.loads(ray.cloudpickle.dumps(made["scaling_policy"]))  # as it is sent to the controller


@pytest.mark.parametrize("beside", [0, 2])
def test_a_cluster_that_grows_is_asked_for_the_most_workers_and_what_is_beside_them(
    monkeypatch: pytest.MonkeyPatch, beside: int
) -> None:
    from ray.train.v2._internal.execution.scaling_policy import autoscaling_coordinator_client as client

    asked: dict[str, list[tuple[dict[str, float], dict[str, str]]]] = {}

    def ask(requester_id: str, resources: list, label_selectors: list | None, **_: Any) -> None:
        asked[requester_id] = list(zip(resources, label_selectors or [{}] * len(resources), strict=True))

    class Coordinator:
        """In the place of the actor that asks the autoscaler."""

        request_resources = SimpleNamespace(remote=ask)
        cancel_request = SimpleNamespace(remote=lambda requester_id: asked.pop(requester_id))

    monkeypatch.setattr(client, "get_or_create_autoscaling_coordinator", Coordinator)
    monkeypatch.setattr(ray, "get", lambda reference, timeout: reference)
    train, data = {"role": "train"}, {"role": "data"}
    scaling = ray.train.ScalingConfig(
        num_workers=(1, 3), use_gpu=True, resources_per_worker={"CPU": 4, "GPU": 1}, label_selector=train
    )
    policy = ray_elastic.policy(scaling, len, [Bundle({"CPU": 1.0}, data)] * beside)
    policy.after_controller_start(SimpleNamespace(run_id="run"))
    policy._maybe_send_resource_request()
    bundles = [bundle for one in asked.values() for bundle in one]
    assert bundles == [({"CPU": 4, "GPU": 1}, train)] * 3 + [({"CPU": 1}, data)] * beside
    asyncio.run(policy.before_controller_shutdown())
    assert asked == {}


class Crew:
    """In the place of a group of workers: its polls are given, and reports go where Ray Train's own go."""

    placed = 9  # how many workers there is really room for

    def __init__(self, number: int, callbacks: list[Any]):
        self.workers = [SimpleNamespace() for _ in range(number)]
        self.polls: list[Any] = []
        self._handle = SimpleNamespace(placement_group=f"of {number}")
        self._handlers = [callback for callback in callbacks if isinstance(callback, train_callbacks.WorkerGroupCallback)]
        for handler in self._handlers:
            handler.after_worker_group_start(self)

    @classmethod
    def create(cls, train_run_context: Any, worker_group_context: Any, callbacks: list[Any]) -> "Crew":
        number = worker_group_context.num_workers
        if number > cls.placed:
            raise train_exceptions.WorkerGroupStartupTimeoutError(number)
        return cls(number, callbacks)

    def __len__(self) -> int:
        return len(self.workers)

    def get_workers(self) -> list[Any]:
        return self.workers

    def get_worker_group_state(self) -> Any:
        from ray.train.v2._internal.execution.worker_group import WorkerGroupState

        return WorkerGroupState(0.0, self._handle, self.workers, None)  # type: ignore[arg-type]

    def poll_status(self, timeout: float) -> Any:
        from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus

        status = WorkerGroupPollStatus(dict(enumerate(self.polls.pop(0))))
        for handler in self._handlers:
            handler.after_worker_group_poll_status(status)
        return status

    def get_latest_poll_status(self) -> None:
        return None

    def shutdown(self) -> None:
        self.workers = []


def controller_of(patch: pytest.MonkeyPatch, folder: Path, scaling: Any, policy: Any, *callbacks: Any) -> TrainController:
    """Ray's own controller in this process, of a run whose workers are a `Crew`."""
    from ray.train.backend import BackendConfig
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.failure_handling import create_failure_policy

    patch.setenv(train_constants.ENABLE_PREEMPTION_WATCHER_ENV_VAR, "0")
    patch.setenv(train_constants.ENABLE_CONTROLLER_STRUCTURED_LOGGING_ENV_VAR, "0")
    patch.setenv(train_constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR, "0")
    patch.setattr(TrainController, "worker_group_cls", Crew)
    config = ray.train.RunConfig(name="run", storage_path=str(folder), failure_config=ray.train.FailureConfig(max_failures=-1))
    context = TrainRunContext(config, None, scaling, BackendConfig(), ray.train.DataConfig())
    failures = create_failure_policy(config.failure_config)
    return TrainController(None, context, policy, failures, list(callbacks))  # type: ignore[arg-type]


def test_ray_trains_controller_follows_our_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own controller, with workers that are none: from one to three after a checkpoint, to two after a loss, to the end."""
    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

    rests = "a run whose number of workers follows its cluster"
    monkeypatch.setattr(ray_elastic, "free_resources", lambda group: [])
    room = [0]
    scaling = ray.train.ScalingConfig(num_workers=(1, 3))
    policy = ray_elastic.policy(scaling, lambda nodes: room[0], [Bundle({"CPU": 1.0})] * 2)
    policy.after_controller_start = lambda context: None
    policy._maybe_send_resource_request = lambda: None
    controller = controller_of(monkeypatch, tmp_path, scaling, policy)

    def turn(*statuses: WorkerStatus, times: int = 1) -> tuple[int, str]:
        """Workers and state after the controller has polled these, and has gone round so often."""
        if statuses:
            controller.get_worker_group().polls.append(statuses)
        for _ in range(times):
            asyncio.run(controller._run_control_loop_iteration())
        group = controller.get_worker_group()
        return 0 if group is None else len(group), type(controller.get_state()).__name__

    def saved(folder: str) -> list[WorkerStatus]:
        (tmp_path / "run" / folder).mkdir(parents=True)
        place = controller._storage_context
        checkpoint = ray.train.Checkpoint(place.build_checkpoint_path_from_name(folder), place.storage_filesystem)
        others = len(controller.get_worker_group()) - 1
        reports = [_TrainingReport(checkpoint, {}, False), *[_TrainingReport(None, {}, False)] * others]
        return [WorkerStatus(True, training_report=report) for report in reports]

    runs = WorkerStatus(True)
    holds(turn(times=2) == (1, "RunningState"), "a run does not start with the least number of workers", rests)
    room[0] = 3
    assert turn(runs) == (1, "RunningState")
    assert turn(*saved("one")) == (1, "RunningState")
    newest = controller._checkpoint_manager.latest_checkpoint_result
    holds(newest is not None and newest.checkpoint.path.endswith("one"), "a reported checkpoint is registered later", rests)
    holds(turn(runs, times=3) == (3, "RunningState"), "a resize takes another course", rests)
    monkeypatch.setattr(Crew, "placed", 2)
    lost = WorkerStatus(False, error=train_exceptions.WorkerHealthCheckFailedError("lost", ray.exceptions.RayActorError()))
    assert turn(*saved("two")) == (3, "RunningState")
    # The node that was lost is counted at first.
    holds(turn(runs, runs, lost, times=3)[1] == "ReschedulingState", "workers that are not placed are given up", rests)
    room[0] = 2
    holds(turn(times=2) == (2, "RunningState"), "a restart takes another course", rests)
    ended = WorkerStatus(False, return_value="ended")
    assert turn(runs, ended)[1] == "RunningState"
    assert turn(ended, ended)[1] == "ShuttingDownState"


def controller_of_two(patch: pytest.MonkeyPatch, folder: Path, watch: Any) -> TrainController:
    """Of a run with two workers, on nodes "node of 2"."""
    from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy

    patch.setattr(ray_elastic, "_nodes_of", lambda group: frozenset({f"node {group}"}))
    scaling = ray.train.ScalingConfig(num_workers=2)
    policy = create_scaling_policy(scaling)
    policy._maybe_send_resource_request = policy._cancel_resource_request = lambda: None  # type: ignore[attr-defined]
    policy.after_controller_start = lambda context: None
    return controller_of(patch, folder, scaling, policy, watch)


def test_ray_trains_controller_tells_of_each_restart_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own controller, with workers that are none: a lost node, a failure, and one that is not worth a restart."""
    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

    rests = "what a restart costs"
    told: list[tuple[Any, ...]] = []

    def restarting(kind: str, cause: str | None, errors: Any) -> None:
        told.append((kind, cause, dict(errors)))
        if any(isinstance(error, ValueError) for error in errors.values()):
            raise KeyError("enough")

    lost: list[str] = []
    monkeypatch.setattr(ray_elastic, "draining_nodes", dict)
    monkeypatch.setattr(ray_elastic, "lost_nodes", lambda nodes: [f"{of}'s" for of in nodes if of in lost])
    watch = ray.cloudpickle.loads(ray.cloudpickle.dumps(ray_elastic.watch_nodes(print)))  # as it is sent to the controller
    assert isinstance(watch, train_callbacks.ControllerCallback | train_callbacks.WorkerGroupCallback)
    controller = controller_of_two(monkeypatch, tmp_path, ray_elastic.watch_nodes(restarting))
    died = train_exceptions.WorkerHealthCheckFailedError("lost", ray.exceptions.RayActorError())

    def fail(error: Exception) -> str:
        """The state after one of two workers has failed."""
        for _ in range(2):
            asyncio.run(controller._run_control_loop_iteration())
        assert type(controller.get_state()).__name__ == "RunningState" and not told
        controller.get_worker_group().polls.append((WorkerStatus(True), WorkerStatus(False, error=error)))
        asyncio.run(controller._run_control_loop_iteration())
        return type(controller.get_state()).__name__

    lost.append("node of 2")
    holds(fail(died) == "RestartingState", "a failure does not restart the workers", rests)
    holds(told == [("lost node", "node node of 2's was lost", {1: died})], f"of a lost node is told {told}", rests)
    told.clear()
    lost.clear()
    assert fail(died) == "RestartingState" and told == [("failure", None, {1: died})]
    told.clear()
    holds(fail(ValueError("it")) == "ShuttingDownState", "what is raised before a restart does not end the run", rests)
    asyncio.run(controller._run_control_loop_iteration())
    error = controller.get_training_failed_error()
    assert isinstance(error, ControllerError) and isinstance(error.controller_failure, KeyError)


def test_a_notice_reaches_rank_0_and_then_ray_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray's own controller, with workers that are none: it learns of it from rank 0, and starts them again once that has left."""
    from ray.train.v2._internal.execution import context as train_context
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker, Worker
    from ray.train.v2.api.preemption import PreemptionInfo

    rests = "a checkpoint before a node is taken away"
    fields = {field.name for field in dataclasses.fields(PreemptionInfo)}
    holds(fields == {"deadline_ms", "preempted_node_to_ranks"}, f"a notice has {fields}", rests)
    holds(hasattr(Worker, "execute_async"), "a worker is told otherwise", rests)
    draining, told = dict[str, int](), list[tuple[Any, ...]]()
    monkeypatch.setattr(ray_elastic, "draining_nodes", lambda: draining)
    monkeypatch.setattr(ray_elastic, "_addresses", lambda nodes: [f"{of}'s" for of in nodes])
    controller = controller_of_two(monkeypatch, tmp_path, ray_elastic.watch_nodes(lambda *restart: told.append(restart)))

    def turn(*statuses: WorkerStatus) -> str:
        if statuses:
            controller.get_worker_group().polls.append(statuses)  # type: ignore[union-attr]
        asyncio.run(controller._run_control_loop_iteration())
        return type(controller.get_state()).__name__

    runs = WorkerStatus(True)
    assert [turn(), turn()][-1] == "RunningState"
    for rank, worker in enumerate(controller.get_worker_group().get_workers()):  # type: ignore[union-attr]
        worker.distributed_context = SimpleNamespace(world_rank=rank)
        worker.metadata = SimpleNamespace(node_id=f"node of {rank + 1}")
        worker.execute_async = lambda function, info, rank=rank: told.append((rank, function, info))
    draining |= {"another node": 5, "node of 2": 7}
    assert turn(runs, runs) == "RunningState"
    holds(turn(runs, runs) == "RunningState", "the controller knows of a notice otherwise", rests)
    info = PreemptionInfo(7, {"node of 2": [1]})
    assert told == [(0, ray_elastic._receive, info)], "once, and of the run's own nodes"
    told.clear()

    place = PreemptionContext()
    monkeypatch.setattr(train_context, "_train_context", SimpleNamespace(preemption_context=place))
    monkeypatch.setattr(ray_elastic, "_notice", None)
    assert not ray_elastic.noticed()
    RayTrainWorker.execute(None, ray_elastic._receive, info)  # type: ignore[arg-type]
    assert ray_elastic.noticed()
    ray_elastic.leave()
    holds(place.preemption_info == info, "a worker keeps a notice elsewhere", rests)
    holds("preemption_context" in names_used(RayTrainWorker), "a worker tells of a notice otherwise", rests)

    state = turn(WorkerStatus(True, preemption_info=info), runs)
    holds(state == "PreemptingState", "a notice takes another course", rests)
    state = turn(WorkerStatus(False, error=OSError("left")), WorkerStatus(False))
    holds(state == "RestartingState", "workers that have left are not started again", rests)
    ((kind, cause, errors),) = told
    assert (kind, cause, list(errors)) == ("notice", "node node of 2's was about to be taken away", [0])


def test_a_run_starts_no_processes_that_it_does_not_use() -> None:
    """Ray Train would start them, and needs neither: there are no datasets, and `training.placement` frees what a run holds."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    rests = "a run without two processes"
    options: dict[str, Any] = {"train_loop_config": {}, "scaling_config": ray.train.ScalingConfig(num_workers=1)}
    whole, ours = (
        {type(callback).__name__ for callback in made._create_default_callbacks()}
        for made in (TorchTrainer(lambda config: None, **options), module.trainer(lambda config: None, len, 0, **options))
    )
    holds(whole - ours == {"DatasetsCallback", "PlacementGroupCleanerCallback"}, f"without ours it has {whole - ours}", rests)
    holds(ours < whole and "BackendSetupCallback" in ours, f"with ours it has {ours - whole}", rests)
    provider = inspect.signature(RayTrainWorker.init_train_context).parameters["dataset_shard_provider"]
    holds(provider.default is None, "a worker needs what hands out datasets", rests)


SNAPSHOT_FIELDS = {
    "ray_version",
    "checkpoint_results",
    "checkpoint_report_indices",
    "latest_checkpoint_result",
    "pending_training_results",
    "pending_validation_specs",
    "current_report_index",
    "validated_checkpoint_dir_names",
    "timed_out_validation_checkpoint_dir_names",
    "failed_validation_checkpoint_dir_names",
}


def test_a_worker_knows_which_of_its_reports_wait() -> None:
    from ray.train.v2._internal.execution.context import TrainContext

    counts = names_used(TrainContext)
    is_so = {"report_call_index", "current_report_index"} <= {*parameters(TrainContext)} & {*counts}
    holds(is_so, "reports are counted otherwise", "saving checkpoints while training goes on (tests/training/test_saver.py)")


def test_ray_trains_controller_is_on_the_drivers_node() -> None:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    started = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    holds("ray.remote(" in started and "label_selector=" in started, "the controller is started otherwise", "our start of it")
    calls = ("controller_actor_cls.remote(**controller_init_kwargs)", "controller.run.remote()", "controller.get_result.remote()")
    holds(all(call in started for call in calls), "the controller is called otherwise", "our start of it")
    is_so = "ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()" in started
    holds(is_so, "the controller is not bound to the driver's node", "training/run_store.py, where both use one working copy,")


def test_ray_trains_list_of_checkpoints_is_read_and_mended(tmp_path: Path) -> None:
    """Written by Ray, read and changed by us, and read by Ray again."""
    rests = "resuming a run"
    name = train_constants.CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    holds(name == module.SNAPSHOT, f"the list is called {name}", rests)
    place = StorageContext(storage_path=str(tmp_path), experiment_dir_name="run")
    kept = ray.train.CheckpointConfig(num_to_keep=3)
    names = [f"checkpoint_{step:08d}" for step in (20, 40, 60)]

    async def register() -> None:
        manager = checkpoint_manager.CheckpointManager(kept, place)
        for step, folder in enumerate(names):
            (tmp_path / "run" / folder).mkdir(parents=True)
            checkpoint = ray.train.Checkpoint(place.build_checkpoint_path_from_name(folder), place.storage_filesystem)
            manager.register_checkpoint(_TrainingReport(checkpoint, {"step": step}, False))

    asyncio.run(register())
    tree = json.loads((tmp_path / "run" / module.SNAPSHOT).read_text())
    changed = set(tree) ^ SNAPSHOT_FIELDS
    holds(not changed, f"the list has other fields ({changed}), and may not be read where another release wrote it", rests)
    holds(module.is_snapshot(tree), "the list is another", rests)
    assert set(module.snapshot_checkpoints(tree)) == set(names)
    for without in ("checkpoint_results", "checkpoint_report_indices", "latest_checkpoint_result", "current_report_index"):
        assert not module.is_snapshot({key: value for key, value in tree.items() if key != without})

    (tmp_path / "run" / names[-1]).rmdir()
    (tmp_path / "run" / module.SNAPSHOT).write_text(json.dumps(module.snapshot_with(tree, names[:2])))
    manager = checkpoint_manager.CheckpointManager(kept, place)
    found = [Path(result.checkpoint.path).name for result in manager.best_checkpoint_results]
    newest = manager.latest_checkpoint_result
    holds(newest is not None and Path(newest.checkpoint.path).name == names[1], "Ray resumes from another checkpoint", rests)
    holds(found == names[:2], f"Ray reads {found} in a list that we mended", rests)


# --- Ray Tune ---


def decided(scheduler: TrialScheduler, score: float) -> str:
    """What a scheduler decides of a trial that reports this score after its first epoch."""
    trial = Trial("new", stub=True, trial_id=f"new-{score}")
    controller = SimpleNamespace(get_live_trials=list)
    scheduler.on_trial_add(controller, trial)
    return scheduler.on_trial_result(controller, trial, {"epoch": 1, "score": score})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_that_is_reminded_stops_what_is_worse(name: str) -> None:
    common: dict[str, Any] = {"time_attr": "epoch", "metric": "score", "mode": "max", "grace_period": 1}

    def build() -> TrialScheduler:
        if name == "asha":
            return ASHAScheduler(**common, max_t=9, reduction_factor=2)
        return MedianStoppingRule(**common, min_samples_required=2)

    # The later ones are worse, so that the rule would have stopped them too: what they reported after that counts all the same.
    curves = {f"ended-{i}": [{"epoch": e, "score": 20.0 - i + e} for e in (1, 2, 3)] for i in range(5)}
    reminded = build()
    for trial, results in curves.items():
        module.remind(reminded, trial, results)
    rests = "a sweep that resumes"
    alone = decided(build(), 1.0)
    holds(alone == TrialScheduler.CONTINUE, f"a scheduler decides {alone} of a trial that nothing is compared with", rests)
    holds(decided(reminded, 1.0) == TrialScheduler.STOP, "a stand-in's results count for nothing", rests)
    holds(decided(reminded, 30.0) == TrialScheduler.CONTINUE, "the best is stopped", rests)


def test_a_trials_death_is_told(tmp_path: Path) -> None:
    trial = Trial("dead", stub=True, trial_id="dead")
    trial.storage = SimpleNamespace(trial_driver_staging_path=str(tmp_path))
    assert module.failure_of(trial) == (None, 0)
    for reason in ("yes", "no"):
        trial.handle_error(ray.exceptions.RayActorError("a", reason))
    error, times = module.failure_of(trial)
    told = times == 2 and "no" in str(error) and "yes" not in str(error)
    holds(told, f"of a trial that died twice Tune tells {error!r}, {times}", "a sweep's reasons")


def test_a_trial_that_has_ended_holds_no_settings_or_scores() -> None:
    given = {"name": "kept", "tree": "dropped"}
    trial = Trial("report", stub=True, config=given, evaluated_params={"a": "dropped"}, experiment_tag="dropped")
    trial.resolve_config_placeholders({})
    result = {"dropped": 1.0, "done": True, "training_iteration": 3, "config": {"name": "dropped"}}
    trial.update_last_result(result)
    trial._default_result_or_future = "dropped"

    def holds_now() -> str:
        return f"{trial.get_json_state()} {vars(trial)}"

    held = holds_now()
    trial.config = {"name": trial.config["name"]}  # as the searcher does
    module.empty_trial(trial)
    left = holds_now()
    rests = "a sweep's memory"
    holds("dropped" in held and "dropped" not in left, "a trial holds its settings or scores elsewhere", rests)
    holds(
        trial.last_result["done"] and trial.last_result["training_iteration"] == 3,
        f"its last result is {trial.last_result}",
        rests,
    )


# --- Ray Data ---


def test_tune_keeps_idle_processes_until_they_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the last one, which holds its resources as long as the sweep runs; schedulers get a wrapper of the controller."""
    from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
    from ray.tune.utils.object_cache import _ObjectCache

    dropped: list[str] = []
    controller = TuneController.__new__(TuneController)
    controller._actor_cache, controller._staged_trials = _ObjectCache(), set()
    controller._search_alg = SimpleNamespace(is_finished=lambda: False)
    monkeypatch.setattr(TuneController, "_remove_actor", lambda self, tracked_actor: dropped.append(tracked_actor.name))
    idle = SimpleNamespace(name="idle", set_on_stop=lambda _: None, set_on_error=lambda _: None)
    assert controller._actor_cache.cache_object("cpu", idle)
    controller._cleanup_cached_actors()
    holds(dropped == [], "Tune drops an idle process by itself: drop_idle_actors is not needed any more", "a sweep's fair share")
    assert TrialRunnerWrapper.__name__ in TuneController._wrapped.__code__.co_names
    module.drop_idle_actors(TrialRunnerWrapper(controller, None))
    holds(dropped == ["idle"], "an idle process stays", "a sweep's fair share")


def test_tasks_still_take_options_without_a_name() -> None:
    """Where this fails, `max_retries` and `scheduling_strategy` of dataset.stream, prepare and features need another way."""
    from ray._common.ray_option_utils import actor_options, task_options

    rests = "retries, and placing tasks among what was booked"
    kinds = {parameter.kind for parameter in inspect.signature(ray.data.Dataset.map_batches).parameters.values()}
    holds(inspect.Parameter.VAR_KEYWORD in kinds, "map_batches takes no options that it does not name", rests)
    told = any(text.startswith(ray_data.OPTIONS_WARNING) for text in texts("data/dataset.py"))
    holds(told, "the warning about such options has other words, or is gone", "silencing it")
    holds({"max_retries", "scheduling_strategy"} <= set(task_options), "tasks have other options", rests)
    holds({"max_restarts", "max_task_retries"} <= set(actor_options), "actors have other options", rests)


def test_ray_datas_loop_rests_between_its_steps(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls back at each step; steps that follow at once are kept apart, and one that took its time is not delayed."""
    steps: list[int] = []

    class Counted(ray_data.paced()):
        def on_execution_step(self, executor: Any) -> None:
            steps.append(1)
            super().on_execution_step(executor)

    context = ray.data.DataContext.get_current().copy()
    context.custom_execution_callback_classes = [Counted]
    with ray.data.DataContext.current(context):
        ray.data.range(2).map_batches(lambda batch: batch).take_all()
    holds(steps, "its executor does not call back at each step", "not spinning while batches wait")

    now, rests = [100.0], []
    monkeypatch.setattr(ray_data, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=rests.append))
    loop = ray_data.paced()()
    for moment in (100.0, 100.005, 100.2):
        now[0] = moment
        loop.on_execution_step(None)
    assert rests == pytest.approx([0.0, 0.015, 0.0])


def test_ray_datas_arrow_types_are_known_and_their_parameters_are_json() -> None:
    from ray.data._internal.object_extensions.arrow import ARROW_PYTHON_OBJECT_EXTENSION_NAME
    from ray.data._internal.tensor_extensions import arrow

    rests = "which tables may be opened (docs/security.md)"
    found = {text for text in texts("data/_internal/tensor_extensions/arrow.py") if text.startswith("ray.data.arrow")}
    holds(found == ray_data.TENSOR_TYPES, f"the tensor types are {sorted(found)}", rests)
    holds(ARROW_PYTHON_OBJECT_EXTENSION_NAME not in found, "pickles have a tensor's name", rests)
    types = [
        arrow.ArrowTensorType((2, 3), pa.int64()),
        arrow.ArrowTensorTypeV2((2, 3), pa.int64()),
        arrow.ArrowVariableShapedTensorType(pa.int64(), 2),
    ]
    assert {kind.extension_name for kind in types} == ray_data.TENSOR_TYPES
    for kind in types:
        assert json.loads(kind.__arrow_ext_serialize__()) in ([2, 3], 2), "JSON, no pickle"


# --- errors ---


def test_rays_wrappers_hold_what_they_wrap() -> None:
    cause = ValueError("inside")
    wrappers = [
        train_exceptions.UserExceptionWithTraceback(cause, "Traceback"),
        train_exceptions.WorkerHealthCheckFailedError("text", cause),
        ControllerError(cause),
        ray.exceptions.RayTaskError("f", "Traceback", cause, "ray::f", 1, "10.0.0.1"),
    ]
    for wrapper in wrappers:
        holds(ray_errors.inside(wrapper) is cause, f"{type(wrapper).__name__} keeps what it wraps elsewhere", "an error's cause")
        holds(ray_errors.of_ray(wrapper), f"{type(wrapper).__name__} is of no module of Ray", "whether a run starts again")
    holds(ray_errors.inside(WorkerGroupError("text", {1: cause})) == {1: cause}, "WorkerGroupError has another field", "causes")
    assert ray_errors.inside(cause) is None and not ray_errors.of_ray(cause)


def test_deaths_have_the_names_and_words_that_they_had() -> None:
    rests = "telling what a process died of"
    for name in ray_errors._DEATHS:
        found = getattr(ray.exceptions, name, None)
        holds(found and issubclass(found, ray.exceptions.RayError), f"ray.exceptions has no error {name}", rests)
        assert ray_errors.is_death(found.__new__(found)) and not ray_errors.is_death(type(name, (Exception,), {})())
    raylet, head = ((RAY / "core/src/ray" / path).read_bytes() for path in ("raylet/raylet", "gcs/gcs_server"))
    for words, pattern, program in (
        (b"killed due to the node running low on memory", ray_errors.LOW_MEMORY, raylet),
        (b"The actor died because its node has died", ray_errors.NODE_LOST, head),
        (b"the actor's node was terminated", ray_errors.NODE_LOST, head),
        (b"its owner has died", ray_errors.OWNER_LOST, head),
    ):
        holds(words in program, f"Ray's programs do not say '{words.decode()}' any more", rests)
        assert pattern.search(words.decode())
    gone = train_exceptions.BroadcastCollectiveTimeoutError(1.0, [1], 2.0)
    named = type(gone).__name__ == ray_errors.BARRIER_BROKEN and ray_errors.BARRIER_TEXT in str(gone)
    holds(named, "Ray Train's barrier breaks in other words", "whom a lost worker is blamed on")


def test_an_actor_whose_init_raised_is_told_from_one_that_died() -> None:
    raised = ray.exceptions.RayTaskError("f", "Traceback\nValueError: no", ValueError("no"), "ray::f", 1, "10.0.0.1")
    rests = "saying that a process could not be set up"
    holds(ray_errors.failed_at_start(ray.exceptions.ActorDiedError(raised)), "an actor's failed start is not marked", rests)
    assert not ray_errors.failed_at_start(ray.exceptions.RayActorError("a", "killed"))


# --- with Ray ---


def test_of_a_cluster_that_runs(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a running Ray shows."""
    folder = module.logs_folder()
    holds(folder.is_dir() and any(folder.glob("raylet*")), f"{folder} is not where the logs are", "keeping the terminal quiet")

    store = module.Store("raylign-canary")
    rests = "asking a run to stop"
    holds(store.ready and store.get("key") is None and not store.has("key"), "the head's store has what nobody put there", rests)
    for value in (b"one", b"two"):
        store.put("key", value)
        holds(store.get("key") == value and store.has("key"), "the head's store does not keep a value", rests)
    holds(module.Store("other").get("key") is None, "namespaces share keys", rests)
    store.delete("key")
    store.delete("key")
    assert not store.has("key")

    rests = "what a run books, and saying what it waits for"
    labels = [{"role": "!spot"}, {}]
    group = ray.util.placement_group([{"CPU": 1000}, {"CPU": 0.5}], bundle_label_selector=labels)  # more than there is
    table = ray.util.placement_group_table(module.placement_group_of(group.id.hex()))
    holds(table.get("state") == "PENDING", f"a group that waits is {table.get('state')}", rests)
    told = [(dict(bundle.resources), dict(bundle.labels), node) for bundle, node in module.bundles_of(group)]
    holds(told == [({"CPU": 1000}, labels[0], None), ({"CPU": 0.5}, {}, None)], f"bundles are told as {told}", rests)

    def free(of: PlacementGroup | None) -> float:
        return sum(node.resources.get("CPU", 0) for node in ray_elastic.free_resources(of))

    # What earlier tests gave back may become free at any time: only differences are certain.
    wait_until(lambda: free(group) == free(None) >= 0.5, lambda: "a group that waits holds something, or no CPU is free")
    assert not ray_elastic.beyond_limits(group)
    client = ray._private.worker.global_worker.gcs_client
    seen = GetClusterStatusReply.FromString(client.get_cluster_status()).cluster_resource_state
    (waits,) = (one for one in seen.pending_gang_resource_requests if group.id.hex() in one.details)
    report = AutoscalingState(autoscaler_state_version=1 << 40, infeasible_gang_resource_requests=[waits])
    client.report_autoscaling_state(report.SerializeToString())  # as an autoscaler does that cannot add what it waits for
    holds(ray_elastic.beyond_limits(group), "what the autoscaler cannot add is not told", "saying why a run waits")
    ray.util.remove_placement_group(module.placement_group_of(group.id.hex()))
    small = ray.util.placement_group([{"CPU": 0.5}])
    assert small.wait(PATIENCE)
    wait_until(lambda: free(small) == free(None) + 0.5, lambda: "what a group holds is not counted")
    (here,) = (node["NodeID"] for node in ray.nodes() if node["Alive"])
    holds([node for _, node in module.bundles_of(small)] == [here], "a bundle's node is told otherwise", rests)
    with monkeypatch.context() as patched:  # a notice would end this cluster
        patched.setattr(ray_elastic, "draining_nodes", lambda: {here: 0})
        assert ray_elastic.all_nodes() == ray_elastic.free_resources(None) == []
        assert (current_cluster().cpus, current_cluster().nodes) == (0, ())
    assert current_cluster().cpus == ray.cluster_resources()["CPU"]
    assert module.bundles_of(module.placement_group_of("ab" * 18)) == []
    told = [group for group in ray_elastic.groups() if group.bundles == module.bundles_of(small)]
    holds(told and told[0].job == ray.get_runtime_context().get_job_id(), f"groups of all jobs are told as {told}", "sharing")
    ray.util.remove_placement_group(small)
    state = ray.util.placement_group_table(group).get("state")
    holds(state in (None, "REMOVED"), f"a group that was given back is {state}", rests)

    rests = "finding a run's processes that are stopped"
    environment, daemon = ray.get(ray.remote(num_cpus=0)(lambda: (psutil.Process().environ(), os.getppid())).remote())
    jobs = (ray.get_runtime_context().get_job_id(), module.NO_JOB)
    holds(environment.get(module.JOB_VARIABLE) in jobs, "a worker's variables do not tell its job", rests)
    holds(environment.get(module.NODE_VARIABLE) == str(daemon), "a worker's variables do not tell its node's daemon", rests)
    assert not module.can_grow()
    check_driver(ResourceSettings())
    with refused("resources.driver_labels", "{role: train}", remedy="--entrypoint-label-selector"):
        check_driver(ResourceSettings(driver_labels={"role": "train"}))

    with pytest.warns(Warning, match=f"^{ray_data.OPTIONS_WARNING}"):
        ray.data.range(1).map_batches(lambda batch: batch, max_retries=1)
