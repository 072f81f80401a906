"""Which tests `make check` leaves out, those with Ray, is found by their fixtures; the others cannot start one unseen."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.program import cluster
from pipelines.program.errors import UserError
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
TOLD = "the cluster at a-test-not-marked-ray cannot be joined"


def test_who_is_not_marked_finds_no_ray_here_and_in_processes_of_its_own(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("ray") is None
    with pytest.raises(UserError, match=TOLD):
        cluster._init({})
    code = "from pipelines.program import cluster; cluster.start()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode != 0 and TOLD in ended.stderr


def test_who_asks_for_a_prepared_dataset_is_marked(request: pytest.FixtureRequest, stamps: Prepared) -> None:
    assert request.node.get_closest_marker("ray") is not None
