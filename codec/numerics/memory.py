"""Where memory runs out, on a device or in the machine.

Torch takes seconds to import, and drivers of jobs, which import this too, compute nothing: each
function imports it when it is called.
"""


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
