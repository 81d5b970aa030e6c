"""The small tools: results as they come, serializers, log_once, metrics, annotations, addresses, locations, imports."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import threading
import warnings
from types import ModuleType
from typing import Any

import pytest

from moray import util
from moray.exceptions import GetTimeoutError
from moray.util import annotations as marks, metrics
from tests.support.procs import run_driver

# --- results as they come -------------------------------------------------------------------------


def test_as_completed(shared_session: ModuleType) -> None:
    import time

    @shared_session.remote
    def sleep(seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    assert list(util.as_completed([sleep.remote(0.6), sleep.remote(0.0)])) == [0.0, 0.6]
    refs = [shared_session.put(x) for x in range(25)]
    assert sorted(util.as_completed(refs)) == list(range(25))
    assert set(util.as_completed(refs, chunk_size=3, yield_obj_refs=True)) == set(refs)
    assert list(util.as_completed([])) == []


def test_a_chunk_size_is_waited_for(shared_session: ModuleType) -> None:
    """Those of one chunk come in the order of the references, whichever was first."""

    class Gate:
        def __init__(self) -> None:
            self.events = [asyncio.Event() for _ in range(5)]

        async def wait(self, number: int) -> int:
            await self.events[number].wait()
            return number

        async def release(self, number: int) -> None:
            self.events[number].set()

    gate: Any = shared_session.remote(num_cpus=0)(Gate).remote()
    refs = [gate.wait.remote(number) for number in range(5)]
    found = util.as_completed(refs, chunk_size=2)
    order = []
    for opened in ((4, 3), (2, 1), (0,)):
        for number in opened:
            shared_session.get(gate.release.remote(number))
        order += [next(found) for _ in opened]
    assert order == [3, 4, 1, 2, 0]


def test_as_completed_says_what_is_wrong(shared_session: ModuleType) -> None:
    import time

    slow = shared_session.remote(time.sleep).remote(60)
    with pytest.raises(GetTimeoutError, match=r"none of 1 results came within 0\.05 s"):
        list(util.as_completed([slow], timeout=0.05))
    shared_session.cancel(slow)
    with pytest.raises(ValueError, match="chunk_size=0"):
        util.as_completed([], chunk_size=0)
    with pytest.raises(ValueError, match="num_returns"):
        util.as_completed([], num_returns=2)


def test_map_unordered(shared_session: ModuleType) -> None:
    square = shared_session.remote(lambda x: x * x)
    assert sorted(util.map_unordered(square, range(250))) == [x * x for x in range(250)]
    assert sorted(util.map_unordered(square, range(5), backpressure_size=None, chunk_size=2)) == [0, 1, 4, 9, 16]
    refs = util.map_unordered(square, range(5), yield_obj_refs=True)
    assert sorted(shared_session.get(list(refs))) == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="backpressure_size=2 must be at least chunk_size=10"):
        util.map_unordered(square, [1], backpressure_size=2)


def test_map_unordered_reads_no_further_than_it_may(shared_session: ModuleType) -> None:
    read: list[int] = []
    square = shared_session.remote(lambda x: x * x)

    def numbers() -> Any:
        for x in itertools.count():
            read.append(x)
            yield x

    results = util.map_unordered(square, numbers(), backpressure_size=20)
    got = list(itertools.islice(results, 100))
    assert len(got) == 100
    assert len(read) <= 100 + 20


# --- serializers ------------------------------------------------------------------------------------


class Guarded:
    def __init__(self, value: Any) -> None:
        self.value = value
        self.lock = threading.Lock()


def test_serializers(shared_session: ModuleType) -> None:
    @shared_session.remote
    def read(guarded: Any) -> Any:
        return guarded.value, type(guarded.lock).__name__

    @shared_session.remote
    def make() -> Any:
        util.register_serializer(Guarded, serializer=lambda g: g.value, deserializer=Guarded)
        return Guarded("from a worker")

    with pytest.raises(TypeError, match="lock"):
        shared_session.put(Guarded(1))
    util.register_serializer(Guarded, serializer=lambda g: g.value, deserializer=lambda value: Guarded(value))
    try:
        ref = shared_session.put("inside")
        assert shared_session.get(read.remote(Guarded(5))) == (5, "lock")
        assert shared_session.get(read.remote(shared_session.put(Guarded([ref]))))[0] == [ref]
        assert shared_session.get(shared_session.put({"deep": [Guarded(6)]}))["deep"][0].value == 6
    finally:
        util.deregister_serializer(Guarded)
    util.deregister_serializer(Guarded)
    with pytest.raises(TypeError, match="lock"):
        shared_session.put(Guarded(1))
    # The reader needs nothing.
    assert shared_session.get(make.remote()).value == "from a worker"
    with pytest.raises(TypeError, match="takes a class"):
        util.register_serializer(5, serializer=str, deserializer=str)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="deserializer must be callable"):
        util.register_serializer(Guarded, serializer=str, deserializer=None)  # type: ignore[arg-type]


# --- log_once -----------------------------------------------------------------------------------------


def test_log_once_in_a_program_of_its_own() -> None:
    out = run_driver("""
        from moray.util import log_once, disable_log_once_globally, enable_periodic_logging, debug
        print(log_once("a"), log_once("a"), log_once("b"))
        enable_periodic_logging()
        print(log_once("a"))
        debug.PERIOD_S = 0.0
        print(log_once("a"))
        disable_log_once_globally()
        print(log_once("c"))
        """).stdout
    assert out.split() == ["True", "False", "True", "False", "True", "False"]


# --- metrics ----------------------------------------------------------------------------------------------


def test_counters_and_gauges() -> None:
    counter = metrics.Counter("t_requests", description="Requests.", tag_keys=("route", "code"))
    assert counter.set_default_tags({"code": "200"}) is counter
    counter.inc(tags={"route": "/a"})
    counter.inc(2.5, tags={"route": "/a"})
    counter.inc(tags={"route": "/b", "code": "500"})
    again = metrics.Counter("t_requests", tag_keys=("route", "code"))
    again.inc(tags={"route": "/b", "code": "500"})
    assert [(s.tags, s.value) for s in metrics.collect("t_requests")] == [
        ({"code": "200", "route": "/a"}, 3.5),
        ({"code": "500", "route": "/b"}, 2.0),
    ]
    assert counter.info == {
        "name": "t_requests",
        "description": "Requests.",
        "tag_keys": ("route", "code"),
        "default_tags": {"code": "200"},
    }
    gauge = metrics.Gauge("t_level")
    gauge.set(5)
    gauge.set(3)
    gauge.set(None)
    (sample,) = metrics.collect("t_level")
    assert (sample.kind, sample.value, sample.tags) == ("gauge", 3.0, {})


def test_histograms() -> None:
    histogram = metrics.Histogram("t_seconds", boundaries=[0.1, 1, 10], tag_keys=("job",))
    for value in (0.05, 0.1, 0.5, 100):
        histogram.observe(value, tags={"job": "x"})
    (sample,) = metrics.collect("t_seconds")
    assert sample.observations == 4
    assert sample.value == pytest.approx(100.65)
    assert sample.buckets == {0.1: 2, 1.0: 3, 10.0: 3, float("inf"): 4}
    assert histogram.info["boundaries"] == [0.1, 1.0, 10.0]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: metrics.Counter(""), ValueError),
        (lambda: metrics.Counter("with space"), ValueError),
        (lambda: metrics.Counter("c", tag_keys="ab"), TypeError),
        (lambda: metrics.Counter("c", tag_keys=(1,)), TypeError),
        (lambda: metrics.Counter("t_c").inc(0), ValueError),
        (lambda: metrics.Counter("t_c").inc(-1), ValueError),
        (lambda: metrics.Counter("t_c").inc("1"), TypeError),  # type: ignore[arg-type]
        (lambda: metrics.Counter("t_c").inc(tags={"a": "b"}), ValueError),
        (lambda: metrics.Counter("t_c", tag_keys=("a",)).inc(tags={"a": 1}), TypeError),  # type: ignore[dict-item]
        (lambda: metrics.Counter("t_c").set_default_tags({"a": "b"}), ValueError),
        (lambda: metrics.Histogram("h"), ValueError),
        (lambda: metrics.Histogram("h", boundaries=[0, 1]), ValueError),
        (lambda: metrics.Histogram("h", boundaries=[2, 1]), ValueError),
        (lambda: metrics.Metric("m"), TypeError),
        (lambda: (metrics.Counter("t_kind").inc(), metrics.Gauge("t_kind").set(1)), ValueError),  # type: ignore[func-returns-value]
    ],
)
def test_wrong_metrics(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_metrics_count_where_they_are(shared_session: ModuleType) -> None:
    counter = metrics.Counter("t_travels", tag_keys=("who",)).set_default_tags({"who": "x"})

    @shared_session.remote
    def count(metric: Any) -> list[Any]:
        metric.inc()
        return [(sample.value, sample.tags) for sample in metrics.collect("t_travels")]

    assert shared_session.get(count.remote(counter)) == [(1.0, {"who": "x"})]
    assert metrics.collect("t_travels") == []


def test_metrics_of_many_threads() -> None:
    counter = metrics.Counter("t_threads")

    def count() -> None:
        for _ in range(500):
            counter.inc()

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [sample.value for sample in metrics.collect("t_threads")] == [4000.0]


# --- annotations ---------------------------------------------------------------------------------------------


def test_annotations() -> None:
    @marks.PublicAPI
    def plain() -> int:
        """Does it."""
        return 1

    @marks.PublicAPI(stability="alpha", api_group="Tools")
    class Young: ...

    @marks.DeveloperAPI
    def inner() -> None: ...

    assert plain() == 1
    assert plain.__doc__ == "Does it."
    assert plain._annotated_type is marks.AnnotationType.PUBLIC_API
    assert "alpha" in str(Young.__doc__)
    assert (Young._annotated, Young._annotated_api_group) == ("Young", "Tools")  # type: ignore[attr-defined]
    assert "DeveloperAPI" in str(inner.__doc__)
    with pytest.raises(ValueError, match="stability="):
        marks.PublicAPI(stability="wobbly")
    with pytest.raises(TypeError, match="@PublicAPI is used as"):
        marks.PublicAPI("beta")


def test_deprecated() -> None:
    @marks.Deprecated(message="use new()", warning=True)
    def old(x: int) -> int:
        return x

    @marks.Deprecated(message="use New", warning=True)
    class Old:
        def __init__(self, x: int) -> None:
            self.x = x

    @marks.Deprecated
    def quiet() -> int:
        return 2

    with pytest.warns(marks.RayDeprecationWarning, match=r"old is deprecated: use new\(\)"):
        assert old(3) == 3
    with pytest.warns(marks.RayDeprecationWarning, match="use New"):
        assert Old(4).x == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quiet() == 2
    assert "DEPRECATED" in str(quiet.__doc__)


# --- addresses, locations ----------------------------------------------------------------------------------------


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    import ipaddress

    assert str(ipaddress.ip_address(util.get_node_ip_address()))
    assert util.get_node_ip_address("127.0.0.1:5") == "127.0.0.1"
    assert util.get_node_instance_id() == ""
    monkeypatch.setenv("RAY_CLOUD_INSTANCE_ID", "i-123")
    assert util.get_node_instance_id() == "i-123"


def test_locations(shared_session: ModuleType) -> None:
    import time

    from moray import experimental

    small, large = shared_session.put("x"), shared_session.put(bytes(1_000_000))
    pending = shared_session.remote(time.sleep).remote(60)
    found = experimental.get_object_locations([small, large, pending])
    node = shared_session.get_runtime_context().get_node_id()
    assert found[small]["node_ids"] == []
    assert 0 < found[small]["object_size"] < 100
    assert found[large]["node_ids"] == [node]
    assert found[large]["object_size"] > 1_000_000
    assert found[pending] == {"node_ids": [], "object_size": None, "did_spill": False}
    assert experimental.get_local_object_locations([large]) == {large: found[large]}
    shared_session.cancel(pending)
    with pytest.raises(TypeError, match="takes ObjectRefs"):
        experimental.get_object_locations(["x"])  # type: ignore[list-item]


def test_accelerators() -> None:
    from moray.util import accelerators

    assert accelerators.NVIDIA_TESLA_A100 == accelerators.NVIDIA_A100 == "A100"
    assert accelerators.GOOGLE_TPU_V4 == "TPU-V4"


# --- imports -----------------------------------------------------------------------------------------------------


def test_names_are_there_and_lazy() -> None:
    code = """
import json, sys
import moray
first = sorted(name for name in sys.modules if name.startswith("moray.util"))
from moray import util
second = sorted(name for name in sys.modules if name.startswith("moray.util"))
missing = [name for name in util.__all__ if not hasattr(util, name)]
assert util.annotations.PublicAPI and util.queue.Queue and util.multiprocessing.Pool
from moray.util import annotations, cloudpickle, dask, joblib, queue
assert annotations.PublicAPI and set(util.__all__) <= set(dir(util))
print(json.dumps([first, second, missing, "dask" in sys.modules, "joblib" in sys.modules]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [[], ["moray.util"], [], False, False]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = util.nothing
