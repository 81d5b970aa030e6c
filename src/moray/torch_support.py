"""torch tensors in blobs: CPU tensors travel as their memory, out of band, and are read in place.

torch has no read-only tensors, and programs change them in place. So blobs with tensors in them have a
form of their own (:data:`moray.protocol.blobs.OWN_PAGES`), and who reads one gets a private mapping of it:
nothing is copied but the pages that are written to, and nobody else sees what is written (SNAPSHOT).
"""

from __future__ import annotations

import ctypes
import sys
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
    # The array says that it is read-only, as all arrays from get() do, and torch would warn of that.
    memory = (ctypes.c_char * data.nbytes).from_address(data.ctypes.data)
    memory._array = data
    return torch.frombuffer(memory, dtype=torch.uint8).view(kind).reshape(shape)
