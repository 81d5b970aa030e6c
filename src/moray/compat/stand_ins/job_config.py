"""``ray.job_config``: what ``init(job_config=…)`` takes."""

from __future__ import annotations

from typing import Any

__all__ = ["JobConfig"]


class JobConfig:
    """Settings of a job; `runtime_env` and `ray_namespace` are used, the others accepted."""

    def __init__(
        self,
        jvm_options: list[str] | None = None,
        code_search_path: list[str] | None = None,
        runtime_env: dict[str, Any] | None = None,
        _client_job: bool = False,
        metadata: dict[str, str] | None = None,
        ray_namespace: str | None = None,
        default_actor_lifetime: str = "non_detached",
        _py_driver_sys_path: list[str] | None = None,
    ) -> None:
        self.jvm_options = jvm_options or []
        self.code_search_path = code_search_path or []
        self.runtime_env = runtime_env or {}
        self.metadata = metadata or {}
        self.ray_namespace = ray_namespace
        if default_actor_lifetime != "non_detached":
            raise ValueError(
                f"default_actor_lifetime={default_actor_lifetime!r}: moray takes an actor's lifetime from its own "
                'options only: Cls.options(lifetime="detached")'
            )

    def set_metadata(self, key: str, value: str) -> None:
        """Add one entry of metadata."""
        self.metadata[key] = value

    def set_runtime_env(self, runtime_env: dict[str, Any] | None, validate: bool = False) -> None:  # noqa: ARG002
        """Replace the runtime environment; `init` looks at what is in it."""
        self.runtime_env = runtime_env or {}

    def set_ray_namespace(self, ray_namespace: str) -> None:
        """Replace the namespace."""
        self.ray_namespace = ray_namespace
