"""Checks of a model file before anything is computed with it, or memory is allocated for it.

A model may come from anywhere. Its configuration says how large its networks are. Networks are made
only if the tensors in the file have these sizes.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InvalidModelError

FORMAT = 1  # of model files
MAX_MODEL_BYTES = 16 << 30
MAX_CONFIG_BYTES = 1 << 20
_LARGEST_NUMBER = 1 << 40
_LONGEST_LIST = 4096
_DEEPEST = 8
_DTYPES = frozenset(
    {torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64}
    | {torch.float16, torch.bfloat16, torch.float32, torch.float64}
)
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.eye)
_SPARE = 1 << 20

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")


def parse_config(text: str) -> dict[str, Any]:
    """The configuration in a model file, less its ``format``.

    Raises ValueError saying what is wrong with it.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ValueError(f"its configuration is longer than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(text)
        _check_value(config, _DEEPEST)
    except RecursionError:
        raise ValueError("its configuration is nested too deeply") from None
    if not isinstance(config, dict):
        raise ValueError("its configuration is not a JSON object")
    version = config.pop("format", None)
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"it is of format {version!r}, this release reads {FORMAT}: update strata-images"
        )
    return config


def _check_value(value: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError("its configuration is nested too deeply")
    if isinstance(value, dict | list):
        if len(value) > _LONGEST_LIST:
            raise ValueError(f"its configuration has a list of {len(value)} entries")
        for one in value.values() if isinstance(value, dict) else value:
            _check_value(one, depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("its configuration has a number that is not finite")
    elif isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
        raise ValueError(f"its configuration has the number {value:g}")


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError for types that models do not have, and for numbers that are not finite."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"its tensor {name} is of type {tensor.dtype}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"its tensor {name} has numbers that are not finite")


def check_shapes(
    tensors: Mapping[str, Tensor],
    expected: Iterable[tuple[str, tuple[int, ...], torch.dtype | None]],
) -> None:
    """Raises InvalidModelError unless each (name, shape, type or None for any float) is there."""
    for name, shape, dtype in expected:
        if name not in tensors:
            raise InvalidModelError(f"the model lacks its tensor {name}")
        tensor = tensors[name]
        kind = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
        if tuple(tensor.shape) != tuple(shape) or not kind:
            raise InvalidModelError(
                f"the model's tensor {name} is {tuple(tensor.shape)} {tensor.dtype}, not "
                f"{tuple(shape)} {dtype or 'float'}"
            )


def below(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The entries whose names begin with ``prefix``, without it."""
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


class _Budget(TorchFunctionMode):
    """Raises InvalidModelError once tensors with more than ``numbers`` elements have been made."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _FACTORIES:
            sizes = args[0] if args and not isinstance(args[0], int) else args
            self.left -= math.prod(n for n in sizes if isinstance(n, int))
            if self.left < 0:
                raise InvalidModelError("the configuration is of a larger model than the tensors")
        return func(*args, **(kwargs or {}))


def build(make: Callable[[], Module], tensors: Mapping[str, Tensor]) -> Module:
    """The module of ``make``, whose parameters and buffers must all be among ``tensors``.

    Does not load them. Raises InvalidModelError for tensors that are missing or of another shape,
    and for a module several times as large as the tensors, before it takes that memory.
    """
    with _Budget(_SPARE + 4 * sum(tensor.numel() for tensor in tensors.values())):
        module = make()
    state = module.state_dict()
    check_shapes(tensors, ((name, tuple(value.shape), None) for name, value in state.items()))
    return module
