"""The team that trains: one process, or several that average their gradients.

Every process of a team runs the same loop on its own pictures. The first one decides everything
that depends on clocks, files or figures, and the others do the same.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import StrataError

T = TypeVar("T")


class Team:
    """A team of one process, and the interface of larger ones.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
    """

    rank = 0
    size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """A module to call instead: a backward pass through it averages the gradients.

        Afterwards all processes have the parameters of the first one.
        """
        return module

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Inside, gradients add up in each process. The next pass outside averages the sums."""
        return nullcontext()

    def lead(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the first process only. All get its result, or its StrataError."""
        return work()

    def everywhere(self, work: Callable[[], T]) -> T:
        """Call ``work`` in every process. If it fails in one, all raise that StrataError."""
        return work()

    def gather(self, value: T) -> list[T]:
        """The value of each process, by rank."""
        return [value]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each floating-point tensor with its average over the team."""


ALONE = Team()


class TorchTeam(Team):
    """The processes of ``torch.distributed``. Its default group must exist already.

    Args:
        device: where this process trains.

    Attributes:
        refusal: the error that all processes have raised, if any.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.refusal: StrataError | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions rename an option
            # A batch may use only some parameters, chosen at random, as with the steps of UQDM.
            return DistributedDataParallel(
                module, broadcast_buffers=False, find_unused_parameters=True
            )

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        assert isinstance(wrapped, DistributedDataParallel)
        return wrapped.no_sync()

    def lead(self, work: Callable[[], T]) -> T:
        box: list[Any] = [_attempt(work) if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=torch.device(self.device))
        result, error = box[0]
        self._raise(error)
        return cast(T, result)

    def everywhere(self, work: Callable[[], T]) -> T:
        result, error = _attempt(work)
        for problem in self.gather(error):
            self._raise(problem)
        return cast(T, result)

    def _raise(self, error: StrataError | None) -> None:
        if error is not None:
            self.refusal = error
            raise error

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def average(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor /= self.size


def _attempt(work: Callable[[], T]) -> tuple[T | None, StrataError | None]:
    """The result, or the StrataError. Any other error ends this process, and so the team."""
    try:
        return work(), None
    except StrataError as error:
        return None, error
