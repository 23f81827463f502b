"""A device that is not the CPU, for machines without any: what a GPU refuses, it refuses.

torch sees its tensors on a device called "elsewhere". Behind each is one of the CPU's, which all
is computed with; but tensors here and there do not go into one operation, and what is elsewhere
has to be fetched before numpy sees it. So code that forgets to move something fails without a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"
AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
_ATEN = torch.ops.aten
# What takes tensors of both: copies, and indices, which a GPU fetches from the CPU by itself.
_MOVES = {_ATEN.copy_.default, _ATEN._to_copy.default}
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
# They would be made empty first, and then resized.
_RESIZING = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "randperm.generator")
# What a GPU cannot be told without that the CPU waits until it has come so far.
_ANSWERS = {_ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.equal.default}
_waited: list[list[int]] = []  # of whoever counts
_kept: list[Any] = []  # a library's kernels live as long as it does


class There(Tensor):
    """A tensor elsewhere, ``here`` its numbers."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "There":
        # One that is made for inference alone would not let torch view it.
        with torch.inference_mode(False):
            there: There = Tensor._make_wrapper_subclass(
                cls,
                here.size(),
                strides=here.stride(),
                storage_offset=here.storage_offset(),
                dtype=here.dtype,
                device=torch.device(NAME, 0),
            )
        there.here = here
        return there

    def __init__(self, here: Tensor) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.here!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # a file is read on the CPU, as it is of a GPU

    def tolist(self) -> Any:
        _count_wait()
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    composite = "CompositeImplicitAutograd"  # its parts have a device each
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), composite):
        result = function.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    wanted = kwargs.get("device")
    if function in _MOVES:
        pass
    elif function in _INDEXED:
        if there and not isinstance(args[0], There):
            raise RuntimeError(f"{function}: a tensor on cpu, and indices or values {NAME}")
    elif there and any(x.dim() for x in tensors if not isinstance(x, There)):
        raise RuntimeError(f"{function}: tensors on cpu and {NAME}")
    if _waits(function, args, kwargs, tensors, bool(there)):
        _count_wait()
    stays = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if function is _ATEN.copy_.default:
        stays = isinstance(args[0], There)
    args, kwargs = tree_map(_here, args), tree_map(_here, kwargs)
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")
    same = {id(x.here): x for x in there}  # operations in place return what they were given

    def placed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return same[id(x)] if id(x) in same else There(x) if stays else x

    result = function(*args, **kwargs)
    if any(x.shape != x.here.shape for x in there):
        raise NotImplementedError(f"{function} resizes what torch has noted the size of")
    return tree_map(placed, result)


def _count_wait() -> None:
    for counter in _waited:
        counter[0] += 1


@contextmanager
def counted_waits() -> Iterator[list[int]]:
    """How often, within, the CPU would wait for a GPU: the only number of what it yields."""
    counter = [0]
    _waited.append(counter)
    try:
        yield counter
    finally:
        _waited.remove(counter)


def _waits(function: Any, args: Any, kwargs: Any, tensors: list[Tensor], there: bool) -> bool:
    """Whether the CPU waits until a GPU has come so far: as for any copy that may be seen."""
    if function in _ANSWERS:
        return there
    if function in _INDEXED:
        return there and not all(isinstance(x, There) for x in tensors)
    target = kwargs.get("device")
    if function is _ATEN.copy_.default:
        target, kwargs = args[0].device, {"non_blocking": args[2]} if len(args) > 2 else kwargs
    if function not in _MOVES or target is None:
        return False
    to = torch.device(target).type == NAME
    return to != isinstance(tensors[-1], There) and not (to and kwargs.get("non_blocking"))


def _here(x: Any) -> Any:
    return x.here if isinstance(x, There) else x


class _Module:
    """What torch looks for where it would find ``torch.cuda``."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...


_of_cpu = torch.Generator


class _Generator:
    """There are none elsewhere: those of the CPU do."""

    def __new__(cls, device: Any = None) -> Any:
        return _of_cpu()


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return There(torch.empty_strided(size, stride, dtype=dtype))


def _copy(self: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _here(self).copy_(_here(source))
    return self


def _fallback(function: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(function, args, kwargs)


def _register() -> None:
    if _kept:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(_fallback, "PrivateUse1")
    # torch.tensor asks for these in a way that knows no fallback.
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    for name in _RESIZING:
        packet, _, overload = name.partition(".")
        function = getattr(getattr(_ATEN, packet), overload or "default")
        library.impl(name, partial(_fallback, function), "PrivateUse1")
    library.impl("copy_", _copy, "PrivateUse1")
    _kept.extend([everything, library])


@contextmanager
def elsewhere() -> Iterator[str]:
    """The device's name. Within, its random numbers are the CPU's."""
    _register()
    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    # Otherwise a module's conversion gives ours another type, and leaves the numbers behind.
    future.set_overwrite_module_params_on_conversion(True)
    # torch has a thread for the gradients of each device that it knew of at the first ones.
    one_thread = torch.autograd.set_multithreading_enabled(False)
    try:
        with one_thread, mock.patch.object(torch, "Generator", _Generator):
            yield NAME
    finally:
        future.set_overwrite_module_params_on_conversion(before)
