"""Checks that an objective of one's own keeps the laws which those that come along keep. For its author's tests:

    def test_it_keeps_the_laws():
        raylign.testing.check_objective(MySettings(temperature=0.2))

A loss of parts is not the loss of the whole unless somebody takes care of it: gathers what other workers have, keeps state out of
`forward`, and writes it in `update` from gathered values. Small networks in float64, by the step that training takes.
"""

import io
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, columns
from pipelines.program.settings import validate
from training import distributed
from training.config import TrainSettings
from training.objectives.base import Embeddings, ObjectiveSettings, Task
from training.state import TrainState
from training.step import train_step

_ROWS, _WIDTH, _DIM, _STEPS = 12, 7, 5, 3
_TASK = Task(
    num_images=23,
    num_texts=29,
    embed_dim=_DIM,
    image_width=_DIM,
    steps_per_epoch=2,
    total_steps=8,
    seed=3,
    states_width=_DIM,
    vocabulary_size=11,
    guide_widths=(_DIM, _DIM),
)
# Pairs by image and by caption: the same image twice, the same caption twice, one pair twice.
_IMAGES = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7])
_TEXTS = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 8, 8])
_PATIENCE = 300  # seconds for two processes to start and to take their steps


class Outcome(NamedTuple):
    """What some steps did: losses and gradients of each, and all state at the end."""

    losses: list[Tensor]
    gradients: list[list[Tensor]]
    state: dict[str, Tensor]
    saved: bytes


def check_objective(settings: ObjectiveSettings, workers: int = 2) -> None:
    """Raises `AssertionError` that names the law which the objective breaks.

    Its config is read again as it was; `forward` changes nothing, and gives the same again; a checkpoint between two steps
    changes nothing; a step in two or three parts is the step of the whole, and so is one of `workers` processes (2, 3, 4, 6, 12).

    Args:
        settings: of the objective, at which all of it moves within a few steps: soft temperatures, short schedules. Its module
            must be importable: processes are started that import it.
    """
    told = f"{type(settings).__name__}: "
    tree = settings.model_dump(mode="json")
    again = _run_settings(tree).objective
    assert again == settings, f"{told}read from its config it is another: {again!r} in the place of {settings!r}"
    _check_forward(settings, told)
    whole = _steps(tree, 0, _STEPS)
    for step, loss in enumerate(whole.losses):
        assert bool(loss.isfinite()), f"{told}the loss of step {step} is {float(loss)}"
    assert any(bool(g.abs().max() > 0) for g in whole.gradients[-1]), f"{told}no gradient reaches the encoder"
    first = _steps(tree, 0, 1)
    _compare(
        _steps(tree, 1, _STEPS, first.saved), whole, f"{told}after a checkpoint it goes on otherwise: state that is no buffer?"
    )
    for parts in (2, 3):
        what = f"{told}a step in {parts} parts is not the step of the whole: does `forward` write state, or draw random numbers?"
        _compare(_steps(tree, 0, _STEPS, None, parts), whole, what)
    what = f"{told}{workers} workers are not one: does it gather what it compares with, and what `update` writes?"
    for found in _on(workers, tree):
        _compare(found, whole, what)


def _check_forward(settings: ObjectiveSettings, told: str) -> None:
    state = _state(_run_settings(settings.model_dump(mode="json")))
    batch: Any = _batch(0)
    with torch.no_grad():
        batch = state.teacher(batch)
        rows = state.encoder(batch)
        before = {name: value.clone() for name, value in state.objective.state_dict().items()}
        first, second = (state.objective(rows, batch) for _ in range(2))
    assert first.total.ndim == 0, f"{told}`Loss.total` has shape {list(first.total.shape)}; it is one number, the mean over rows"
    assert torch.equal(first.total, second.total), f"{told}`forward` gives another loss the second time"
    after = state.objective.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not changed, f"{told}`forward` changes {', '.join(changed)}; state is written in `update`"
    assert not any(value.requires_grad for value in first.metrics.values()), f"{told}`Loss.metrics` are to be detached"


def _compare(found: Outcome, expected: Outcome, told: str) -> None:
    """Up to the rounding of float64."""
    close: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-10}
    pairs = {
        "loss": (found.losses, expected.losses[-len(found.losses) :]),
        "gradients": (found.gradients, expected.gradients[-len(found.gradients) :]),
        "state": (found.state, expected.state),
    }
    for name, (one, other) in pairs.items():
        try:
            torch.testing.assert_close(one, other, **close)
        except AssertionError as error:
            raise AssertionError(f"{told} ({name}: {' '.join(str(error).split())})") from None


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
        # Named for objectives that ask for some, and never built.
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

    def forward(self, batch: Any) -> Embeddings:
        image, text = self.image(batch["image_features"]), self.text(batch["text_features"])
        _, strong, _ = self.images(batch)
        states = self.text(self.words[batch["masked_text"]])
        other = self.text(batch["other_text"])
        return Embeddings(F.normalize(image), F.normalize(text), image, text, strong, strong, states, other)

    def images(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `DualEncoder`, for teachers that look at strong views."""
        strong = self.image(batch["strong"])
        return self.image(batch["image_features"]), strong, strong


def _batch(step: int) -> Batch:
    """A step's global batch; every column that an objective can ask for."""
    image_id, text_id = (_IMAGES + 5 * step) % _TASK.num_images, (_TEXTS + 5 * step) % _TASK.num_texts
    fixed, own = torch.Generator().manual_seed(1), torch.Generator().manual_seed(100 + step)

    def rows(*shape: int, random: torch.Generator) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    images, texts = rows(2, _TASK.num_texts, _WIDTH, random=fixed).unbind()
    words = torch.randint(_TASK.vocabulary_size, (_ROWS, 5), generator=own)
    hidden = torch.rand(_ROWS, 5, generator=own) < 0.4
    near = torch.stack([image_id, (image_id + 3) % _TASK.num_images, (image_id + 7) % _TASK.num_images], dim=1)
    guides = F.normalize(rows(2, _TASK.num_texts, _DIM, random=fixed), dim=-1)
    features = images[image_id]
    return Batch(
        image_features=features,
        text_features=texts[text_id],
        image_id=image_id,
        text_id=text_id,
        sample_id=image_id + 40,
        strong=features[:, None] + 0.5 * rows(_ROWS, 2, _WIDTH, random=own),
        codes=rows(_ROWS, 3, 13, random=own),
        other_text=texts[text_id].flip(1),
        masked_text=words.masked_fill(hidden, 1),
        masked_labels=words.masked_fill(~hidden, -100),
        guide_ids=near,
        guide_images=guides[0][near],
        guide_texts=guides[1][near],
    )


def _own_rows(batch: Any) -> Any:
    """This worker's."""
    size = _ROWS // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    return {name: column[own] for name, column in batch.items()}


def _state(settings: TrainSettings, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    encoder: Any = _Encoder()
    objective = settings.objective.build(_TASK).double()
    teacher = settings.objective.build_teacher(encoder, _TASK)
    if distributed.world_size() > 1:
        encoder = nn.parallel.DistributedDataParallel(encoder)
    optimizer = settings.optimizer.build([encoder, objective])
    return TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))


def _steps(objective: dict[str, Any], first: int, last: int, saved: bytes | None = None, parts: int = 1) -> Outcome:
    """Train on this worker's rows of global batches, from a checkpoint where there is one."""
    settings = _run_settings(objective, parts)
    state = _state(settings, seed=0 if saved is None else 99)
    if saved is not None:
        state.load_state_dict(torch.load(io.BytesIO(saved), weights_only=True))
    wanted = columns(settings.objective.needs, True, True) | {"masked_text", "strong", "other_text", "image_id", "text_id"}
    losses, gradients = [], []
    for step in range(first, last):
        batch = {name: column for name, column in _own_rows(_batch(step)).items() if name in wanted}
        loss, _ = train_step(state, batch, settings, settings.optimizer.lr)  # type: ignore[arg-type]
        losses.append(distributed.mean(loss.total.detach()))
        parameters = [p for module in (state.encoder, state.objective) for p in module.parameters() if p.requires_grad]
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    written = state.state_dict()
    tensors = {f"{part}.{name}": t.clone() for part in ("encoder", "objective", "teacher") for name, t in written[part].items()}
    file = io.BytesIO()
    torch.save(written, file)
    return Outcome(losses, gradients, tensors, file.getvalue())


def _on(workers: int, objective: dict[str, Any]) -> list[Outcome]:
    """The steps in several processes that talk through gloo."""
    assert _ROWS % workers == 0, f"workers: {workers} do not share {_ROWS} rows; choose 2, 3, 4, 6 or 12"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm.optim", "training.step"])  # imported once, whatever is checked after this
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(theirs, str(Path(folder) / "store"), rank, workers, objective))
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        try:
            answers = []
            for rank, pipe in enumerate(pipes):
                if not pipe.poll(_PATIENCE):
                    raise AssertionError(
                        f"worker {rank} of {workers} gave no answer in {_PATIENCE} s: do all gather equally often?"
                    )
                try:
                    answer = pipe.recv()
                except EOFError:
                    raise AssertionError(f"worker {rank} of {workers} died") from None
                assert not isinstance(answer, str), f"worker {rank} of {workers} failed: {answer}"
                losses, gradients, state = torch.load(io.BytesIO(answer), weights_only=True)
                answers.append(Outcome(losses, gradients, state, b""))
            return answers
        finally:
            for process in processes:
                process.kill()
                process.join()


def _worker(pipe: Any, store: str, rank: int, workers: int, objective: dict[str, Any]) -> None:
    """One process of `_on`: its outcome, or what went wrong, in words."""
    torch.set_num_threads(1)
    try:
        with distributed.gloo(store, rank, workers, _PATIENCE):
            outcome = _steps(objective, 0, _STEPS)
        file = io.BytesIO()  # by themselves tensors would be sent as shared memory, which ends with this process
        torch.save((outcome.losses, outcome.gradients, outcome.state), file)
        pipe.send(file.getvalue())
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
