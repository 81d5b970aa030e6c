"""Tools beside the core API."""

from moray.check_serialize import inspect_serializability

__all__ = ["inspect_serializability"]
