"""The optimizer, by name, and which parameters it decays."""

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import nn

from pipelines.program.config_errors import plain
from pipelines.program.errors import UserError
from pipelines.program.import_string import call
from pipelines.program.settings_base import Settings
from training import timm_names
from training.tensor_tree import encode
from training.towers.base import Tower

_KEYS = ("optimizer.name", "optimizer.options", "mypackage.mymodule:MyOptimizer")  # for errors
# What timm's names stand for, built without importing timm and torchvision, which takes a second in each process.
USUAL: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adam": torch.optim.Adam}


class OptimizerSettings(Settings):
    """Any optimizer of timm by name: adamw, sgd (with Nesterov momentum), adam, lion, lamb, ...; or a class of your own."""

    name: str = Field("adamw", description="adamw, sgd, adam, any of timm's optimizers, or module:Class of your own")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.05, ge=0, description="weight decay of weights; biases, norms and temperatures are not decayed")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, for optimizers that have one, such as sgd")
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to the optimizer, such as {betas: [0.9, 0.98]}")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in USUAL or ":" in value:
            return value
        names = timm_names.optimizers(value)
        if value not in names:
            near = difflib.get_close_matches(value, sorted(names), n=3) or list(USUAL)
            raise ValueError(f"unknown optimizer '{value}'; did you mean {' or '.join(near)}?")
        return value

    @field_validator("options")
    @classmethod
    def _numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        """YAML reads 1e-8, which has no dot, as text."""

        def number(option: Any) -> Any:
            try:
                return float(option) if isinstance(option, str) else option
            except ValueError:
                return option

        return {name: number(option) for name, option in value.items()}

    @property
    def usual(self) -> bool:
        """Whether it takes any parameters: nothing about it could fail."""
        return self.name in USUAL and not self.options

    def check(self) -> None:
        """Take a step on a toy: what fails there fails in every run. Raises `UserError`."""
        if self.usual:
            return
        toy = nn.Linear(2, 2)
        try:
            optimizer = self.build([toy])
            toy(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            encode(optimizer.state_dict())
        except UserError:
            raise
        except Exception as error:  # each optimizer raises its own errors
            raise self._refusal(error) from None

    def _check_names(self) -> None:
        """Raises `UserError` for an unknown option: timm silently drops `eps` and `betas` if an optimizer has none."""
        kind = USUAL.get(self.name)
        if kind is None:
            from timm.optim import get_optimizer_class

            kind = get_optimizer_class(self.name, bind_defaults=False)
        arguments = inspect.signature(kind).parameters
        names = [name for name in arguments if name not in ("params", "lr", "weight_decay", "momentum")]
        for name in self.options:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UserError("optimizer.options", f"{self.name} has no '{name}'", f"{hint}it has {', '.join(names)}")

    def _refusal(self, error: Exception) -> UserError:
        problem = f"{self.name} does not take {plain(self.options)}: {' '.join(str(error).split())}"
        return UserError("optimizer.options", problem, "change or remove the option")

    def build(self, modules: Iterable[nn.Module]) -> torch.optim.Optimizer:
        """Two groups of parameters: weights, with decay; those below two dimensions, such as biases and norms, without.

        For each factor of the learning rate that towers in the modules have, there are two more, with it as `lr_scale`.
        """
        if ":" not in self.name:
            self._check_names()
        modules = list(modules)
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        towers = [tower for module in modules for tower in module.modules() if isinstance(tower, Tower)]
        scales = {tower.get_parameter(name): scale for tower in towers for name, scale in tower.lr_scales.items()}
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for parameter in sorted(parameters, key=lambda p: p.ndim < 2):
            scale, weight = scales.get(parameter, 1.0), parameter.ndim >= 2
            decay = {"weight_decay": self.weight_decay if weight else 0.0}
            group = groups.setdefault((scale, weight), {"params": []} | decay | ({} if scale == 1 else {"lr_scale": scale}))
            group["params"].append(parameter)
        arguments: dict[str, Any] = {"params": list(groups.values())}
        arguments |= {"lr": self.lr, "weight_decay": self.weight_decay}
        if ":" in self.name:
            optimizer = call(self.name, arguments | self.options, *_KEYS)
            if not isinstance(optimizer, torch.optim.Optimizer):
                problem = f"{self.name} returned a {type(optimizer).__name__}"
                raise UserError("optimizer.name", problem, "return a torch.optim.Optimizer")
            return optimizer
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}
        try:
            if self.name in USUAL:
                # As timm's sgd, Nesterov's, which has no meaning without momentum.
                sgd = {"momentum": self.momentum, "nesterov": self.momentum > 0} if self.name == "sgd" else {}
                return USUAL[self.name](**arguments | sgd | options)
            from timm.optim import create_optimizer_v2

            return create_optimizer_v2(arguments.pop("params"), opt=self.name, momentum=self.momentum, **arguments | options)
        except (TypeError, ValueError) as error:
            raise self._refusal(error) from None
