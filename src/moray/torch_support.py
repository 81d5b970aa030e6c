"""torch tensors in blobs: CPU tensors travel as their memory, out of band, and are read in place.

torch has no read-only tensors. A tensor made over read-only memory would warn, and writing to it would
end the process, so the warning is answered here once and for all: **a tensor from get() or from a task's
arguments shares read-only memory; call ``.clone()`` before changing it in place.**
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any


def install(reducers: dict[type, Callable[[Any], Any]]) -> None:
    """Add the reducer for tensors, once torch is there."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    if tensor is not None and tensor not in reducers:
        reducers[tensor] = _reduce


def _reduce(tensor: Any) -> Any:
    if (
        tensor.device.type != "cpu"
        or tensor.layout is not sys.modules["torch"].strided
        or tensor.requires_grad
        or tensor.is_conj()
        or tensor.is_neg()
    ):
        return tensor.__reduce_ex__(5)
    flat = tensor.contiguous()
    data = flat.reshape(-1).view(sys.modules["torch"].uint8).numpy() if flat.numel() else None
    return _rebuild, (data, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _rebuild(data: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind = getattr(torch, dtype)
    if data is None:
        return torch.empty(shape, dtype=kind)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(data).view(kind).reshape(shape)
