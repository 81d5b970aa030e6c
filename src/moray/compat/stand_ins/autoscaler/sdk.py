"""What programs tell an autoscaler. Launchers import the module even where they never start a machine."""

from __future__ import annotations

from typing import Any

__all__ = ["request_resources"]


def request_resources(
    num_cpus: int | None = None,
    bundles: list[dict[str, Any]] | None = None,
    bundle_label_selectors: list[dict[str, str]] | None = None,
) -> None:
    """Accepted without effect: it asks for machines, and nothing here starts any."""
