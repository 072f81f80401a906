"""Sums over similarity matrices against plain double loops, the same in blocks as at once, and the memory of samples."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.dataset.batch import Batch
from tests.training.gloo import Gloo
from training import distributed
from training.objectives.base import Task
from training.objectives.ops import blocks
from training.objectives.ops.blocks import Candidates, in_blocks
from training.objectives.ops.losses import following, log_blend, log_sums, sigmoid_sums, soft_cross_entropy
from training.objectives.ops.sample_memory import Memory

X = F.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 2]], dtype=torch.float64))
Y = F.normalize(torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.float64))

# Rows 2 to 6 of nine are this worker's; images, captions and groups repeat among them and beyond.
ROWS, KEYS, WIDTH = 5, 9, 3
TARGETS = torch.arange(2, 7)
ALL_IDS = torch.tensor([[0, 0], [1, 1], [2, 2], [2, 3], [4, 1], [5, 5], [0, 6], [7, 6], [8, 8]])
ALL_GROUPS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
IDS, GROUPS = ALL_IDS[TARGETS], ALL_GROUPS[TARGETS]
CANDIDATES = {
    "all": Candidates(TARGETS),
    "ids": Candidates(TARGETS, IDS, ALL_IDS),
    "groups": Candidates(TARGETS, None, None, GROUPS, ALL_GROUPS),
    "ids and groups": Candidates(TARGETS, IDS, ALL_IDS, GROUPS, ALL_GROUPS),
}

every_candidates = pytest.mark.parametrize("kind", CANDIDATES)

# Rows of a block; two leaves one over, three leaves two, and with a thousand all are one block.
every_size = pytest.mark.parametrize("rows", [1, 2, 3, 5, 1000])


def rows_of(*sizes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Unit rows in so many matrices, with gradient."""
    random = torch.Generator().manual_seed(4)
    found = [F.normalize(torch.randn(size, WIDTH, generator=random, dtype=torch.float64)) for size in sizes]
    return [part.to(dtype).requires_grad_() for part in found]


def value(number: float | Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(number, dtype=dtype, requires_grad=True)


def gradients_of(found: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Of a sum in which every entry has another weight."""
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype)
    return list(torch.autograd.grad((weights * found).sum(), inputs))


Function = Callable[..., Tensor]


def assert_blocks_are_the_whole(function: Function, inputs: Sequence[Tensor], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In value and in every gradient, in both precisions."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        cast = [part.detach().to(dtype).requires_grad_() for part in inputs]
        plain = function(*cast)
        expected = gradients_of(plain, cast)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "PLAIN", 0)
            patch.setattr(blocks, "BLOCK", rows * KEYS)
            found = function(*cast)
            gradients = gradients_of(found, cast)
        assert found.dtype == dtype
        torch.testing.assert_close(found, plain, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


Naive = Callable[..., list[float]]


def assert_naive(function: Function, naive: Naive, inputs: Sequence[Tensor]) -> None:
    """The value is that of plain loops, and the gradient that of their differences."""
    found = function(*inputs)
    numbers = [part.detach().tolist() for part in inputs]
    assert found.tolist() == pytest.approx(naive(*numbers), rel=1e-10, abs=1e-10)
    weights = torch.linspace(0.5, 1.5, found.numel(), dtype=found.dtype).tolist()

    def moved(part: int, place: tuple[int, ...], by: float) -> float:
        changed = [tensor.detach().clone() for tensor in inputs]
        changed[part][place] += by
        return sum(w * v for w, v in zip(weights, naive(*[tensor.tolist() for tensor in changed]), strict=True))

    for part, gradient in enumerate(gradients_of(found, inputs)):
        assert bool(gradient.any()), "a gradient of zeros tests nothing"
        for place in itertools.product(*map(range, gradient.shape)):
            slope = (moved(part, place, 1e-5) - moved(part, place, -1e-5)) / 2e-5
            assert float(gradient[place]) == pytest.approx(slope, rel=1e-6, abs=1e-7), (part, place)


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def log_sum(logits: list[float]) -> float:
    return math.log(sum(math.exp(logit) for logit in logits))


def is_alike(kind: str, i: int, j: int) -> bool:
    """Whether key j has the image or the caption of row i, and is not its own."""
    if "ids" not in kind or j == i + 2:
        return False
    (image, text), (other_image, other_text) = ALL_IDS[i + 2].tolist(), ALL_IDS[j].tolist()
    return image == other_image or text == other_text


def is_left_out(kind: str, i: int, j: int) -> bool:
    return is_alike(kind, i, j) or ("groups" in kind and int(ALL_GROUPS[i + 2]) != int(ALL_GROUPS[j]))


# --- log_sums ---

# Scale of sums over keys, and over queries: the same, another, one for every row and column, and none.
SCALES: dict[str, tuple[Any, Any]] = {
    "same": (2.0, "same"),
    "two": (2.0, 3.0),
    "rows only": ([1.0, 2.0, 3.0, 1.5, 2.5], None),
    "each its own": ([1.0, 2.0, 3.0, 1.5, 2.5], [2.0, 1.0, 3.0, 2.5, 1.5, 0.5, 2.2, 1.1, 3.3]),
}


def sums_at(kind: str, own: bool, scales: str) -> tuple[Function, list[Tensor]]:
    """`log_sums` of its tensors alone, and those tensors."""
    row, column = SCALES[scales]
    inputs = [*rows_of(ROWS, KEYS), value(row), *([] if column in (None, "same") else [value(column)])]

    def function(queries: Tensor, keys: Tensor, row_scale: Tensor, column_scale: Tensor | None = None) -> Tensor:
        column_scale = row_scale if column == "same" else column_scale
        found = log_sums(queries, keys, row_scale, column_scale, CANDIDATES[kind], own)
        assert found[0].shape == (ROWS,) and found[1].shape == ((0,) if column is None else (KEYS,))
        # Sums of nothing are no numbers to compare.
        return torch.cat([part[part > -1e20] for part in found])

    return function, inputs


def naive_sums(kind: str, own: bool, scales: str) -> Naive:
    column = SCALES[scales][1]

    def function(queries: list, keys: list, row_scale: Any, column_scale: Any = None) -> list[float]:
        pairs = [(i, j) for i in range(ROWS) for j in range(KEYS) if not is_left_out(kind, i, j) and (own or j != i + 2)]
        cosine = {(i, j): dot(queries[i], keys[j]) for i, j in pairs}
        rows = [
            [(row_scale if isinstance(row_scale, float) else row_scale[i]) * cosine[i, j] for k, j in pairs if k == i]
            for i in range(ROWS)
        ]
        if column is None:
            return [log_sum(row) for row in rows if row]
        column_scale = row_scale if column == "same" else column_scale
        columns = [
            [(column_scale if isinstance(column_scale, float) else column_scale[j]) * cosine[i, j] for i, k in pairs if k == j]
            for j in range(KEYS)
        ]
        return [log_sum(part) for part in (*rows, *columns) if part]

    return function


every_scale = pytest.mark.parametrize("scales", SCALES)
own_or_not = pytest.mark.parametrize("own", [True, False])


@every_candidates
@own_or_not
@every_scale
def test_log_sums_are_those_of_plain_loops(kind: str, own: bool, scales: str) -> None:
    function, inputs = sums_at(kind, own, scales)
    assert_naive(function, naive_sums(kind, own, scales), inputs)


@every_candidates
@own_or_not
@every_scale
@every_size
def test_log_sums_in_blocks(kind: str, own: bool, scales: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_blocks_are_the_whole(*sums_at(kind, own, scales), rows, monkeypatch)


@pytest.mark.parametrize("rows", [1, 2, 3, None])
def test_log_sums_worked_by_hand(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pairs at temperature 0.5, worked by hand in float64."""
    if rows is not None:
        monkeypatch.setattr(blocks, "PLAIN", 0)
        monkeypatch.setattr(blocks, "BLOCK", 3 * rows)
    scale = value(2.0)
    found, columns = log_sums(X, Y, scale, scale, Candidates(torch.arange(3)))
    assert found.tolist() == pytest.approx([2.114606, 2.480790, 2.369906], abs=1e-6)
    assert torch.allclose(columns, (2 * X @ Y.T).logsumexp(0))


@pytest.mark.parametrize("rows", [1, 2, None])
def test_a_row_with_nothing_to_sum_is_finite_and_has_no_gradient(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pair is alone in its group, and below, all pairs show one image."""
    if rows is not None:
        monkeypatch.setattr(blocks, "PLAIN", 0)
        monkeypatch.setattr(blocks, "BLOCK", 3 * rows)
    (queries, keys), scale, column_scale = rows_of(3, 3), value(2.0), value([1.0, 2.0, 3.0])
    groups = torch.tensor([0, 1, 1])
    candidates = Candidates(torch.arange(3), None, None, groups, groups)
    for column in (scale, column_scale):
        found = torch.cat(log_sums(queries, keys, scale, column, candidates, own=False))
        gradients = torch.autograd.grad(found.sum(), [queries, keys, scale])
        assert all(bool(part.isfinite().all()) for part in (found, *gradients))
        assert not bool(gradients[0][0].any()) and not bool(gradients[1][0].any())
        assert bool(gradients[0][1:].all()) and bool(gradients[1][1:].all())
        assert found[0] < -1e20 and found[3] < -1e20 and bool((found[[1, 2, 4, 5]].abs() < 10).all())
    same = Candidates(torch.arange(3), *[torch.tensor([[0, 0], [0, 1], [0, 2]])] * 2)
    assert same.negatives(3).tolist() == [0, 0, 0]
    soft = soft_cross_entropy((queries, keys, scale), (queries, keys, scale), torch.full((3,), 0.5), same)
    assert soft.tolist() == pytest.approx([0.0] * 3, abs=1e-12), "the own key is all there is"
    assert not any(bool(part.any()) for part in torch.autograd.grad(soft.sum(), [queries, keys, scale]))
    sums = sigmoid_sums(queries, keys, scale, value(0.0), same)
    assert sums.tolist() == [0.0] * 3
    assert not any(bool(part.any()) for part in torch.autograd.grad(sums.sum(), [queries, keys, scale]))


# --- soft_cross_entropy ---


def soft_at(kind: str, alike_is_own: bool) -> tuple[Function, list[Tensor]]:
    taught, taught_keys = (part.detach() for part in rows_of(ROWS + 1, KEYS + 1))
    share = torch.tensor([0.0, 1.0, 0.4, 0.7, 0.5], dtype=torch.float64)

    def function(queries: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
        dtype = queries.dtype
        teacher = (taught[:ROWS].to(dtype), taught_keys[:KEYS].to(dtype), torch.tensor(3.0, dtype=dtype))
        return soft_cross_entropy((queries, keys, scale), teacher, share, CANDIDATES[kind], alike_is_own)

    return function, [*rows_of(ROWS, KEYS), value(2.0)]


def naive_soft(kind: str, alike_is_own: bool) -> Naive:
    taught, taught_keys = (part.tolist() for part in rows_of(ROWS + 1, KEYS + 1))
    share = [0.0, 1.0, 0.4, 0.7, 0.5]

    def function(queries: list, keys: list, scale: float) -> list[float]:
        found = []
        for i in range(ROWS):
            there = [j for j in range(KEYS) if alike_is_own or not is_left_out(kind, i, j)]
            hard = [j for j in there if j == i + 2 or (alike_is_own and is_alike(kind, i, j))]
            logits = {j: scale * dot(queries[i], keys[j]) for j in there}
            soft = {j: math.exp(3.0 * dot(taught[i], taught_keys[j])) for j in there}
            whole, total = log_sum(list(logits.values())), 0.0
            for j in there:
                target = share[i] * soft[j] / sum(soft.values()) + (1 - share[i]) * (j in hard) / len(hard)
                total -= target * (logits[j] - whole)
            found.append(total)
        return found

    return function


soft_cases = pytest.mark.parametrize(
    ("kind", "alike_is_own"), [*((kind, False) for kind in CANDIDATES), ("all", True), ("ids", True)]
)


@soft_cases
def test_soft_cross_entropy_is_that_of_plain_loops(kind: str, alike_is_own: bool) -> None:
    assert_naive(soft_at(kind, alike_is_own)[0], naive_soft(kind, alike_is_own), soft_at(kind, alike_is_own)[1])


@soft_cases
@every_size
def test_soft_cross_entropy_in_blocks(kind: str, alike_is_own: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_blocks_are_the_whole(*soft_at(kind, alike_is_own), rows, monkeypatch)


@pytest.mark.parametrize("plain", [True, False])
def test_the_teacher_gets_no_gradient(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not plain:
        monkeypatch.setattr(blocks, "PLAIN", 0)
    queries, keys, taught, taught_keys = rows_of(ROWS, KEYS, ROWS, KEYS)
    scale, sharpness = value(2.0), value(3.0)
    share = torch.full((ROWS,), 0.5)
    soft_cross_entropy((queries, keys, scale), (taught, taught_keys, sharpness), share, CANDIDATES["ids"]).sum().backward()
    assert taught.grad is taught_keys.grad is sharpness.grad is None
    assert queries.grad is not None and keys.grad is not None and scale.grad is not None


# --- sigmoid_sums, negatives ---


def sigmoid_at() -> tuple[Function, list[Tensor]]:
    def function(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_sums(queries, keys, scale, bias, CANDIDATES["ids"])

    return function, [*rows_of(ROWS, KEYS), value(2.0), value(-0.3)]


def test_sigmoid_sums_are_those_of_plain_loops() -> None:
    """Over keys of another image and another caption; the own key is not among them."""

    def naive(queries: list, keys: list, scale: float, bias: float) -> list[float]:
        others = [[j for j in range(KEYS) if j != i + 2 and not is_alike("ids", i, j)] for i in range(ROWS)]
        return [sum(math.log(1 + math.exp(scale * dot(queries[i], keys[j]) + bias)) for j in others[i]) for i in range(ROWS)]

    assert_naive(sigmoid_at()[0], naive, sigmoid_at()[1])


@every_size
def test_sigmoid_sums_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_blocks_are_the_whole(*sigmoid_at(), rows, monkeypatch)


@every_candidates
@pytest.mark.parametrize("rows", [None, 1, 2, 3])
def test_negatives_are_counted(kind: str, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if rows is not None:
        monkeypatch.setattr(blocks, "PLAIN", 0)
        monkeypatch.setattr(blocks, "BLOCK", rows * KEYS)
    expected = [sum(j != i + 2 and not is_left_out(kind, i, j) for j in range(KEYS)) for i in range(ROWS)]
    assert CANDIDATES[kind].negatives(KEYS).tolist() == expected
    assert kind == "all" or len(set(expected)) > 1


# --- blocks, precision ---


def test_large_matrices_are_computed_in_blocks_and_small_ones_at_once() -> None:
    """As the limits stand: 64 MiB of float32 is held, more is not, and then no block has more than an eighth of it."""

    def rows_seen(rows: int, width: int) -> list[int]:
        return in_blocks(lambda candidates: len(candidates.targets), width, Candidates(torch.arange(rows)))

    assert rows_seen(4096, 4096) == [4096]
    assert rows_seen(4097, 4096) == [512] * 8 + [1]
    assert rows_seen(3, 2**23) == [1, 1, 1], "a row is the least"


def test_blocks_keep_no_matrix_for_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is saved is as long as rows or keys, where the plain form keeps every pair."""
    size = 64
    queries, keys, others, other_keys = rows_of(*[size] * 4)
    candidates = Candidates(torch.arange(size), *[torch.arange(size).repeat(2, 1).T // 2] * 2)
    scale, each, share = value(2.0), value([2.0] * size), torch.full((size,), 0.5)
    calls: list[Callable[[], Any]] = [
        lambda: log_sums(queries, keys, scale, scale, candidates)[1],
        lambda: log_sums(queries, keys, each, each * 2, candidates, own=False)[1],
        lambda: soft_cross_entropy((queries, keys, scale), (others, other_keys, scale), share, candidates),
        lambda: sigmoid_sums(queries, keys, scale, scale, candidates),
    ]
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(blocks, "PLAIN", size * size - 1)
            monkeypatch.setattr(blocks, "BLOCK", 8 * size)
        for call in calls:
            saved: list[int] = []

            def keep(tensor: Tensor, sizes: list[int] = saved) -> Tensor:
                sizes.append(tensor.numel())
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                call()
            assert max(saved) == size * size if plain else sum(saved) < size * size / 4


@pytest.mark.parametrize("plain", [True, False])
def test_autocast_around_changes_nothing(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding cosines to bfloat16 moves a logit at temperature 0.01 by a tenth."""
    if not plain:
        monkeypatch.setattr(blocks, "PLAIN", 0)
    queries, keys, others, other_keys = rows_of(ROWS, KEYS, ROWS, KEYS, dtype=torch.float32)
    scale, other, candidates = value(100.0, torch.float32), value(90.0, torch.float32), CANDIDATES["ids"]
    calls: list[Callable[[], Tensor]] = [
        lambda: torch.cat(log_sums(queries, keys, scale, scale, candidates)),
        lambda: torch.cat(log_sums(queries, keys, scale, other, candidates)),
        lambda: soft_cross_entropy((queries, keys, scale), (others, other_keys, other), torch.full((ROWS,), 0.5), candidates),
        lambda: sigmoid_sums(queries, keys, scale, other, candidates),
    ]
    for call in calls:
        expected = call()
        slopes = torch.autograd.grad(expected.sum(), [queries, keys])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = call()
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(found.sum(), [queries, keys]), slopes, strict=True))


def test_rows_in_half_precision_are_summed_in_single_precision() -> None:
    queries, keys = (part.detach() for part in rows_of(ROWS, KEYS))
    scale = torch.tensor(100.0)
    for dtype in (torch.bfloat16, torch.float16):
        found, _ = log_sums(queries.to(dtype), keys.to(dtype), scale, None, CANDIDATES["all"])
        expected, _ = log_sums(queries.to(dtype).double(), keys.to(dtype).double(), scale.double(), None, CANDIDATES["all"])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


# --- following, log_blend ---


def test_following_has_one_value_and_the_gradient_of_another() -> None:
    path, number = value(3.0), value(-7.0)
    found = following(number * 2, path * path)
    found.backward()
    assert float(found.detach()) == -14.0
    assert path.grad is not None and float(path.grad) == 6.0
    assert number.grad is None


def test_log_blend() -> None:
    old = torch.tensor([0.3, -2.0, 5.0, -math.inf, -math.inf], dtype=torch.float64)
    new = torch.tensor([1.0, 4.0, -3.0, 0.7, -math.inf], dtype=torch.float64)

    def expected(gamma: float, adopt: bool) -> list[float]:
        found = []
        for a, b in zip(old.tolist(), new.tolist(), strict=True):
            blend = (1 - gamma) * math.exp(a) + gamma * math.exp(b)
            found.append(b if adopt and a == -math.inf else math.log(blend) if blend else -math.inf)
        return found

    for gamma, adopt in itertools.product((0.1, 0.8, 1.0), (True, False)):
        assert log_blend(old, new, gamma, adopt).tolist() == pytest.approx(expected(gamma, adopt), rel=1e-12), (gamma, adopt)
    huge = torch.tensor([900.0, -900.0], dtype=torch.float64)
    assert log_blend(huge, huge - 1, 0.5).tolist() == pytest.approx([v + math.log((1 + math.exp(-1)) / 2) for v in (900, -900)])


# --- Memory ---

TASK = Task(num_images=5, num_texts=7, embed_dim=WIDTH, image_width=WIDTH, steps_per_epoch=1, total_steps=1, seed=0)


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(2) as workers:
        yield workers


def batch_of(image_id: list[int], text_id: list[int]) -> Batch:
    return {"image_id": torch.tensor(image_id), "text_id": torch.tensor(text_id)}


def test_a_memory_starts_as_told_and_reads_by_image_and_by_caption() -> None:
    memory = Memory(TASK, -1.5)
    assert memory.image.tolist() == [-1.5] * 5 and memory.text.tolist() == [-1.5] * 7
    memory.image.copy_(torch.arange(5.0))
    memory.text.copy_(10 * torch.arange(7.0))
    assert memory.read(batch_of([4, 0, 4], [6, 1, 2])).tolist() == [[4.0, 0.0, 4.0], [60.0, 10.0, 20.0]]
    assert set(memory.state_dict()) == {"image", "text"}


@pytest.mark.parametrize(
    ("image_id", "text_id", "named"),
    [
        ([0, 5], [0, 1], "image_id: 5 .*5"),
        ([-1, 0], [0, 1], "image_id: -1 .*5"),
        ([0, 4], [7, 1], "text_id: 7 .*7"),
        ([0, 4], [6, -2], "text_id: -2 .*7"),
    ],
)
def test_an_id_that_the_data_cannot_have_is_refused(image_id: list[int], text_id: list[int], named: str) -> None:
    with pytest.raises(IndexError, match=named):
        Memory(TASK, 0.0).read(batch_of(image_id, text_id))


# Image 1 three times, of which one does not count; caption 3 twice; the last pair does not count at all.
BATCH = batch_of([1, 1, 0, 1, 4, 2], [3, 0, 3, 5, 6, 2])
VALUES = torch.tensor([[0.5, -1.0, 2.0, 99.0, 3.0, 99.0], [1.0, 0.2, -2.0, 99.0, -math.inf, 99.0]])
VALID = torch.tensor([True, True, True, False, True, False])


def _written(log: bool) -> tuple[list[float], list[float]]:
    """This worker writes its part."""
    memory, size = Memory(TASK, -7.0), 6 // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    part: Any = {name: column[own] for name, column in BATCH.items()}  # type: ignore[attr-defined]
    memory.write(part, VALUES[:, own], VALID[own], log)
    return memory.image.tolist(), memory.text.tolist()


@pytest.mark.parametrize("log", [False, True])
def test_what_is_found_twice_is_averaged_and_the_rest_stays(gloo: Gloo, log: bool) -> None:
    def mean(*values: float) -> float:
        return math.log(sum(map(math.exp, values)) / len(values)) if log else sum(values) / len(values)

    images = [2.0, mean(0.5, -1.0), -7.0, -7.0, 3.0]
    texts = [0.2, -7.0, -7.0, mean(1.0, -2.0), -7.0, -7.0, -math.inf]
    for found_images, found_texts in [_written(log), *gloo(2, _written, log)]:
        assert found_images == pytest.approx(images, abs=1e-6)
        assert found_texts == pytest.approx(texts, abs=1e-6)


def test_means_of_logarithms_do_not_overflow() -> None:
    memory = Memory(TASK, 0.0)
    memory.write(batch_of([1, 1], [2, 2]), torch.tensor([[500.0, 498.0], [-500.0, -math.inf]]), torch.ones(2).bool(), log=True)
    assert float(memory.image[1]) == pytest.approx(500 + math.log((1 + math.exp(-2)) / 2), rel=1e-6)
    assert float(memory.text[2]) == pytest.approx(-500 - math.log(2), rel=1e-6)


def test_nothing_valid_writes_nothing() -> None:
    memory = Memory(TASK, 0.5)
    memory.write(batch_of([1, 1], [2, 2]), torch.ones(2, 2), torch.zeros(2).bool(), log=True)
    assert memory.image.tolist() == [0.5] * 5 and memory.text.tolist() == [0.5] * 7
