"""``ray.runtime_env``: a runtime environment as an object, which is a dict of its fields."""

from __future__ import annotations

from typing import Any

__all__ = ["RuntimeEnv"]


class RuntimeEnv(dict[str, Any]):
    """The fields that were given, and only those: ``RuntimeEnv(env_vars={"A": "1"})["env_vars"]``."""

    def __init__(self, **fields: Any) -> None:
        fields.pop("_validate", None)
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)

    def env_vars(self) -> dict[str, str]:
        """Its environment variables."""
        return dict(self.get("env_vars", {}))

    def working_dir(self) -> str:
        """Its working directory, "" if none."""
        return str(self.get("working_dir", ""))

    def set(self, name: str, value: Any) -> None:
        """Replace a field."""
        self[name] = value
