"""What is used of Ray Data that is not part of its public API; a part of ray_internals.py, which see."""

import functools
import math
import time
from typing import Any

# Ray Data has parameters for some options of its tasks. The others, of which we need those for retries and placement, give this
# warning until they are removed in 2.64; there is no replacement yet (data/dataset.py).
OPTIONS_WARNING = "`ray_remote_args` is deprecated"
# Ray Data's Arrow extension types that hold numbers only, with parameters in JSON; another one holds pickles
# (data/_internal/tensor_extensions/arrow.py, data/_internal/object_extensions/arrow.py).
TENSOR_TYPES = frozenset({"ray.data.arrow_tensor", "ray.data.arrow_tensor_v2", "ray.data.arrow_variable_shaped_tensor"})
# Least seconds from one step of its executor's loop to the next: less than a batch takes.
_STEP = 0.02


@functools.cache
def paced() -> type:
    """For `DataContext.custom_execution_callback_classes`: the executor's loop rests between its steps.

    The loop waits for tasks, up to 0.1 s. Where there are none, as their batches wait for a slower consumer, it does not wait,
    and takes more than half a CPU of the process that trains (`process_completed_tasks` in
    data/_internal/execution/streaming_executor_state.py).
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Paced(ExecutionCallback):
        def __init__(self) -> None:
            self._last = -math.inf

        def on_execution_step(self, executor: Any) -> None:
            time.sleep(max(0.0, self._last + _STEP - time.monotonic()))
            self._last = time.monotonic()

    return Paced
