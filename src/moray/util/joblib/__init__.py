"""joblib, and with it scikit-learn, over a session: ``register_ray()``, then the backend ``"ray"`` (or ``"moray"``)."""

from __future__ import annotations

__all__ = ["register_ray"]


def register_ray() -> None:
    """Make the backends "ray" and "moray" known to joblib.

    ``joblib.parallel_backend("ray", ray_remote_args={...})`` gives options to the actors that run the jobs;
    ``n_jobs=-1`` is the session's CPUs. Arrays of a megabyte and more that are arguments of jobs are stored once, and
    read in place by all of them, read-only as with joblib's own processes.

    Raises:
        ImportError: joblib is not installed.

    Example:
        >>> import joblib
        >>> from moray.util.joblib import register_ray
        >>> register_ray()
        >>> with joblib.parallel_backend("ray", n_jobs=2):
        ...     joblib.Parallel()(joblib.delayed(pow)(i, 2) for i in range(4))
        [0, 1, 4, 9]
    """
    try:
        from joblib.parallel import register_parallel_backend  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("register_ray() needs joblib: pip install joblib") from error

    from moray.util.joblib.backend import MorayBackend

    register_parallel_backend("ray", MorayBackend)
    register_parallel_backend("moray", MorayBackend)
