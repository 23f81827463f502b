"""What computing on a device needs: arithmetic that is always the same, and enough memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

# Torch takes seconds to import, and the drivers of jobs, which import this too, compute nothing:
# each function here imports it when it is called.
if TYPE_CHECKING:
    from torch import device as Device


@contextmanager
def full_precision(device: "Device") -> Iterator[None]:
    """On CUDA: full float32 (no TF32), and the same kernels each time."""
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed for lack of memory, on the device or in the machine."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator for the CPU raises a plain RuntimeError
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release_memory() -> None:
    """Give back what torch keeps of the device's memory for later use."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
