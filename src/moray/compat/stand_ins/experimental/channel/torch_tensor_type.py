"""``ray.experimental.channel.torch_tensor_type``: how a step's tensors shall travel."""

from __future__ import annotations

from typing import Any

__all__ = ["TorchTensorType"]


class TorchTensorType:
    """Accepted by ``with_tensor_transport`` and ``with_type_hint``; tensors travel as other values do."""

    def __init__(self, transport: Any = "auto", device: Any = "default", **options: Any) -> None:
        self.transport = transport
        self.device = device
        self.options = options
