"""`make check` leaves out slow tests and those with Ray, which their fixtures tell; others cannot start a Ray unnoticed."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.program import cluster
from pipelines.program.errors import UserError
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
ADDRESS = "a-test-not-marked-ray"


def test_an_unmarked_test_finds_no_ray_here_and_in_its_processes(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("ray") is None
    with pytest.raises(UserError, match=ADDRESS):
        cluster._init({})
    code = "from pipelines.program import cluster; cluster.start()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode != 0 and ADDRESS in ended.stderr


def test_a_test_with_a_prepared_dataset_is_marked(request: pytest.FixtureRequest, stamps: Prepared) -> None:
    assert request.node.get_closest_marker("ray") is not None
