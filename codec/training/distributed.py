"""Who trains: one process by itself, or several that average their gradients.

Every process of a team runs the same loop on pictures of its own. The first one decides what
depends on clocks, files or figures; the others do as it does.
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
    """A process by itself.

    Attributes:
        rank: which process of the team this is, from 0.
        size: how many there are.
    """

    rank = 0
    size = 1

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in its place: a backward pass through it averages the gradients.

        All processes have the first one's parameters afterwards.
        """
        return module

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Within it gradients add up in each process: the next pass outside averages the sums."""
        return nullcontext()

    def lead(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the first process alone; all get its result, or its StrataError."""
        return work()

    def everywhere(self, work: Callable[[], T]) -> T:
        """Do ``work`` in every process; if it fails in one, all get that one's StrataError."""
        return work()

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank."""
        return [value]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each floating-point tensor by its average over the team."""


ALONE = Team()


class TorchTeam(Team):
    """The processes of ``torch.distributed``, whose default group has been made already.

    Args:
        device: where this process trains.

    Attributes:
        refusal: the error that all processes have raised, if they have.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self.refusal: StrataError | None = None

    def wrap(self, module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions rename an option
            # Which parameters a batch needs may depend on chance, as with a schedule's steps.
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
    """Any other error ends this process, and with it the team."""
    try:
        return work(), None
    except StrataError as error:
        return None, error
