"""The actors that compute features: how many, and what each needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipelines.program.cluster import own_machine
from pipelines.program.errors import UserError
from pipelines.program.nodes import Bundle


@dataclass(frozen=True)
class Pool:
    """Number of actors with a copy of an encoder, each with `threads` CPUs, and a GPU with `use_gpu`. 0: run in this process."""

    actors: int
    use_gpu: bool = False
    threads: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)  # Ray's, of the nodes with them

    @property
    def each(self) -> Bundle:
        """What one actor needs."""
        return Bundle({"CPU": self.threads} | ({"GPU": 1.0} if self.use_gpu else {}), self.labels)

    def check(self) -> None:
        """Raises `UserError` if actors would wait forever in the Ray that this process will start. A running cluster may grow.

        Errors name the keys of the programs' configs.
        """
        size = own_machine()
        if size is None:
            return
        cpus, gpus = size
        actors, each = self.actors, self.threads
        if self.use_gpu and actors > gpus:
            problem = f"{actors} x 1 GPU, and this machine has {gpus}"
            raise UserError("use_gpu", problem, f"pass use_gpu=false{f' or actors={gpus}' if gpus else ''}")
        if each > cpus:
            raise UserError("cpus_per_actor", f"{each} CPUs, and this machine has {cpus}", f"pass cpus_per_actor={cpus} or less")
        if actors * each > cpus:
            problem = f"{actors} x {each} CPUs = {actors * each}, and this machine has {cpus}"
            raise UserError("actors", problem, f"pass actors={cpus // each}")
