"""An optimizer that fails in the middle of a run, after all checks have passed."""

from typing import Any

import torch


class Failing(torch.optim.SGD):
    """Gradient descent that makes two steps."""

    _steps = 0

    def step(self, closure: Any = None) -> Any:
        self._steps += 1
        if self._steps > 2:
            raise ValueError("there is no third step")
        return super().step(closure)
