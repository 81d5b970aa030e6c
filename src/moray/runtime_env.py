"""A runtime environment as an object: a dict of its fields, which every ``runtime_env=`` takes.

What moray sets up of it, and what it refuses, is said where it is used: in `docs/code-shipping.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["RuntimeEnv", "RuntimeEnvConfig"]


class RuntimeEnvConfig(dict[str, Any]):
    """How an environment is set up. moray sets environments up when a worker starts, and needs none of these.

    Args:
        setup_timeout_seconds: seconds that setting up may take, or -1 for any time.
        eager_install: set up when the job starts, not when the first task needs it.
        log_files: paths of files to log to.

    Raises:
        TypeError: a value has a wrong type.
        ValueError: `setup_timeout_seconds` is 0 or less than -1.
    """

    def __init__(
        self, setup_timeout_seconds: int = 600, eager_install: bool = True, log_files: list[str] | None = None
    ) -> None:
        if isinstance(setup_timeout_seconds, bool) or not isinstance(setup_timeout_seconds, int):
            raise TypeError(f"setup_timeout_seconds={setup_timeout_seconds!r} should be a whole number of seconds")
        if setup_timeout_seconds < 1 and setup_timeout_seconds != -1:
            raise ValueError(f"setup_timeout_seconds={setup_timeout_seconds} should be positive, or -1 for no limit")
        if not isinstance(eager_install, bool):
            raise TypeError(f"eager_install={eager_install!r} should be True or False")
        paths: Any = [] if log_files is None else log_files
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"log_files={log_files!r} should be a list of paths")
        super().__init__(setup_timeout_seconds=setup_timeout_seconds, eager_install=eager_install, log_files=paths)

    @staticmethod
    def default_config() -> dict[str, Any]:
        """The values of all that is not given."""
        return dict(RuntimeEnvConfig())

    @classmethod
    def parse_and_validate_runtime_env_config(cls, config: Mapping[str, Any]) -> Self:
        """The same from a dict of its fields. Raises as the class does."""
        return config if isinstance(config, cls) else cls(**config)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict."""
        return dict(self)


class RuntimeEnv(dict[str, Any]):
    """The fields that were given, and only those.

    Args:
        py_modules: modules, or paths of packages, wheels and archives, that workers can import.
        working_dir: the directory in which workers start.
        env_vars: environment variables of workers.
        config: see :class:`RuntimeEnvConfig`.
        others: further fields; what moray cannot set up is refused where the environment is used.

    Example:
        >>> from moray.runtime_env import RuntimeEnv
        >>> RuntimeEnv(env_vars={"COLOUR": "blue"})
        {'env_vars': {'COLOUR': 'blue'}}
    """

    def __init__(
        self,
        *,
        py_modules: list[Any] | None = None,
        working_dir: str | None = None,
        env_vars: dict[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
        _validate: bool = True,
        **others: Any,
    ) -> None:
        if config is not None:
            config = RuntimeEnvConfig.parse_and_validate_runtime_env_config(config)
        fields = {"py_modules": py_modules, "working_dir": working_dir, "env_vars": env_vars, "config": config} | others
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """A plain dict."""
        return {name: dict(value) if isinstance(value, RuntimeEnvConfig) else value for name, value in self.items()}

    def serialize(self) -> str:
        """The fields as JSON, in the order of their names."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def deserialize(cls, serialized_runtime_env: str) -> Self:
        """The environment that `serialize` has written."""
        return cls(_validate=False, **json.loads(serialized_runtime_env))

    def env_vars(self) -> dict[str, str]:
        """Its environment variables."""
        return dict(self.get("env_vars") or {})

    def py_modules(self) -> list[Any]:
        """Its modules."""
        return list(self.get("py_modules") or [])

    def working_dir(self) -> str:
        """Its working directory, "" if none."""
        return str(self.get("working_dir") or "")

    def has_working_dir(self) -> bool:
        """It names a working directory."""
        return bool(self.get("working_dir"))

    def has_pip(self) -> bool:
        """It names packages for pip, which moray does not install."""
        return bool(self.get("pip"))

    def has_uv(self) -> bool:
        """It names packages for uv, which moray does not install."""
        return bool(self.get("uv"))

    def has_conda(self) -> bool:
        """It names an environment of conda, which moray does not set up."""
        return bool(self.get("conda"))

    def set(self, name: str, value: Any) -> None:
        """Replace a field; None takes it out."""
        if value is None:
            self.pop(name, None)
        else:
            self[name] = value
