"""TrainState and checkpoints: all of it comes back, through wrappers, and only onto the data that it was trained on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.dataset.batch import Batch
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.dataset.stream import Item
from pipelines.dataset.views import eval_view
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.refusals import refused
from training.checkpoint import load_checkpoint, load_embedder, snapshot
from training.checkpoint_registry import DIGESTS
from training.config import TrainSettings
from training.plan import Plan, plan_of
from training.state import TrainState, unwrap
from training.step import train_step

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plan(stamps: Prepared) -> Plan:
    tree = {
        "name": "t",
        "data": {"path": str(stamps.path)},
        "image_tower": {"name": "conv", "image_size": 12, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 16, "vocabulary_size": 100, "max_tokens": 8},
        "image_head": {"name": "mlp", "hidden": 16, "dropout": 0.2},
        "embed_dim": 8,
        "epochs": 2,
        "global_batch_size": 4,
    }
    return plan_of(validate(TrainSettings, tree, "t"), Pool(0), Display(quiet=True))


def state_of(plan: Plan, seed: int = 0) -> TrainState:
    """Weights of another seed, in the same run."""
    encoder, _, _ = replace(plan, settings=plan.settings.model_copy(update={"seed": seed})).build()
    task = plan.task(encoder)
    objective, teacher = plan.settings.objective.build(task), plan.settings.objective.build_teacher(encoder, task)
    optimizer = plan.settings.optimizer.build([encoder, objective])
    return TrainState(encoder.train(), objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def batch_of(plan: Plan, step: int) -> Batch:
    """A step's batch without Ray: what its task would compute, and what its worker would look up."""
    ids = plan.order.batch(step)
    found = plan.stream.compute(Item(ids, 0)) | plan.stream.look_up(ids, 0)
    return {name: torch.from_numpy(np.asarray(column)) for name, column in found.items()}  # type: ignore[return-value]


def advance(state: TrainState, plan: Plan, steps: int) -> list[float]:
    return [float(train_step(state, batch_of(plan, state.step), plan.settings, 1e-2)[0].total.detach()) for _ in range(steps)]


@pytest.mark.parametrize("objective", ["clip", "psd", "isogclr", "albef"])
def test_a_run_resumes_from_a_checkpoint_as_if_nothing_had_happened(plan: Plan, tmp_path: Path, objective: str) -> None:
    """Weights, moments of the optimizer, objective, teacher, cursor: with any of them missing the losses would differ."""
    settings = validate(TrainSettings, plan.settings.model_dump() | {"objective": {"name": objective}}, "t")
    plan = replace(plan, settings=settings)
    straight = state_of(plan)
    advance(straight, plan, 3)
    at_once, later = (snapshot(straight, plan, {"loss": 1.0}) for _ in range(2))
    at_once.write(tmp_path)
    expected = advance(straight, plan, 3)
    (tmp_path / "later").mkdir()
    later.write(tmp_path / "later")  # after training went on
    assert (tmp_path / "later" / DIGESTS).read_text() == (tmp_path / DIGESTS).read_text()
    resumed = state_of(plan, seed=99)
    load_checkpoint(tmp_path, resumed, plan)
    assert (resumed.step, resumed.samples) == (3, 12)
    assert advance(resumed, plan, 3) == expected
    for part in ("encoder", "objective", "teacher"):
        ours, theirs = getattr(resumed, part).state_dict(), getattr(straight, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert len(straight.teacher.state_dict()) == (len(straight.encoder.state_dict()) if objective in ("psd", "albef") else 0)


def test_a_checkpoint_of_other_data_is_refused(plan: Plan, tmp_path: Path) -> None:
    snapshot(state_of(plan), plan, {}).write(tmp_path)
    prepared = plan.stream.prepared
    other = replace(prepared, manifest=prepared.manifest | {"fingerprint": "f" * 32})
    changed = replace(plan, stream=replace(plan.stream, prepared=other))
    with refused("data.path", tmp_path, prepared.fingerprint[:12], "f" * 12, remedy="overwrite=true"):
        load_checkpoint(tmp_path, state_of(plan), changed)


def test_a_missing_field_is_an_error_not_a_fresh_start(plan: Plan) -> None:
    saved = state_of(plan).state_dict()
    networks = {"encoder", "objective", "teacher", "optimizer", "scaler"}
    assert set(saved) == networks | {"step", "samples", "skipped", "failing", "unusable", "seconds", "ended"}
    del saved["optimizer"]
    with pytest.raises(KeyError):
        state_of(plan).load_state_dict(saved)


class _Compiled(nn.Module):
    """What torch.compile's wrapper looks like from outside."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module


def test_wrappers_leave_no_trace_in_a_checkpoint(plan: Plan, tmp_path: Path) -> None:
    """Saved by two compiled workers, loaded by one that is neither."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        state = state_of(plan)
        bare = state.encoder
        wrapped = nn.parallel.DistributedDataParallel(bare)
        for module in (wrapped, _Compiled(wrapped), nn.parallel.DistributedDataParallel(_Compiled(bare)), torch.compile(bare)):
            assert unwrap(module) is bare
            assert replace(state, encoder=module).state_dict()["encoder"].keys() == bare.state_dict().keys()
        fresh = state_of(plan, seed=5)
        replace(fresh, encoder=nn.parallel.DistributedDataParallel(fresh.encoder)).load_state_dict(state.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(fresh.encoder.parameters(), bare.parameters(), strict=True))
    finally:
        torch.distributed.destroy_process_group()
    assert unwrap(3) == 3 and unwrap(bare) is bare


def test_the_embedder_of_a_checkpoint_gives_the_encoders_rows(plan: Plan, stamps: Prepared, tmp_path: Path) -> None:
    state = state_of(plan)
    advance(state, plan, 2)
    snapshot(state, plan, {}).write(tmp_path)
    embedder = load_embedder(str(tmp_path))
    images = list(whole_images(stamps, np.arange(3)))
    pixels = torch.from_numpy(np.stack([eval_view(p, 12) for p in images]))
    state.encoder.eval()
    with torch.no_grad():
        expected = state.encoder.embed_images(pixels).numpy()
        texts = state.encoder.embed_texts(*(torch.from_numpy(a) for a in plan.tokenizer(["a thing", "image number 3"]))).numpy()
    assert embedder.embed_images(images) == pytest.approx(expected, abs=1e-6)
    assert embedder.embed_texts(["a thing", "image number 3"]) == pytest.approx(texts, abs=1e-6)


def test_a_folder_without_checkpoint_is_explained(tmp_path: Path) -> None:
    with refused("checkpoint", tmp_path, remedy="run's folder"):
        load_embedder(str(tmp_path))
    with refused("checkpoint", tmp_path / "nowhere", remedy="runs/demo"):
        load_embedder(str(tmp_path / "nowhere"))
