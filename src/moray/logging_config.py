"""``moray.LoggingConfig``: how the root loggers of a job's driver and workers are to be set up."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

ENCODINGS: Final = ("TEXT", "JSON")
#: What a record has of itself, without what every line says anyway.
STANDARD_ATTRS: Final = (
    "name", "levelno", "pathname", "module", "created", "msecs", "relativeCreated", "thread", "threadName",
    "process", "processName", "funcName", "exc_info", "exc_text", "stack_info", "msg", "args", "taskName",
)  # fmt: skip
#: What every line says.
BASE_ATTRS: Final = ("asctime", "levelname", "message", "filename", "lineno")


@dataclass
class LoggingConfig:
    """The root logger of a job: pass it to ``init(logging_config=…)``.

    Args:
        encoding: "TEXT", a line for people; or "JSON", one object per line.
        log_level: a level of :mod:`logging` by its name, such as "DEBUG".
        additional_log_standard_attrs: further attributes of ``logging.LogRecord`` to include, such as "name".

    Raises:
        ValueError: an unknown encoding, level or attribute; the valid ones are named.

    Example:
        >>> import moray
        >>> moray.LoggingConfig(encoding="JSON", log_level="DEBUG").to_dict()["encoding"]
        'JSON'
    """

    encoding: str = "TEXT"
    log_level: str = "INFO"
    additional_log_standard_attrs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ValueError(f"LoggingConfig: encoding={self.encoding!r} should be one of {', '.join(ENCODINGS)}")
        levels = logging.getLevelNamesMapping()
        if self.log_level not in levels:
            raise ValueError(f"LoggingConfig: log_level={self.log_level!r} should be one of {', '.join(levels)}")
        for attr in self.additional_log_standard_attrs:
            if attr not in STANDARD_ATTRS and attr not in BASE_ATTRS:
                raise ValueError(
                    f"LoggingConfig: additional_log_standard_attrs has {attr!r}, which log records do not have; "
                    f"they have {', '.join(sorted(STANDARD_ATTRS))}"
                )

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; TypeError for a name that it does not know."""
        known = [each.name for each in fields(cls)]
        if unknown := [name for name in d if name not in known]:
            raise TypeError(f"LoggingConfig has no {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
        return cls(**d)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-like values."""
        return asdict(self)
