"""LoggingConfig: the root loggers of a driver and its workers, as text and as JSON; the logger "moray"."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest

import moray
from tests.support.procs import run_driver

PROGRAM = """
import logging, sys
import moray
moray.init(num_cpus=1, logging_config=moray.LoggingConfig({arguments}))

@moray.remote
def speak(text):
    logging.getLogger("app").debug("detail")
    logging.getLogger("app").info("hello %s", text, extra={{"order": 7}})
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("it failed")
    context = moray.get_runtime_context()
    return context.get_task_id(), context.get_worker_id()

logging.info("of the driver")
task, worker = moray.get(speak.options(name="orator").remote("you"))
context = moray.get_runtime_context()
print(task, worker, context.get_job_id(), context.get_node_id(), context.get_worker_id())
moray.shutdown()
print(logging.getLogger().handlers, logging.getLogger().level)
"""


def run(arguments: str) -> tuple[list[str], str, list[str]]:
    """The driver's log lines, all of stderr, and the ids that the program printed."""
    finished = run_driver(PROGRAM.format(arguments=arguments))
    ids, after = finished.stdout.splitlines()
    assert after == "[] 30"  # The program's own logging is as it was.
    lines = finished.stderr.splitlines()
    return [line for line in lines if not line.startswith("(")], finished.stderr, ids.split()


def test_json() -> None:
    own, stderr, (task, worker, job, node, driver) = run('encoding="JSON", additional_log_standard_attrs=["name"]')
    (line,) = [json.loads(line) for line in own]
    assert (line["message"], line["levelname"], line["filename"]) == ("of the driver", "INFO", "program.py")
    assert (line["job_id"], line["node_id"], line["worker_id"]) == (job, node, driver)
    assert "task_id" not in line
    records = [json.loads(line) for line in re.findall(r"^\(orator pid=\d+\) (\{.*)$", stderr, re.MULTILINE)]
    assert [record["message"] for record in records] == ["hello you", "it failed"]
    first, failed = records
    assert (first["task_id"], first["worker_id"], first["job_id"], first["node_id"]) == (task, worker, job, node)
    assert (first["task_name"], first["task_func_name"], first["name"], first["order"]) == ("orator", "speak", "app", 7)
    assert isinstance(first["lineno"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}", first["asctime"])
    assert "ZeroDivisionError" in failed["exc_text"]
    assert not {"actor_id", "actor_name"} & set(first)


def test_text_and_levels() -> None:
    own, stderr, (task, worker, job, node, driver) = run('log_level="DEBUG"')
    of_driver = [line for line in own if "of the driver" in line]
    assert len(of_driver) == 1
    assert re.search(rf"INFO \S+:\d+ -- of the driver job_id={job} worker_id={driver} node_id={node}$", of_driver[0])
    prefix = r"\(orator pid=\d+\) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    ids = rf"job_id={job} worker_id={worker} node_id={node} task_id={task} task_name=orator task_func_name=speak"
    assert re.search(rf"^{prefix}\s+DEBUG \S+:\d+ -- detail {ids}$", stderr, re.MULTILINE)
    assert re.search(rf"^{prefix}\s+INFO \S+:\d+ -- hello you {ids} order=7$", stderr, re.MULTILINE)
    assert re.search(r"ZeroDivisionError: division by zero$", stderr, re.MULTILINE)


def test_actors_say_who_they_are() -> None:
    finished = run_driver(
        """
import logging
import moray
moray.init(num_cpus=1, logging_config=moray.LoggingConfig(encoding="JSON"))

@moray.remote
class Speaker:
    def speak(self):
        logging.info("spoken")
        return moray.get_runtime_context().get_actor_id()

print(moray.get(Speaker.options(name="orator").remote().speak.remote()))
"""
    )
    found = re.search(r"^\(Speaker pid=\d+\) (\{.*)$", finished.stderr, re.MULTILINE)
    assert found is not None
    record = json.loads(found[1])
    assert (record["actor_id"], record["actor_name"]) == (finished.stdout.strip(), "orator")
    assert record["task_name"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoding": "XML"}, r"encoding='XML'.*TEXT, JSON"),
        ({"log_level": "LOUD"}, r"log_level='LOUD'.*WARNING"),
        ({"log_level": 10}, r"log_level=10"),
        ({"additional_log_standard_attrs": ["nmae"]}, r"'nmae'.*name"),
    ],
    ids=str,
)
def test_wrong_settings_name_the_right_ones(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        moray.LoggingConfig(**arguments)


def test_as_a_dict() -> None:
    config = moray.LoggingConfig(encoding="JSON", log_level="ERROR", additional_log_standard_attrs=["process"])
    assert config.to_dict() == {
        "encoding": "JSON", "log_level": "ERROR", "additional_log_standard_attrs": ["process"],
    }  # fmt: skip
    assert moray.LoggingConfig.from_dict(config.to_dict()) == config
    with pytest.raises(TypeError, match=r"'level'.*log_level"):
        moray.LoggingConfig.from_dict({"level": "INFO"})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"logging_config": "JSON"}, TypeError, "LoggingConfig"),
        ({"logging_level": "loud"}, ValueError, "logging_level='loud'.*INFO"),
    ],
    ids=str,
)
def test_init_refuses_what_it_cannot_use(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        moray.init(num_cpus=1, **options)
    assert not moray.is_initialized()


def test_logger_of_moray_itself(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("moray.somewhere")
    moray.init(num_cpus=1, logging_level="warning", logging_format="<%(levelname)s> %(message)s")
    logger.info("not this")
    logger.warning("but this")
    moray.shutdown()
    assert capsys.readouterr().err == "<WARNING> but this\n"
    assert logging.getLogger("moray").handlers == []
    assert logging.getLogger("moray").level == logging.NOTSET
    assert logging.getLogger("moray").propagate


def test_logger_of_moray_is_left_alone() -> None:
    logger = logging.getLogger("moray")
    moray.init(num_cpus=1, configure_logging=False, logging_level="error")
    assert logger.handlers == []
    assert logger.level == logging.NOTSET
    moray.shutdown()


def test_handlers_that_are_no_plain_streams_stay(tmp_path: Any) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    file = logging.FileHandler(tmp_path / "log")
    root.addHandler(file)
    try:
        moray.init(num_cpus=1, logging_config=moray.LoggingConfig())
        logging.getLogger("app").info("into the file")
        assert file in root.handlers
        moray.shutdown()
        assert root.handlers == [*before, file]
        assert root.level == level
    finally:
        root.removeHandler(file)
        file.close()
    assert "into the file" in (tmp_path / "log").read_text()
