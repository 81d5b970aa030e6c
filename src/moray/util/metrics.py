"""Counters, gauges and histograms with tags.

Each process keeps its own values, workers too; :func:`collect` gives those of the process that calls it. Objects of the
same name are one metric.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final, NamedTuple

__all__ = ["Counter", "Gauge", "Histogram", "Metric", "Sample", "collect"]


class Sample(NamedTuple):
    """One value of :func:`collect`."""

    name: str
    #: "counter", "gauge" or "histogram".
    kind: str
    description: str
    tags: dict[str, str]
    #: Of a histogram: the sum of what was observed.
    value: float
    #: Of a histogram: how much was observed, and how much of it was at most each boundary.
    observations: int = 0
    buckets: dict[float, int] = {}  # noqa: RUF012 - nobody changes it.


class _Series:
    """The values of one metric of this process, by tags."""

    def __init__(self, name: str, kind: str, description: str, boundaries: list[float]) -> None:
        self.name = name
        self.kind = kind
        self.description = description
        self.boundaries = boundaries
        #: Tags, sorted → [value], or of a histogram [sum, how many in each interval ...]. Guarded by `_lock`.
        self.values: dict[tuple[tuple[str, str], ...], list[float]] = {}


#: Guards all that follows. Reentrant: a signal handler may count too.
_lock: Final = threading.RLock()
_series: dict[str, _Series] = {}


class Metric:
    """What the three kinds have in common; it is not made itself.

    Args:
        name: letters, digits, "_" and ":"; not a digit first.
        description: what it measures.
        tag_keys: names of its tags.
    """

    _kind = ""

    def __init__(self, name: Any, description: str = "", tag_keys: Any = None) -> None:
        if not self._kind:
            raise TypeError("Metric is not made itself: make a Counter, a Gauge or a Histogram")
        if not isinstance(name, str) or not name:
            raise ValueError(f"a metric's name must be a string that is not empty, not {name!r:.80}")
        if not (name.replace(":", "_").isidentifier() and name.isascii()):
            raise ValueError(f"a metric's name has letters, digits, '_' and ':' only, and no digit first; not {name!r}")
        if tag_keys is not None and not isinstance(tag_keys, (tuple, list)):
            raise TypeError(f"tag_keys must be a tuple of strings, not {tag_keys!r:.80}")
        for key in tag_keys or ():
            if not isinstance(key, str):
                raise TypeError(f"tag_keys must be strings, not {key!r:.80}")
        self._name = name
        self._description = description
        self._tag_keys = tuple(tag_keys or ())
        self._default_tags: dict[str, str] = {}
        self._boundaries: list[float] = []

    @property
    def info(self) -> dict[str, Any]:
        """``name``, ``description``, ``tag_keys`` and ``default_tags``."""
        return {
            "name": self._name,
            "description": self._description,
            "tag_keys": self._tag_keys,
            "default_tags": dict(self._default_tags),
        }

    def set_default_tags(self, default_tags: dict[str, str]) -> Metric:
        """Tags of all values that are recorded without them; returns the metric itself."""
        self._check_tags(default_tags)
        self._default_tags = dict(default_tags)
        return self

    def _check_tags(self, tags: dict[str, str]) -> None:
        for key, value in tags.items():
            if key not in self._tag_keys:
                known = ", ".join(self._tag_keys) or "none"
                raise ValueError(f"metric {self._name} has no tag {key!r}; its tag_keys are: {known}")
            if not isinstance(value, str):
                raise TypeError(f"tag {key!r} of metric {self._name} must be a string, not {value!r:.80}")

    def _cell(self, tags: dict[str, str] | None) -> list[float]:
        """Where the value with these tags is kept; a tag without a value is "". Under the lock."""
        if tags:
            self._check_tags(tags)
        merged = {**self._default_tags, **(tags or {})}
        series = _series.get(self._name)
        if series is None:
            series = _series[self._name] = _Series(self._name, self._kind, self._description, self._boundaries)
        elif series.kind != self._kind or series.boundaries != self._boundaries:
            raise ValueError(
                f"metric {self._name} is a {series.kind} with boundaries {series.boundaries} in this process already; "
                f"this is a {self._kind} with {self._boundaries}"
            )
        key = tuple(sorted((name, merged.get(name, "")) for name in self._tag_keys))
        return series.values.setdefault(key, [0.0] * (len(self._boundaries) + 2 if self._boundaries else 1))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (
            type(self),
            self._name,
            self._description,
            self._tag_keys,
            self._boundaries,
            self._default_tags,
        )


class Counter(Metric):
    """A number that only grows.

    Example:
        >>> from moray.util.metrics import Counter, collect
        >>> requests = Counter("doc_requests", description="Requests.", tag_keys=("route",))
        >>> requests.inc(tags={"route": "/a"})
        >>> [sample.value for sample in collect("doc_requests")]
        [1.0]
    """

    _kind = "counter"

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        """Add `value`, which must be positive."""
        _check_number(self._name, value)
        if value <= 0:
            raise ValueError(f"metric {self._name}: a counter grows by a value > 0, not by {value}")
        with _lock:
            self._cell(tags)[0] += value


class Gauge(Metric):
    """A number that goes up and down."""

    _kind = "gauge"

    def set(self, value: float | None, tags: dict[str, str] | None = None) -> None:
        """Replace the value; None leaves it."""
        if value is None:
            return
        _check_number(self._name, value)
        with _lock:
            self._cell(tags)[0] = float(value)


class Histogram(Metric):
    """How often values lie between boundaries.

    Args:
        name: as for all metrics.
        description: as for all metrics.
        boundaries: upper ends of the intervals, growing, > 0; the last interval has no end.
        tag_keys: as for all metrics.
    """

    _kind = "histogram"

    def __init__(
        self,
        name: str,
        description: str = "",
        boundaries: list[float] | None = None,
        tag_keys: tuple[str, ...] | None = None,
    ) -> None:
        super().__init__(name, description, tag_keys)
        if not boundaries:
            raise ValueError(f"histogram {name} needs boundaries, such as boundaries=[0.1, 1.0, 10.0]")
        ends = [float(end) for end in boundaries]
        if ends[0] <= 0 or any(low >= high for low, high in pairwise(ends)):
            raise ValueError(f"histogram {name}: boundaries must be > 0 and grow; they are {list(boundaries)}")
        self._boundaries = ends

    @property
    def info(self) -> dict[str, Any]:
        """As for all metrics, and ``boundaries``."""
        return {**super().info, "boundaries": list(self._boundaries)}

    def observe(self, value: float, tags: dict[str, str] | None = None) -> None:
        """Count one value."""
        _check_number(self._name, value)
        with _lock:
            cell = self._cell(tags)
            cell[0] += value
            cell[1 + bisect_left(self._boundaries, value)] += 1


def collect(name: str | None = None) -> list[Sample]:
    """The values of this process's metrics, or of the one called `name`, sorted by name and tags."""
    with _lock:
        found: Iterable[_Series] = [series for series in _series.values() if name in (None, series.name)]
        cells = [(series, key, list(cell)) for series in found for key, cell in series.values.items()]
    cells.sort(key=lambda item: (item[0].name, item[1]))
    return [_sample(series, dict(key), cell) for series, key, cell in cells]


def _sample(series: _Series, tags: dict[str, str], cell: list[float]) -> Sample:
    if not series.boundaries:
        return Sample(series.name, series.kind, series.description, tags, cell[0])
    total = 0
    buckets = {}
    for end, number in zip([*series.boundaries, float("inf")], cell[1:], strict=True):
        total += int(number)
        buckets[end] = total
    return Sample(series.name, series.kind, series.description, tags, cell[0], total, buckets)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"metric {name} takes numbers, not {value!r:.80} ({type(value).__name__})")


def _rebuild(
    kind: type[Metric],
    name: str,
    description: str,
    tag_keys: tuple[str, ...],
    boundaries: list[float],
    default_tags: dict[str, str],
) -> Metric:
    """Unpickle: the same metric, with the values of the process it has come to."""
    extra: dict[str, Any] = {"boundaries": boundaries} if boundaries else {}
    return kind(name, description, tag_keys=tag_keys, **extra).set_default_tags(default_tags)
