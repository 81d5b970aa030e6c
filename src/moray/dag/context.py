"""Settings of compiled graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

from moray import config

_current: DAGContext | None = None


@dataclass
class DAGContext:
    """Settings of the graphs that this process compiles from now on; ``DAGContext.get_current()`` is the one in force.

    Each begins with the value of the variable ``MORAY_CGRAPH_<name>`` (or ``RAY_CGRAPH_<name>``), if it is set.

    Attributes:
        submit_timeout: seconds that ``execute()`` waits at most until one more execution may be under way.
        get_timeout: seconds that a result is waited for at most if ``get`` is given no timeout; -1: no limit.
        teardown_timeout: seconds that ``teardown()`` waits for the steps that run.
        buffer_size_bytes: least memory for a message that does not fit into a slot of the ring (8 KB).
        max_inflight_executions: executions that may be under way, and that one may begin without asking for results.
        max_buffered_results: executions whose results were not fetched while that of a later one was.

    Example:
        >>> from moray.dag import DAGContext
        >>> DAGContext.get_current().max_inflight_executions
        10
    """

    submit_timeout: float = field(default_factory=lambda: config.env_float("CGRAPH_submit_timeout", 10.0))
    get_timeout: float = field(default_factory=lambda: config.env_float("CGRAPH_get_timeout", 10.0))
    teardown_timeout: float = field(default_factory=lambda: config.env_float("CGRAPH_teardown_timeout", 30.0))
    buffer_size_bytes: int = field(default_factory=lambda: config.env_int("CGRAPH_buffer_size_bytes", 1_000_000))
    max_inflight_executions: int = field(default_factory=lambda: config.env_int("CGRAPH_max_inflight_executions", 10))
    max_buffered_results: int = field(default_factory=lambda: config.env_int("CGRAPH_max_buffered_results", 1000))

    @staticmethod
    def get_current() -> DAGContext:
        """The settings in force, which may be changed."""
        global _current
        if _current is None:
            _current = DAGContext()
        return _current
