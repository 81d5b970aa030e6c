"""What programs ask an autoscaler for. There is none yet: see each function for what it does instead.

Launchers import this module even where they never start a machine, so it is always there.
"""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

__all__ = [
    "bootstrap_config", "configure_logging", "create_or_update_cluster", "fillout_defaults",
    "get_docker_host_mount_location", "get_head_node_ip", "get_worker_node_ips", "register_callback_handler",
    "request_resources", "rsync", "run_on_cluster", "teardown_cluster",
]  # fmt: skip


def request_resources(
    num_cpus: int | None = None,
    bundles: list[dict[str, Any]] | None = None,
    bundle_label_selectors: list[dict[str, str]] | None = None,
) -> None:
    """Ask for machines. Accepted without effect, with a warning: nothing here starts any yet.

    Args:
        num_cpus: CPUs that the cluster should have.
        bundles: amounts of resources, each to fit on one machine.
        bundle_label_selectors: for each bundle, the labels that its machine should have.

    Example:
        >>> import warnings
        >>> from moray.autoscaler.sdk import request_resources
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     request_resources(num_cpus=64)
        >>> "starts none yet" in str(caught[0].message)
        True
    """
    asked = [f"{num_cpus} CPUs"] if num_cpus is not None else []
    asked += [f"{len(bundles)} bundles"] if bundles else []
    asked += [f"{len(bundle_label_selectors)} label selectors"] if bundle_label_selectors else []
    warnings.warn(
        f"request_resources({', '.join(asked)}) asks for machines, and moray starts none yet: the request is ignored. "
        "Start them with `moray start --address=HOST:PORT`",
        UserWarning,
        stacklevel=2,
    )


def _later(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}(): moray does not start or reach machines by itself yet. Start nodes with `moray start` on each "
        "machine, or with moray.cluster_utils.Cluster for tests"
    )


def create_or_update_cluster(cluster_config: dict[str, Any] | str, **_options: Any) -> dict[str, Any]:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("create_or_update_cluster")


def teardown_cluster(cluster_config: dict[str, Any] | str, **_options: Any) -> None:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("teardown_cluster")


def run_on_cluster(cluster_config: dict[str, Any] | str, **_options: Any) -> str | None:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("run_on_cluster")


def rsync(cluster_config: dict[str, Any] | str, **_options: Any) -> None:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("rsync")


def get_head_node_ip(cluster_config: dict[str, Any] | str) -> str:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("get_head_node_ip")


def get_worker_node_ips(cluster_config: dict[str, Any] | str) -> list[str]:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config
    _later("get_worker_node_ips")


def configure_logging(
    log_style: str | None = None, color_mode: str | None = None, verbosity: int | None = None
) -> None:
    """Accepted without effect: there is no output to shape."""
    del log_style, color_mode, verbosity


def bootstrap_config(cluster_config: dict[str, Any], no_config_cache: bool = False) -> dict[str, Any]:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_config, no_config_cache
    _later("bootstrap_config")


def fillout_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del config
    _later("fillout_defaults")


def register_callback_handler(event_name: str, callback: Any) -> None:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del event_name, callback
    _later("register_callback_handler")


def get_docker_host_mount_location(cluster_name: str) -> str:
    """Raises NotImplementedError: it comes with the autoscaler."""
    del cluster_name
    _later("get_docker_host_mount_location")
