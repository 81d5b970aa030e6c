"""The loggers of a job: what ``init(logging_config=…, logging_level=…)`` asks for, in the driver and in its workers.

The settings travel to the workers in one variable of the job's environment, which a worker takes out of its own at its
start: what tasks start does not inherit it, and neither do sessions that they begin.

A line says when, how bad, where and what, and then where in the session it was said: ids are asked for when a line is
written, because a worker runs many tasks.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Final, TextIO

from moray.runtime import state

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from moray.logging_config import LoggingConfig
    from moray.runtime.runtime import Runtime

#: In a job's environment: the settings of its workers, as JSON.
VARIABLE: Final = "MORAY_JOB_LOGGING"
#: The format of moray's own messages.
DEFAULT_FORMAT: Final = "%(asctime)s %(levelname)s %(filename)s:%(lineno)s -- %(message)s"


# --- settings -------------------------------------------------------------------------------------------


class JobLogging:
    """What one ``init`` asks for, checked."""

    def __init__(self, options: dict[str, Any]) -> None:
        from moray import config as environment
        from moray.logging_config import LoggingConfig

        self.config: LoggingConfig | None = options.get("logging_config")
        if self.config is not None and not isinstance(self.config, LoggingConfig):
            raise TypeError(
                f"init(): logging_config={self.config!r} should be a moray.LoggingConfig, such as "
                'moray.LoggingConfig(encoding="JSON")'
            )
        #: Whether the logger "moray" is to be set up.
        self.configure = options.get("configure_logging", True)
        self.level = _level(options.get("logging_level", "info"))
        self.format = options.get("logging_format") or DEFAULT_FORMAT
        wanted = options.get("log_to_driver")
        #: Whether the driver prints what workers print.
        self.to_driver = environment.env_bool("LOG_TO_DRIVER", True) if wanted is None else bool(wanted)

    def add_to(self, environ: dict[str, str]) -> None:
        """Put what workers must know into the job's environment."""
        environ.pop(VARIABLE, None)
        if self.config is not None or not self.to_driver:
            settings: dict[str, Any] = {"log_to_driver": self.to_driver}
            if self.config is not None:
                settings["logging_config"] = self.config.to_dict()
            environ[VARIABLE] = json.dumps(settings)

    def install(self) -> Callable[[], None]:
        """Set up the driver's loggers; the call that undoes it."""
        undo: list[Callable[[], None]] = []
        if self.config is not None:
            undo.append(set_root(self.config))
        if self.configure:
            undo.append(_set_own(self.config, self.level, self.format))

        def undo_all() -> None:
            for step in reversed(undo):
                step()

        return undo_all


def configure_worker() -> bool:
    """Set up the root logger of this worker; whether its output is wanted at the driver's."""
    text = os.environ.pop(VARIABLE, "")
    if not text:
        return True
    settings = json.loads(text)
    if "logging_config" in settings:
        from moray.logging_config import LoggingConfig

        set_root(LoggingConfig.from_dict(settings["logging_config"]))
    return bool(settings["log_to_driver"])


def _level(given: Any) -> int:
    import logging

    levels = logging.getLevelNamesMapping()
    if isinstance(given, str) and given.upper() in levels:
        return levels[given.upper()]
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    raise ValueError(f"init(): logging_level={given!r} should be a level of logging: a number, or {', '.join(levels)}")


# --- loggers ----------------------------------------------------------------------------------------------


def set_root(config: LoggingConfig) -> Callable[[], None]:
    """Have the root logger write to stderr as `config` says, instead of the plain handlers that it has; the undoing."""
    import logging

    root = logging.getLogger()
    handler = _handler(Lines(config.encoding, config.additional_log_standard_attrs))
    before, level = list(root.handlers), root.level
    # Handlers of other kinds (files, those of test tools) have readers of their own.
    replaced = [each for each in before if type(each) is logging.StreamHandler]
    for each in replaced:
        root.removeHandler(each)
    root.addHandler(handler)
    root.setLevel(config.log_level)

    def undo() -> None:
        root.removeHandler(handler)
        for each in replaced:
            root.addHandler(each)
        root.setLevel(level)

    return undo


def _set_own(config: LoggingConfig | None, level: int, text_format: str) -> Callable[[], None]:
    """The logger "moray": through the root's handler if that is ours, else to stderr by one of its own."""
    import logging

    logger = logging.getLogger("moray")
    before = (logger.level, logger.propagate)
    logger.setLevel(level)
    handler: logging.Handler | None = None
    if config is None and not logger.handlers:
        handler = _handler(logging.Formatter(text_format))
        logger.addHandler(handler)
        logger.propagate = False

    def undo() -> None:
        if handler is not None:
            logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]

    return undo


def _handler(formatter: Any) -> logging.Handler:
    import logging
    import sys

    from moray.runtime.screen import screen

    class Handler(logging.Handler):
        """Writes to the present sys.stderr, above progress bars."""

        def emit(self, record: logging.LogRecord) -> None:
            try:
                text = self.format(record) + "\n"
                if sys.stderr is not None:
                    screen.above(lambda: _write(sys.stderr, text))
            except Exception:  # noqa: BLE001 - what logging does with a handler's errors is the user's choice.
                self.handleError(record)

    handler = Handler()
    handler.setFormatter(formatter)
    return handler


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


# --- lines --------------------------------------------------------------------------------------------------


def session_fields() -> dict[str, str]:
    """Where in the session the caller is: ids in hex and names, those that apply."""
    runtime = state.runtime
    if runtime is None or runtime.forked:
        return {}
    found = {
        "job_id": runtime.job.hex(),
        "worker_id": runtime.process.hex(),
        "node_id": runtime.welcome.node_id.hex(),
    }
    actor = running_actor(runtime)
    if actor is not None:
        found["actor_id"] = actor.actor.hex()
        if actor.creation.name:
            found["actor_name"] = actor.creation.name
    task = runtime.current_task_id()
    if task is not None:
        found["task_id"] = task.hex()
        found["task_name"] = runtime.task_name()
        found["task_func_name"] = runtime.function_name()
    return found


def running_actor(runtime: Runtime) -> Any:
    """The actor that this process is (:class:`~moray.runtime.actor_host.ActorHost`); None if it is none."""
    executor = getattr(runtime, "executor", None)
    return executor.host if executor is not None else None


class Lines:
    """A formatter: what the record says, then :func:`session_fields`, then what the user added (``extra=``)."""

    def __init__(self, encoding: str, attrs: list[str]) -> None:
        import logging

        self._json = encoding == "JSON"
        self._attrs = list(attrs)
        self._plain = logging.Formatter("%(asctime)s\t%(levelname)s %(filename)s:%(lineno)s -- %(message)s")
        #: Names that every record has: others were added by the user.
        self._standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of text or one JSON object."""
        if record.exc_info and not record.exc_text:
            record.exc_text = self._plain.formatException(record.exc_info)
        more: dict[str, Any] = {name: getattr(record, name, None) for name in self._attrs if name != "exc_info"}
        more |= session_fields()
        more |= {name: value for name, value in vars(record).items() if name not in self._standard}
        if not self._json:
            tail = " ".join(f"{name}={value}" for name, value in more.items() if name != "exc_text")
            first, newline, rest = self._plain.format(record).partition("\n")
            return f"{first} {tail}{newline}{rest}" if tail else f"{first}{newline}{rest}"
        line = {
            "asctime": self._plain.formatTime(record),
            "levelname": record.levelname,
            "message": record.getMessage(),
            "filename": record.filename,
            "lineno": record.lineno,
        }
        if record.exc_text:
            more["exc_text"] = record.exc_text
        if record.stack_info:
            more["stack_info"] = self._plain.formatStack(record.stack_info)
        more["timestamp_ns"] = int(record.created * 1e9)
        return json.dumps(line | more, default=str)
