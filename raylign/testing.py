"""Checks that a user's own objective obeys the laws that the built-in ones obey. For its author's tests:

    def test_it_keeps_the_laws():
        raylign.testing.check_objective(MySettings(temperature=0.2))

The loss of a batch in parts equals that of the whole batch only if the objective gathers the rows of other workers, changes no
state in `forward`, and writes state in `update` from gathered values. The checks train small networks in float64 with the same
step function as training, on batches that no number of workers or parts but one shares equally.
"""

import io
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs, columns
from pipelines.dataset.shares import shares
from pipelines.program.settings import validate
from training import distributed
from training.config import TrainSettings
from training.objectives.base import Embeddings, ObjectiveSettings, Task
from training.state import TrainState
from training.step import over_workers, train_step
from training.tensor_tree import decode, encode

_ROWS, _WIDTH, _DIM, _STEPS = 11, 7, 5, 3
_TASK = Task(
    num_images=23,
    num_texts=29,
    embed_dim=_DIM,
    image_width=_DIM,
    steps_per_epoch=2,
    total_steps=8,
    seed=3,
    states_width=_DIM,
    image_states_width=_DIM,
    vocabulary_size=11,
    frozen_widths=(_DIM, _DIM),
)
# The pairs' images and captions: with an image twice, a caption twice, and a pair twice.
_IMAGES = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 7, 7])
_TEXTS = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 5, 8, 8])
_SEVERAL = {"more": "more_features", "label": "label_text"}  # columns of several texts of a pair
_PATIENCE = 300  # seconds for a process to start and train


class Outcome(NamedTuple):
    """The result of some steps: losses and gradients of each, and all state at the end."""

    losses: list[Tensor]
    gradients: list[list[Tensor]]
    state: dict[str, Tensor]
    saved: tuple[bytes, str]


def check_objective(settings: ObjectiveSettings, workers: int = 2) -> None:
    """Raises `AssertionError` with the law that the objective breaks.

    The laws: its settings survive being written and read; `forward` is repeatable and changes no state; a checkpoint between two
    steps changes nothing; a step in two or three parts equals the step on the whole batch, and so does one by several processes.

    Args:
        settings: the objective's, such that all of it changes within a few steps: high temperatures, short schedules. Its module
            must be importable, as the processes import it.
        workers: number of processes, 2 to 10; they have unequal shares of a batch.
    """
    prefix = f"{type(settings).__name__}: "
    tree = settings.model_dump(mode="json")
    again = _run_settings(tree).objective
    assert again == settings, f"{prefix}written and read again, its settings differ: {again!r} instead of {settings!r}"
    _check_forward(settings, prefix)
    whole = _steps(tree, 0, _STEPS)
    for step, loss in enumerate(whole.losses):
        assert bool(loss.isfinite()), f"{prefix}the loss of step {step} is {float(loss)}"
    assert any(bool(g.abs().max() > 0) for g in whole.gradients[-1]), f"{prefix}no gradient reaches the encoder"
    first = _steps(tree, 0, 1)
    _compare(
        _steps(tree, 1, _STEPS, first.saved),
        whole,
        f"{prefix}after a checkpoint, steps differ: is state outside of buffers?",
    )
    for parts in (2, 3):
        what = f"{prefix}a step in {parts} parts differs from the whole step: does `forward` write state, or draw random numbers?"
        _compare(_steps(tree, 0, _STEPS, None, parts), whole, what)
    what = f"{prefix}{workers} workers differ from one: does it gather what it compares with, and what `update` writes?"
    for outcome in _on(workers, tree):
        _compare(outcome, whole, what)


def _check_forward(settings: ObjectiveSettings, prefix: str) -> None:
    state = _state(_run_settings(settings.model_dump(mode="json")))
    batch: Any = _batch(0, settings.needs)
    with torch.no_grad():
        batch = state.teacher(batch)
        rows = state.encoder(batch)
        before = {name: value.clone() for name, value in state.objective.state_dict().items()}
        first, second = (state.objective(rows, batch) for _ in range(2))
    assert first.total.ndim == 0, (
        f"{prefix}`Loss.total` has shape {list(first.total.shape)}; must be one number, the mean over rows"
    )
    assert torch.equal(first.total, second.total), f"{prefix}`forward` gives another loss the second time"
    after = state.objective.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed, f"{prefix}`forward` changes {', '.join(changed)}; write state in `update`"
    assert not any(value.requires_grad for value in first.metrics.values()), f"{prefix}`Loss.metrics` must be detached"


def _compare(outcome: Outcome, expected: Outcome, law: str) -> None:
    """Raises `AssertionError` if outcomes differ by more than rounding in float64; `expected` may have more steps before."""
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-10}
    pairs = {
        "loss": (outcome.losses, expected.losses[-len(outcome.losses) :]),
        "gradients": (outcome.gradients, expected.gradients[-len(outcome.gradients) :]),
        "state": (outcome.state, expected.state),
    }
    for name, (actual, reference) in pairs.items():
        try:
            torch.testing.assert_close(actual, reference, **close)
        except AssertionError as error:
            raise AssertionError(f"{law} ({name}: {' '.join(str(error).split())})") from None


def _run_settings(objective: dict[str, Any], accumulate: int = 1) -> TrainSettings:
    tree: dict[str, Any] = {
        "name": "laws",
        "data": {"path": "nowhere"},
        "image_tower": {"name": "conv"},
        "text_tower": {"name": "bag"},
        "embed_dim": _DIM,
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0},
        "epochs": 1,
        "global_batch_size": _ROWS,
        "accumulate": accumulate,
        # For objectives that need some; they are never built.
        "frozen_encoders": {"image_encoder": {"name": "conv"}, "text_encoder": {"name": "bag"}},
    }
    return validate(TrainSettings, tree | {"objective": objective}, "check_objective")


class _Encoder(nn.Module):
    """Two linear maps in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(_WIDTH, _DIM, dtype=torch.float64) for _ in range(2))
        words = torch.randn(_TASK.vocabulary_size, _WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        self.words = nn.Buffer(words, persistent=False)
        places = torch.randn(4, _WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        self.places = nn.Buffer(places, persistent=False)

    def forward(self, batch: Any) -> Embeddings:
        image, text = self.image(batch["image_features"]), self.text(batch["text_features"])
        others = {"text_states": self.text(self.words[batch["masked_text"]]), "other_projection": self.text(batch["other_text"])}
        others |= {f"{name}_projection": self.text(batch[column]) for name, column in _SEVERAL.items() if column in batch}
        return Embeddings(F.normalize(image), F.normalize(text), text_projection=text, **self.images(batch), **others)

    def images(self, batch: Any) -> dict[str, Tensor]:
        """Like that of `DualEncoder`, for teachers that embed strong views."""
        image = batch["image"] if "image" in batch else batch["image_features"]
        columns = {"image_projection": self.image(image), "image_states": self.image(image[:, None] * self.places)}
        if "strong" in batch:
            columns |= dict.fromkeys(("strong_features", "strong_projection"), self.image(batch["strong"]))
        if "hidden" in batch:
            seen = (batch["whole"][:, None] * self.places).masked_fill(batch["hidden"][..., None], 0.0)
            columns["masked_states"] = self.image(seen + seen.mean(1, keepdim=True) * self.places)
        return columns


def _batch(step: int, needs: Needs) -> Batch:
    """A step's global batch, with every column that an objective can read."""
    image_id, text_id = (_IMAGES + 5 * step) % _TASK.num_images, (_TEXTS + 5 * step) % _TASK.num_texts
    fixed, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + step)

    def rows(*shape: int, random: torch.Generator) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    images, texts = rows(2, _TASK.num_texts, _WIDTH, random=fixed).unbind()
    words = torch.randint(_TASK.vocabulary_size, (_ROWS, 5), generator=own)
    hidden = torch.rand(_ROWS, 5, generator=own) < 0.4
    near = torch.stack([image_id, (image_id + 3) % _TASK.num_images, (image_id + 7) % _TASK.num_images], dim=1)
    frozen = F.normalize(rows(2, _TASK.num_texts, _DIM, random=fixed), dim=-1)
    features = images[image_id]
    more_id = torch.randint(_TASK.num_texts, (_ROWS, needs.captions - 1), generator=own)
    label_id = torch.randint(_TASK.num_texts, (_ROWS, len(needs.texts)), generator=own)
    return Batch(
        image_features=features,
        text_features=texts[text_id],
        image_id=image_id,
        text_id=text_id,
        sample_id=image_id + 40,
        draw=torch.randint(2**62, (_ROWS,), generator=own),
        text=words,
        text_mask=(torch.arange(5) < 1 + torch.arange(_ROWS)[:, None] % 5).long(),
        strong=features[:, None] + 0.5 * rows(_ROWS, 2, _WIDTH, random=own),
        whole=features + 0.2 * rows(_ROWS, _WIDTH, random=own),
        codes=rows(_ROWS, 3, 13, random=own),
        other_text=texts[text_id].flip(1),
        more_id=more_id,
        more_features=texts[more_id],
        label_text=texts[label_id],
        label_there=torch.rand(_ROWS, len(needs.texts), generator=own) < 0.7,
        numbers=torch.rand(_ROWS, len(needs.numbers), generator=own, dtype=torch.float64),
        masked_text=words.masked_fill(hidden, 1),
        masked_labels=words.masked_fill(~hidden, -100),
        neighbour_ids=near,
        frozen_image_features=frozen[0][near],
        frozen_text_features=frozen[1][near],
    )


def _own_rows(batch: Any) -> Any:
    """This worker's part of a global batch."""
    own = shares(_ROWS, distributed.world_size())[distributed.rank()]
    return {name: column[own.start : own.stop] for name, column in batch.items()}


def _state(settings: TrainSettings, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    encoder: Any = _Encoder()
    objective = settings.objective.build(_TASK).double()
    teacher = settings.objective.build_teacher(encoder, _TASK)
    if distributed.world_size() > 1:
        encoder = nn.parallel.DistributedDataParallel(encoder)
    optimizer = settings.optimizer.build([encoder, objective])
    return TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def _steps(objective: dict[str, Any], first: int, last: int, saved: tuple[bytes, str] | None = None, parts: int = 1) -> Outcome:
    """Train on this worker's rows of global batches, from a checkpoint if there is one."""
    settings = _run_settings(objective, parts)
    state = _state(settings, seed=0 if saved is None else 99)
    if saved is not None:
        state.load_state_dict(decode(safetensors.torch.load(saved[0]), saved[1]))
    needs = settings.objective.needs
    wanted = columns(needs, True, True) | {"masked_text", "strong", "other_text", "image_id", "text_id"}
    losses, gradients = [], []
    for step in range(first, last):
        batch = {name: column for name, column in _own_rows(_batch(step, needs)).items() if name in wanted}
        if needs.strong is not None and step < needs.strong.first_step(_TASK.total_steps):
            batch = {name: column for name, column in batch.items() if name not in ("strong", "whole")}
        loss, _ = train_step(state, batch, settings, settings.optimizer.lr)  # type: ignore[arg-type]
        losses.append(torch.tensor(over_workers(loss, settings)["loss"], dtype=torch.float64))
        parameters = [p for module in (state.encoder, state.objective) for p in module.parameters() if p.requires_grad]
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    written = state.state_dict()
    tensors = {f"{part}.{name}": t.clone() for part in ("encoder", "objective", "teacher") for name, t in written[part].items()}
    weights, rest = encode(written)
    return Outcome(losses, gradients, tensors, (safetensors.torch.save(weights), rest))


def _on(workers: int, objective: dict[str, Any]) -> list[Outcome]:
    """The outcomes of several processes that train together, through gloo."""
    assert 1 < workers < _ROWS, f"workers: {workers} do not share {_ROWS} rows unequally; choose 2 to {_ROWS - 1}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm.optim", "training.step"])  # imported once for all checks
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(workers):
            own_end, worker_end = context.Pipe()
            process = context.Process(target=_worker, args=(worker_end, str(Path(folder) / "store"), rank, workers, objective))
            process.start()
            worker_end.close()
            pipes.append(own_end)
            processes.append(process)
        try:
            answers = []
            for rank, pipe in enumerate(pipes):
                if not pipe.poll(_PATIENCE):
                    raise AssertionError(
                        f"worker {rank} of {workers} gave no answer in {_PATIENCE} s: do all workers gather equally often?"
                    )
                try:
                    answer = pipe.recv()
                except EOFError:
                    raise AssertionError(f"worker {rank} of {workers} died") from None
                assert not isinstance(answer, str), f"worker {rank} of {workers} failed: {answer}"
                losses, gradients, state = torch.load(io.BytesIO(answer), weights_only=True)
                answers.append(Outcome(losses, gradients, state, (b"", "")))
            return answers
        finally:
            for process in processes:
                process.kill()
                process.join()


def _worker(pipe: Any, store: str, rank: int, workers: int, objective: dict[str, Any]) -> None:
    """One process of `_on`: sends its outcome, or the text of its exception."""
    torch.set_num_threads(1)
    try:
        with distributed.gloo(store, rank, workers, _PATIENCE):
            outcome = _steps(objective, 0, _STEPS)
        file = io.BytesIO()  # sent directly, tensors would be in shared memory, which ends with this process
        torch.save((outcome.losses, outcome.gradients, outcome.state), file)
        pipe.send(file.getvalue())
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
