"""What computing on a device needs: arithmetic that is as exact as can be.

Users set torch to trade precision for speed: TF32, bfloat16 products, autocast. None of that may
reach a network on whose numbers encoder and decoder must agree.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import onednn

_Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]  # get, set, what we need


class _Settings:
    """Settings of the whole process, ours while anybody is inside, the user's otherwise."""

    def __init__(self, *settings: _Setting) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._inside = 0
        self._users: list[Any] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                # Each is read just before it is set: some hide what is stored in others.
                self._users = []
                for get, put, ours in self._settings:
                    self._users.append(get())
                    put(ours)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    for (_, put, _), user in zip(
                        reversed(self._settings), reversed(self._users), strict=True
                    ):
                        put(user)


def _attribute(owner: Any, name: str, ours: Any) -> _Setting:
    return (lambda: getattr(owner, name), lambda value: setattr(owner, name, value), ours)


def _older(get: Callable[[], Any], put: Callable[[str], None], last: Any) -> Callable[[], Any]:
    """Reads a setting of torch's older API, though the newer one says something else.

    Torch refuses to while the two contradict each other, so ``put`` sets the newer one to what
    agrees with one possible answer after the other.
    """

    def read() -> Any:
        for precision in ("ieee", "tf32"):
            put(precision)
            try:
                return get()
            except RuntimeError:
                continue
        return last

    return read


def _float32() -> list[_Setting]:
    """Settings that make float32 products float32. What has 16 bits is never computed with here."""
    backends: Any = torch.backends
    cudnn, matmul = backends.cudnn, backends.cuda.matmul

    def put_matmuls(precision: str) -> None:
        matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision = precision, "ieee"

    def put_cudnn(precision: str) -> None:
        cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = precision

    def put_older_cudnn(allowed: bool) -> None:
        cudnn.allow_tf32 = allowed
        put_cudnn("tf32" if allowed else "ieee")

    put_older_matmul = torch.set_float32_matmul_precision
    get_older_matmul = torch.get_float32_matmul_precision
    others = [_attribute(cudnn, "benchmark", False), _attribute(cudnn, "deterministic", True)]
    if not hasattr(backends, "fp32_precision"):  # before torch 2.9
        older = [_attribute(cudnn, "allow_tf32", False)]
        return [(get_older_matmul, put_older_matmul, "highest"), *older, *others]
    newer = [_attribute(owner, "fp32_precision", "none") for owner in (backends, cudnn)]
    owners = (matmul, backends.mkldnn.matmul, backends.mkldnn.conv, cudnn.conv, cudnn.rnn)
    newer += [_attribute(owner, "fp32_precision", "ieee") for owner in owners]
    return [
        *newer,
        (_older(get_older_matmul, put_matmuls, "medium"), put_older_matmul, "highest"),
        (_older(lambda: cudnn.allow_tf32, put_cudnn, True), put_older_cudnn, False),
        *others,
    ]


_full_precision = _Settings(*_float32())
_nnpack: Any = torch.backends.nnpack
# Convolutions that add up products, and nothing else: cuDNN, and NNPACK for 16 pictures and more,
# have faster kernels (Winograd's, Fourier's) whose sums are not exact even where float32 could be.
direct_convolutions = _Settings(
    _attribute(torch.backends.cudnn, "enabled", False),
    (lambda: _nnpack.set_flags(False)[0], lambda enabled: _nnpack.set_flags(enabled), False),
)
without_mkldnn = _Settings(_attribute(torch.backends.mkldnn, "enabled", False))
# For those who look at each product: in float32 even where CPUs are faster at 8-bit integers.
without_bytes = _Settings(_attribute(onednn, "wanted", False))


@contextmanager
def full_precision(device: torch.device | str) -> Iterator[None]:
    """float32 is float32, whatever torch's settings and autocast say, and the same kernels run.

    Settings are the whole process's: other threads that compute meanwhile have ours, too. The
    user's are back once the last thread has left.
    """
    with _full_precision(), torch.autocast(torch.device(device).type, enabled=False):
        yield


def mixed_precision(device: torch.device | str) -> torch.autocast:
    """bfloat16 for the products of what is trained, where the device has them and they are quick.

    On GPUs, and on processors with AVX512-BF16 or AMX.
    """
    kind = torch.device(device).type
    enabled = kind == "cuda" or (kind == "cpu" and _bfloat16_is_faster())
    return torch.autocast(kind if enabled else "cpu", torch.bfloat16, enabled=enabled)


@functools.cache
def _bfloat16_is_faster() -> bool:
    """Whether this processor's products of bfloat16 are. Takes some milliseconds, once."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(4096, 64, dtype=dtype), torch.ones(64, 256, dtype=dtype)
        found = []
        for _ in range(4):  # the first one warms up
            begun = time.perf_counter()
            a @ b
            found.append(time.perf_counter() - begun)
        return min(found[1:])

    return seconds(torch.bfloat16) < seconds(torch.float32)
