"""What programs tell an autoscaler. Launchers import the module even where they never start a machine."""

from __future__ import annotations

import warnings
from typing import Any

__all__ = ["request_resources"]


def request_resources(
    num_cpus: int | None = None,  # noqa: ARG001 - Ray's parameters.
    bundles: list[dict[str, Any]] | None = None,  # noqa: ARG001
    bundle_label_selectors: list[dict[str, str]] | None = None,  # noqa: ARG001
) -> None:
    """Accepted without effect, with a warning: it asks for machines, and nothing here starts any."""
    warnings.warn(
        "request_resources() asks for machines, and this version of moray starts none: the request is ignored",
        UserWarning,
        stacklevel=2,
    )
