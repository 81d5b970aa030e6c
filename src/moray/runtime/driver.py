"""``init`` and ``shutdown``: a driver's runtime, its I/O thread, and the node of a local session."""

from __future__ import annotations

import atexit
import difflib
import json
import os
import re
import sys
import threading
import uuid
import warnings
from importlib import import_module
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Self, cast

from moray import config, exceptions
from moray.ids import new_process, tag_of
from moray.labels import check_labels
from moray.launch.config import NodeConfig, session_environ
from moray.launch.local import NodeHandle, find_sessions, start_node
from moray.launch.node_ends import describe_end
from moray.launch.session_directory import own_clusters, read_node_id
from moray.launch.spilling import spill_targets
from moray.protocol import messages as m
from moray.protocol.handshake import connect, receive_blocking, send_blocking
from moray.runtime import packages, state
from moray.runtime.job_logging import JobLogging
from moray.runtime.log_files import rotation_settings
from moray.runtime.output_prints import print_settings
from moray.runtime.runtime import Runtime
from moray.runtime.strategies import INFEASIBLE_VARIABLE, check_infeasible

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from moray.protocol.connection import Connection
    from moray.runtime.local_mode import LocalRuntime

#: A program that ends leaves what it submitted and never waited for so long to end; and how often it looks.
EXIT_GRACE_S: Final = 0.5
EXIT_LOOK_S: Final = 0.005
#: Of ``ray://localhost:10001``, which programs for Ray have in them: heads here have one port for everything.
_RAY_CLIENT_PORT: Final = ":10001"
#: Parameters of init that have no meaning here and are accepted with any value.
_WITHOUT_MEANING: Final = frozenset({
    "include_dashboard", "dashboard_host", "dashboard_port",
    "enable_resource_isolation", "cgroup_path", "system_reserved_cpu", "system_reserved_memory",
    "proxy_server_url", "_redis_password", "_redis_username", "_node_ip_address", "_driver_object_store_memory",
    "_memory",
    "_metrics_export_port", "_tracing_startup_hook", "_node_name", "_enable_object_reconstruction", "_plasma_directory",
    "_cluster_id", "_skip_env_hook", "allow_multiple",
})  # fmt: skip
_MEANINGFUL: Final = frozenset({
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "local_mode", "ignore_reinit_error",
    "infeasible", "job_config", "log_to_driver", "namespace", "runtime_env", "_system_config", "_temp_dir",
    "configure_logging", "logging_config", "logging_format", "logging_level",
})  # fmt: skip
#: Resources that every node has, and what sets how much.
_OWN_PARAMETER: Final = {
    "CPU": "use num_cpus=",
    "GPU": "use num_gpus=",
    "memory": "it is the machine's",
    "object_store_memory": "use object_store_memory=",
}
#: What a job's template imports, so that `import ray` gives moray in workers if it does, or will, in the driver.
_IN_WORKER: Final = "moray.compat.in_worker"
_ON_DEMAND: Final = "moray.compat.on_demand"
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^/:\[\]]+):\d+")
#: How long shutdown waits for the node to finish before it ends it by force.
_SHUTDOWN_S: Final = 10.0
#: A node whose connection has ended is looked at so often, and given so long, to see how it ended itself.
_LOOK_S: Final = 0.005
_LOOKS: Final = 200


class Context:
    """What :func:`moray.init` returns."""

    def __init__(self, driver: Driver | LocalRuntime) -> None:
        welcome = driver.welcome
        self.dashboard_url = ""
        self.python_version = "{}.{}.{}".format(*sys.version_info[:3])
        self.ray_version = "2.60.0"
        self.ray_commit = ""
        self.protocol_version = str(m.PROTOCOL_VERSION)
        #: Where the session is: "address" is what another program gives to init().
        self.address_info: dict[str, Any] = {
            "address": driver.node_address,
            "node_ip_address": "127.0.0.1",
            "gcs_address": driver.node_address,
            "redis_address": driver.node_address,
            "raylet_ip_address": "127.0.0.1",
            "metrics_export_port": 0,
            "raylet_socket_name": driver.node_address,
            "object_store_address": driver.node_address,
            "webui_url": "",
            "dashboard_agent_listen_port": 0,
            "session_dir": welcome.session_dir,
            "session_name": welcome.session,
            "node_id": welcome.node_id.hex(),
        }
        self._driver = driver

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __contains__(self, key: object) -> bool:
        return key in self.address_info

    def get(self, key: str, default: Any = None) -> Any:
        """What `address_info` has, or the default."""
        return self.address_info.get(key, default)

    def keys(self) -> Any:
        """The names in `address_info`."""
        return self.address_info.keys()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        """End the session that this context stands for, if it still runs."""
        runtime: Any = state.runtime
        if runtime is self._driver:
            shutdown()

    def __repr__(self) -> str:
        return f"Context(address={self.address_info['address']!r}, session={self.address_info['session_name']!r})"


class Driver(Runtime):
    """The runtime of a user's program."""

    def __init__(
        self, process: bytes, welcome: m.Welcome, sock: socket.socket, leftover: bytes, arena: int, node_address: str
    ) -> None:
        super().__init__(process, welcome, sock, leftover, arena)
        self.node_address = node_address
        #: The node that this process started; None if it connected to a running session.
        self.handle: NodeHandle | None = None
        #: Gives the program's loggers back as they were.
        self.undo_logging: Callable[[], None] = lambda: None
        self.handlers[m.Shutdown] = self._on_shutdown
        self._stop = False
        self._thread = threading.Thread(target=self._io_thread, name="moray-io", daemon=True)

    def start(self) -> None:
        """Start the thread that turns the loop."""
        self._thread.start()

    def _io_thread(self) -> None:
        try:
            with self.reactor.lead:
                self.node.process_leftover()
                while not self._stop:
                    self.reactor.turn()
        except BaseException as error:
            # A bug of ours: no thread may be left waiting for a loop that is gone.
            self.session_ended(f"moray's I/O thread failed with {type(error).__name__}: {error}")
            raise

    def _on_shutdown(self, _connection: Connection, message: m.Shutdown) -> None:
        """The node ends in order, and says why."""
        if self.closing:
            self.shutdown_done.notify()
        else:
            self.session_ended(f"session {self.welcome.session} has ended: {message.reason}")

    def _on_node_closed(self, _connection: Connection, reason: str) -> None:
        """The node ends, or has ended, without a word: the error of all that waits says how."""
        if self.closing:
            self.shutdown_done.notify()
        else:
            self._tell_end(reason, _LOOKS)

    def _tell_end(self, reason: str, looks: int) -> None:
        handle = self.handle
        if handle is not None and looks and not handle.wait_ended(0):
            self.reactor.call_later(_LOOK_S, lambda: self._tell_end(reason, looks - 1))
            return
        end = describe_end(self.session_dir, handle.status if handle is not None else None)
        self.session_ended(f"the node of session {self.welcome.session} ended: {reason}{end}")

    def stop(self) -> None:
        """End the session or leave it, and the I/O thread."""
        self.closing = True
        node_died = self.ended is not None
        if not node_died:
            self.node.send(m.Shutdown("shutdown() was called"))
            self.shutdown_done.wait(_SHUTDOWN_S)

        def end() -> None:
            self._stop = True
            self.reactor.sleeping = False  # This turn's poll must not wait.

        self.call_soon(lambda: self.session_ended("moray.shutdown() was called"))
        self.call_soon(end)
        self._thread.join(timeout=_SHUTDOWN_S)
        handle = self.handle
        if handle is not None and (node_died or not handle.wait_ended(_SHUTDOWN_S) or handle.status):
            handle.kill()  # A node that died by force could not end what tasks had started.
        self.close()
        self.undo_logging()


def init(address: str | None, **options: Any) -> Context:
    """See :func:`moray.init`."""
    _check_names(options)
    if state.runtime is not None:
        if state.runtime.forked:
            state.runtime.check_usable()
        if state.runtime.ended is None:
            if options.get("ignore_reinit_error"):
                return _context(state.runtime)
            raise RuntimeError(
                "moray.init() was called, but this process is already connected: call moray.shutdown() first, "
                "or pass ignore_reinit_error=True to go on with the present session"
            )
        shutdown()
    if options.get("local_mode"):
        return _init_local(options)
    if address is None:
        address = config.env_str("ADDRESS") or _own_cluster(options)
    logging = JobLogging(options)
    rotation_settings()  # A wrong variable is an error here, not one of every worker's.
    print_settings()
    job = _job_config(options)
    infeasible = options.get("infeasible") and check_infeasible(options["infeasible"], "init(): infeasible")
    if infeasible:
        job.environ[f"MORAY_{INFEASIBLE_VARIABLE}"] = infeasible
    logging.add_to(job.environ)
    handle: NodeHandle | None = None
    if address is None or address == "local":
        handle = start_node(_node_config(options), str(options.get("_temp_dir") or ""))
        node_address = handle.address
    else:
        _refuse_with_address(options, address)
        node_address, handle = _find(address, str(options.get("_temp_dir") or ""))
    try:
        driver = _connect(node_address, job)
    except BaseException:
        if handle is not None:
            handle.kill()
        raise
    driver.handle = handle
    driver.infeasible = infeasible or ""
    driver.nameless = not _chosen_namespace(options)
    driver.output.configure(logging.to_driver)
    driver.undo_logging = logging.install()
    _install(driver)
    if job.preload == [_ON_DEMAND] and _as_ray():
        # Another thread called moray.compat.install() meanwhile, and found no session.
        sys.modules["moray.compat"].tell_workers(driver)
    return Context(driver)


def _init_local(options: dict[str, Any]) -> Context:
    """A session in this process alone."""
    from moray.runtime.local_mode import LocalRuntime

    if options.get("runtime_env"):
        warnings.warn(
            "init(local_mode=True) runs everything in this process, as it is: runtime_env has no effect",
            UserWarning,
            stacklevel=4,
        )
    runtime = LocalRuntime(_node_config(options), _namespace(options))
    state.runtime = cast("Runtime", runtime)
    _end_at_exit()
    return Context(runtime)


class _UnknownArgumentError(TypeError, RuntimeError):
    """What Python raises for such a call, and what Ray raises."""


class _NotCustomError(ValueError, AssertionError):
    """The value is wrong; Ray asserts that it is not."""


def _check_names(options: dict[str, Any]) -> None:
    for name in options:
        if name not in _MEANINGFUL and name not in _WITHOUT_MEANING:
            near = difflib.get_close_matches(name, sorted(_MEANINGFUL | _WITHOUT_MEANING), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise _UnknownArgumentError(f"init() got an unknown argument {name!r}{hint}")


def _context(runtime: Runtime) -> Context:
    if runtime.kind != "worker":
        return Context(cast("Driver", runtime))
    raise RuntimeError("moray.init() is for drivers; this process is a worker and already connected")


def _own_cluster(options: dict[str, Any]) -> str | None:
    """The address of a cluster that this program, or one above it, has made for tests; None: to start a session."""
    if not own_clusters() or _settled(options):
        return None
    from moray.launch.cluster import find_nodes

    return "auto" if any(find_nodes(path) for path in own_clusters()) else None


def _settled(options: dict[str, Any]) -> list[str]:
    """The options that only a new session can follow."""
    settled = ("num_cpus", "num_gpus", "resources", "labels", "object_store_memory")
    return [name for name in settled if options.get(name) is not None]


def _refuse_with_address(options: dict[str, Any], address: str) -> None:
    """A running session has its resources; asking for others would be ignored in silence."""
    given = _settled(options)
    if given:
        raise ValueError(
            f"init(address={address!r}) connects to a running session, whose resources are settled: "
            f"leave out {', '.join(given)}"
        )


def _find(address: str, temp_dir: str) -> tuple[str, NodeHandle | None]:
    """The path of a running node's socket; and the node, if it had to be started."""
    if address == "auto":
        from moray.launch.cluster import find_driver_node

        node = find_driver_node(temp_dir=temp_dir)
        sessions = [node.session] if node is not None else find_sessions(temp_dir)
        if not sessions:
            raise ConnectionError(
                'there is no running session to connect to with address="auto": start one with `moray start --head`, '
                "or leave the address out"
            )
        return sessions[0].address, None
    remote = address.removeprefix("moray://").removeprefix("ray://")
    if remote != address:
        if address.endswith(_RAY_CLIENT_PORT):
            from moray.launch.cluster import own_head

            remote = own_head(remote, temp_dir, any_port=True)
        return _join_cluster(remote, temp_dir, relayed=True)
    if _HOST_AND_PORT.fullmatch(address):
        return _find_in_cluster(address, temp_dir)
    path = address.removeprefix("unix://")
    if os.path.isdir(path):
        path = f"{path}/node.sock"
    if not os.path.exists(path):
        raise ConnectionError(f"there is no session at {address!r}: its node has ended, or the address is wrong")
    return path, None


def _find_in_cluster(address: str, temp_dir: str) -> tuple[str, NodeHandle | None]:
    """A node of the cluster whose head is at HOST:PORT: of this machine, or one that is started for this driver."""
    from moray.launch.cluster import find_driver_node

    found = find_driver_node(address, temp_dir)
    return (found.session.address, None) if found is not None else _join_cluster(address, temp_dir, relayed=False)


def _join_cluster(address: str, temp_dir: str, *, relayed: bool) -> tuple[str, NodeHandle]:
    """A node for this driver alone; `relayed`: through the head's address only (``moray://``)."""
    from moray.launch.cluster import start_joined

    handle = start_joined(
        NodeConfig(resources={"CPU": 0, "memory": 0}),
        address,
        temp_dir=temp_dir,
        detached=False,
        driver_only=True,
        relayed=relayed,
    )
    return handle.address, handle


def _node_config(options: dict[str, Any]) -> NodeConfig:
    resources: dict[str, int] = {}
    custom = options.get("resources") or {}
    for name, parameter in _OWN_PARAMETER.items():
        if name in custom:
            raise _NotCustomError(f"init(): resources={{{name!r}: …}} is not a custom resource: {parameter}")
    for name, amount in {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), **custom}.items():
        if amount is None:
            continue
        if not isinstance(amount, (int, float)) or amount < 0:
            raise ValueError(f"init(): {name}={amount!r} should be a number ≥ 0")
        resources[name] = round(amount * m.RESOURCE_UNIT)
    system = dict(options.get("_system_config") or {})
    store = options.get("object_store_memory")
    if isinstance(store, float) and store.is_integer():
        store = int(store)  # 2e9
    if store is not None and (not isinstance(store, int) or store < 1 << 20):
        raise ValueError(f"init(): object_store_memory={store!r} should be a number of bytes, at least 1 MiB")
    return NodeConfig(
        resources=resources,
        labels=_labels(options.get("labels")),
        object_store_memory=store or 0,
        namespace=_given_namespace(options),
        spill_targets=spill_targets(system, config.env_str("SPILL_DIR")),
        system_config=system,
    )


def _labels(given: Any) -> dict[str, str]:
    try:
        return check_labels(given or {})
    except (AttributeError, ValueError) as error:
        raise ValueError(f"init(): labels={given!r:.200} should be a dict from labels to values: {error}") from None


def _job_config(options: dict[str, Any]) -> m.JobConfig:
    asked = packages.check_job(_runtime_env(options))
    cwd = os.getcwd()
    paths = [os.path.abspath(path) for path in sys.path]
    if cwd not in paths and "working_dir" not in asked:
        paths.insert(0, cwd)
    job = m.JobConfig(
        sys_path=paths,
        cwd=cwd,
        environ=session_environ() | asked.get("env_vars", {}),
        executable=sys.executable,
        namespace=_namespace(options),
        entrypoint=" ".join(sys.argv),
        preload=[_IN_WORKER if _as_ray() else _ON_DEMAND],
        runtime_env=json.dumps(asked, sort_keys=True, default=str) if asked else "",
    )
    packages.describe_job(job, asked)
    return job


def _given_namespace(options: dict[str, Any]) -> str:
    given = options.get("namespace")
    if given is None:
        return ""
    if not isinstance(given, str):
        raise TypeError(f"init(): namespace must be a string, not {given!r:.80} ({type(given).__name__})")
    if not given:
        raise ValueError("init(): namespace must not be empty; without it the job has a namespace of its own")
    return given


def _namespace(options: dict[str, Any]) -> str:
    """As given, or MORAY_NAMESPACE (RAY_NAMESPACE), or one of its own."""
    return _chosen_namespace(options) or str(uuid.uuid4())


def _chosen_namespace(options: dict[str, Any]) -> str:
    given = _given_namespace(options) or getattr(options.get("job_config"), "ray_namespace", None)
    return given or config.env_str("NAMESPACE")


def _runtime_env(options: dict[str, Any]) -> dict[str, Any]:
    """As given, completed by MORAY_RUNTIME_ENV, a JSON object; what is given wins. Then the hook has its say."""
    given = options.get("runtime_env") or getattr(options.get("job_config"), "runtime_env", None) or {}
    text = config.env_str("RUNTIME_ENV")
    try:
        outer = dict(json.loads(text)) if text.strip() else {}
    except (TypeError, ValueError):
        name = config.env_name("RUNTIME_ENV")
        raise ValueError(f"the environment variable {name}={text!r} should be a JSON object") from None
    merged = outer | dict(given)
    merged["env_vars"] = (outer.get("env_vars") or {}) | (given.get("env_vars") or {})
    hook = config.env_str("RUNTIME_ENV_HOOK")
    return merged if not hook or options.get("_skip_env_hook") else _call_hook(hook, merged)


def _call_hook(name: str, runtime_env: dict[str, Any]) -> dict[str, Any]:
    """What the function ``module.function``, named by RAY_RUNTIME_ENV_HOOK, makes of the runtime environment."""
    module, _, function = name.rpartition(".")
    try:
        hook = getattr(import_module(module), function)
    except (AttributeError, ImportError, ValueError) as error:
        variable = config.env_name("RUNTIME_ENV_HOOK")
        raise ValueError(f"{variable}={name} should name a function, module.function: {error}") from error
    return dict(hook(runtime_env))


def _as_ray() -> bool:
    """Whether `import ray` gives moray here. moray.compat is not imported for the question."""
    compat = sys.modules.get("moray.compat")
    return compat is not None and compat.is_installed()


def _connect(node_address: str, job: m.JobConfig) -> Driver:
    try:
        session_dir = os.path.dirname(node_address)
        tag = tag_of(read_node_id(session_dir))
        process = new_process(tag)
        packages.complete_job(job, session_dir, tag)
        sock = connect(node_address)
    except OSError as error:
        raise ConnectionError(f"cannot connect to the node at {node_address}: {error.strerror}") from error
    try:
        send_blocking(sock, m.Hello(m.PROTOCOL_VERSION, "driver", process, os.getpid(), "", job))
        answer, fds, leftover = receive_blocking(sock, 1)
        if not isinstance(answer, m.Welcome):
            raise ConnectionError(getattr(answer, "reason", f"the node answered with {type(answer).__name__}"))
        driver = Driver(process, answer, sock, leftover, fds[0], node_address)
    except BaseException:
        sock.close()
        raise
    driver.sys_path = [*(item.path for item in job.packages if item.kind == "working_dir"), *job.sys_path]
    return driver


_restore_switch_interval: float | None = None
_atexit_registered = False


def _install(driver: Driver) -> None:
    """Make `driver` this process's runtime."""
    global _restore_switch_interval
    _restore_switch_interval = sys.getswitchinterval()
    sys.setswitchinterval(config.SWITCH_INTERVAL_S)
    state.runtime = driver
    driver.start()
    _end_at_exit()


def _end_at_exit() -> None:
    """Call `shutdown` when the program ends."""
    global _atexit_registered
    if not _atexit_registered:
        _atexit_registered = True
        atexit.register(_at_exit)


def _at_exit() -> None:
    runtime = state.runtime
    if runtime is None or runtime.forked:
        return
    try:
        # Not after an error or Ctrl-C: whoever meets these wants the end now.
        if isinstance(runtime, Driver) and not hasattr(sys, "last_type"):
            _let_finish(runtime)
    except KeyboardInterrupt:
        pass  # Nor after this one, which the interpreter would show with all our frames.
    finally:
        shutdown()


def _let_finish(driver: Driver) -> None:
    """Give what the program submitted last, and never waited for, a moment to run and to print."""
    deadline = monotonic() + EXIT_GRACE_S
    while driver.ended is None and monotonic() < deadline:
        looked, left = threading.Event(), True

        def look(looked: threading.Event = looked) -> None:
            nonlocal left
            left = bool(driver.submitter.pending_tasks() or driver.actors.pending_calls())
            looked.set()

        driver.call_soon(look)
        if not looked.wait(deadline - monotonic()) or not left:
            return
        sleep(EXIT_LOOK_S)


def shutdown() -> None:
    """See :func:`moray.shutdown`."""
    if isinstance(state.runtime, Runtime) and not isinstance(state.runtime, Driver):
        raise exceptions.MoraySystemError("moray.shutdown() ends a driver's session; a task cannot call it")
    # One swap, without a call between its halves: of two threads that shut down, one does.
    runtime, state.runtime = state.runtime, None
    if runtime is not None and runtime.kind == "local":
        cast("LocalRuntime", runtime).stop()
    if not isinstance(runtime, Driver):
        return
    try:
        runtime.stop()
    finally:
        if _restore_switch_interval is not None:
            sys.setswitchinterval(_restore_switch_interval)
