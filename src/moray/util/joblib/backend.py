"""The joblib backend: its batches of jobs are tasks of a :class:`~moray.util.multiprocessing.Pool`.

joblib makes its own batches out of short jobs. Large arrays stay out of them: each is put into the store once per
``Parallel`` call, and a job has its reference.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, Final

from joblib._parallel_backends import (  # type: ignore[import-untyped]
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

import moray
from moray.util.joblib import kept
from moray.util.multiprocessing import Pool
from moray.util.multiprocessing.results import AsyncResult

#: Arrays of so many bytes are stored once and shared. joblib's limit for its own shared memory is the same.
SHARED_BYTES: Final = 1 << 20


class MorayBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches in a pool that the next ``Parallel`` call of the same kind uses again."""

    supports_retrieve_callback = True
    supports_return_generator = True
    supports_inner_max_num_threads = True

    def __init__(self, ray_remote_args: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._ray_remote_args = ray_remote_args
        self._pool: Pool | None = None
        #: Whether, and for which calls, the pool can be used again.
        self._key: Any = None
        #: Results of batches, as long as anybody has them: the pool, if they are not there yet.
        self._results: weakref.WeakSet[AsyncResult] = weakref.WeakSet()
        self._shared = _Shared()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many processes: `n_jobs`; -1 stands for the session's CPUs, -2 for one less, and so on."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        return max(1, int(moray.cluster_resources().get("CPU", 1)) + 1 + n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_options: Any) -> int:
        """Make the pool; returns its size."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1 and self._ray_remote_args is None:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        environment = self._prepare_worker_env(n_jobs)
        # Actors with options may hold resources, which others wait for.
        self._key = kept.key_of(n_jobs, environment) if self._ray_remote_args is None else None
        self._pool = kept.take(self._key) or Pool(
            n_jobs, initializer=_limit_threads, initargs=(environment,), ray_remote_args=self._ray_remote_args
        )
        self.parallel = parallel
        return n_jobs

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> Any:
        """Have a batch of jobs run; `callback` gets what :meth:`retrieve_result_callback` understands."""
        assert self._pool is not None
        self._shared.replace(func)
        result = self._pool.apply_async(
            _run, (func,), callback=callback, error_callback=lambda error: callback and callback(_Failed(error))
        )
        self._results.add(result)
        return result

    def retrieve_result_callback(self, out: Any) -> Any:
        """The results of a batch, or raise its error."""
        if isinstance(out, _Failed):
            raise out.error
        return out

    def stop_call(self) -> None:
        """Forget the arrays of this call."""
        self._shared = _Shared()

    def terminate(self) -> None:
        """The call, or its block, is over."""
        self._let_go(self._key is not None and all(result.ready() for result in list(self._results)))

    def _let_go(self, reusable: bool) -> None:
        """Have done with the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            if reusable:
                kept.keep(self._key, pool)
            else:
                pool.terminate()
        self.reset_batch_stats()
        self._shared = _Shared()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the pool with what it runs, and make a new one if it is needed."""
        self._let_go(reusable=False)
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)


class _Failed:
    """Tells an error from a result that is an exception."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Stored:
    """Stands for an array in a job's arguments."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref


class _Shared:
    """The large arrays of one ``Parallel`` call."""

    def __init__(self) -> None:
        #: Id of an array → the array, which keeps the id its own, and its reference.
        self._stored: dict[int, tuple[Any, _Stored]] = {}

    def replace(self, batch: Any) -> None:
        """Store what is large of the arguments of the batch's jobs."""
        batch.items = [
            (function, tuple(map(self._out, args)), {name: self._out(value) for name, value in kwargs.items()})
            for function, args, kwargs in batch.items
        ]

    def _out(self, value: Any) -> Any:
        if not (type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"):
            return value
        if value.nbytes < SHARED_BYTES or value.dtype.hasobject:
            return value
        known = self._stored.get(id(value))
        if known is None:
            known = self._stored[id(value)] = value, _Stored(moray.put(value))
        return known[1]


def _run(batch: Any) -> Any:
    """In a process of the pool."""
    batch.items = [
        (function, tuple(map(_in, args)), {name: _in(value) for name, value in kwargs.items()})
        for function, args, kwargs in batch.items
    ]
    return batch()


def _in(value: Any) -> Any:
    return moray.get(value.ref) if isinstance(value, _Stored) else value


def _limit_threads(environment: dict[str, str]) -> None:
    """As many threads of numerical libraries in each process as it has CPUs for."""
    os.environ.update(environment)
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
    except ImportError:
        return
    threadpool_limits(limits=int(environment.get("OMP_NUM_THREADS", "1")))
