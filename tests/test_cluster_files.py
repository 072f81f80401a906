"""The files that start clusters are what Ray and KubeRay expect, with one set of labels, which the documented commands name."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from pipelines.program.nodes import matches
from pipelines.program.settings import load, parse_overrides
from tests.test_cluster import checked
from training.config import TrainSettings

ROOT = Path(__file__).parents[1]
LAUNCHER = ("cluster.yaml", "docs/cluster/google.yaml")
ROLES = {"head": ("head", "on-demand"), "cpu_worker": ("data", "on-demand"), "gpu_worker": ("train", "spot")}


def read(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text())


def labels_of(types: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """By node type: its role, and its market."""
    return {name: (kind["labels"]["role"], kind["labels"]["ray.io/market-type"]) for name, kind in types.items()}


@pytest.mark.parametrize("file", LAUNCHER)
def test_ray_takes_the_file_and_its_node_types_have_their_labels(file: str) -> None:
    full = checked(read(file))
    types = full["available_node_types"]
    assert labels_of(types) == ROLES and full["head_node_type"] == "head"
    assert types["head"]["resources"]["CPU"] == 0 == types["head"]["max_workers"]
    assert all(kind["min_workers"] == 0 for kind in types.values())
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in " ".join(full[commands])
    assert "--dashboard-host=127.0.0.1" in " ".join(full["head_start_ray_commands"])
    assert full["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token", "every node needs the token"


def test_google_has_what_its_api_and_no_schema_asks_for() -> None:
    google, aws = read("docs/cluster/google.yaml"), read("cluster.yaml")
    types = google["available_node_types"]
    spot = {name for name, kind in types.items() if kind["node_config"].get("scheduling", {}).get("provisioningModel") == "SPOT"}
    assert spot == {name for name, (_, market) in ROLES.items() if market == "spot"}
    assert types["gpu_worker"]["resources"]["GPU"] == 1, "Ray does not look it up on Google Cloud"
    assert google["file_mounts"] == aws["file_mounts"], "what is installed is the same"


@pytest.fixture
def job() -> dict[str, Any]:
    return read("docs/cluster/kuberay.yaml")


def check_job(job: dict[str, Any]) -> None:
    """Raises where KubeRay's schema is broken."""
    jsonschema.Draft202012Validator(json.loads((ROOT / "tests/kuberay_rayjob.json").read_text())).validate(job)


def test_kuberay_takes_the_job(job: dict[str, Any]) -> None:
    """Its schema does, and the autoscaler finds the same node types and labels in it as in the launcher's files."""
    check_job(job)
    spec = job["spec"]["rayClusterSpec"]
    cluster = {"metadata": {"name": "raylign", "namespace": "default"}, "spec": spec}
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert labels_of(types) == {name.replace("_worker", "-worker").replace("head", "headgroup"): of for name, of in ROLES.items()}
    assert types["headgroup"]["resources"]["CPU"] == 0 and types["gpu-worker"]["resources"]["GPU"] == 1
    assert spec["rayVersion"] == re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2", "the first knows no labels"
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:  # rules of the operator that are not in its schema
        assert group["template"]["spec"]["restartPolicy"] == "Never"
        assert group["labels"] and "labels" not in group["rayStartParams"]
        pod = group["template"]["spec"]
        spot = pod.get("nodeSelector", {}).get("cloud.google.com/gke-spot") == "true"
        assert spot == (group["labels"]["ray.io/market-type"] == "spot") != ("affinity" in pod)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterSpec", "headGroupSpec", "label"), {}),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "8"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "groupName"), None),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "name"), 1),
        (("spec", "entrypoints"), "python"),
    ],
)
def test_a_mistake_in_the_job_is_found(job: dict[str, Any], path: tuple[str | int, ...], value: Any) -> None:
    """So `test_kuberay_takes_the_job` says something."""
    broken: Any = copy.deepcopy(job)
    node = broken
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_job(broken)


def commands() -> list[list[str]]:
    """The overrides of each training command of the documentation that names labels, and of the job."""
    text = (ROOT / "docs/cluster.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "python -m training" in line and "_labels" in line]
    return [shlex.split(line) for line in [*lines, read("docs/cluster/kuberay.yaml")["spec"]["entrypoint"]]]


def test_documented_commands_name_the_labels_of_the_node_types() -> None:
    """Workers get the nodes with GPUs, what reads gets the others, and the program runs on neither kind that is reclaimed."""
    assert len(commands()) >= 2
    nodes = {name: {"role": role, "ray.io/market-type": market} for name, (role, market) in ROLES.items()}
    for command in commands():
        overrides = parse_overrides([word for word in command if "=" in word and not word.startswith("-")])
        resources = load(TrainSettings, ROOT / "training/configs/openmoji.yaml", overrides).resources
        found = [
            {name for name, labels in nodes.items() if matches(selector, labels)}
            for selector in (resources.worker_labels, resources.data_labels, resources.driver_labels)
        ]
        assert found == [{"gpu_worker"}, {"cpu_worker"}, {"head", "cpu_worker"}]
