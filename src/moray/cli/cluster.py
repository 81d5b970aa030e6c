"""``moray start``, ``stop``, ``status``, ``drain``: nodes of clusters on this machine.

Every mistake is one line and exit code 1.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from typing import Any, Final

import click
import msgspec

from moray import config
from moray.config import RESOURCE_UNIT
from moray.exceptions import AuthenticationError
from moray.launch import session_directory
from moray.launch.cluster import Found, find_driver_node, find_nodes, start_head, start_joined
from moray.launch.config import NodeConfig
from moray.launch.local import NodeHandle, NodeStartError
from moray.launch.spilling import spill_targets
from moray.platform import process_control

#: How long a node may take to end by itself.
_STOP_S: Final = 15.0


def start(
    head: bool,
    address: str,
    port: int,
    node_port: int,
    node_ip: str,
    node_name: str,
    num_cpus: float | None,
    num_gpus: int | None,
    resources: str,
    labels: str,
    object_store_memory: int | None,
    temp_dir: str,
    storage: str,
    durability: str,
    block: bool,
    spill_dir: str = "",
    system_config: str = "",
) -> int:
    """The command; its exit code."""
    if address == "auto":
        found = find_driver_node(temp_dir=temp_dir)
        if found is None:
            raise click.ClickException("--address=auto: no node of a cluster runs on this machine")
        address = found.node.head
    if head == bool(address):
        raise click.ClickException("say --head to start a cluster, or --address=HOST:PORT to join one")
    if not head and (storage or durability):
        raise click.ClickException("--storage and --durability belong to the head: give them to `moray start --head`")
    node = node_config(num_cpus, num_gpus, resources, labels, object_store_memory)
    node = _with_settings(node, spill_dir, _table(system_config, "--system-config"))
    began = time.monotonic()
    token = ""
    try:
        if head:
            handle, token = start_head(
                node,
                node_ip=node_ip,
                port=port,
                node_port=node_port,
                node_name=node_name,
                storage=storage,
                durability=durability,
                temp_dir=temp_dir,
                detached=not block,
            )
        else:
            handle = start_joined(
                node,
                address,
                node_ip=node_ip,
                node_port=node_port,
                node_name=node_name,
                temp_dir=temp_dir,
                detached=not block,
            )
    except (NodeStartError, AuthenticationError, OSError, ValueError) as error:
        raise click.ClickException(str(error) + _who_listens(str(error), port if head else node_port)) from None
    # Whoever reads that it runs may end it at once.
    stopped = _pass_on_stops(handle) if block else []
    _say_started(handle, token, time.monotonic() - began, temp_dir)
    if block:
        return _wait(handle, stopped)
    return 0


def node_config(
    num_cpus: float | None, num_gpus: int | None, resources: str, labels: str, object_store_memory: int | None
) -> NodeConfig:
    """What the options say of the node."""
    amounts: dict[str, int] = {}
    for name, amount in _table(resources, "--resources").items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or amount < 0:
            raise click.BadParameter(f"{name!r} is {amount!r}; write an amount, at least 0", param_hint="--resources")
        amounts[name] = round(amount * RESOURCE_UNIT)
    if num_cpus is not None:
        amounts["CPU"] = round(num_cpus * RESOURCE_UNIT)
    if num_gpus is not None:
        amounts["GPU"] = num_gpus * RESOURCE_UNIT
    if labels and not labels.lstrip().startswith("{"):
        pairs = [pair.partition("=") for pair in labels.split(",")]
        if any(not name or not sign for name, sign, _value in pairs):
            raise click.BadParameter(f"{labels!r} should be NAME=VALUE,…, or a JSON object", param_hint="--labels")
        named = {name.strip(): value.strip() for name, _sign, value in pairs}
    else:
        named = {name: str(value) for name, value in _table(labels, "--labels").items()}
    return NodeConfig(resources=amounts, labels=named, object_store_memory=object_store_memory or 0)


def _with_settings(node: NodeConfig, spill_dir: str, settings: dict[str, Any]) -> NodeConfig:
    """With what ``--object-spilling-directory`` and ``--system-config`` say, or the variable MORAY_SPILL_DIR."""
    if spill_dir:
        settings["object_spilling_directory"] = spill_dir
    try:
        targets = spill_targets(settings, config.env_str("SPILL_DIR"))
    except ValueError as error:
        raise click.ClickException(str(error).removeprefix("init(): ")) from None
    return msgspec.structs.replace(node, spill_targets=targets, system_config=settings)


def _table(text: str, option: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{text!r} should be a JSON object, such as '{{\"name\": 1}}'", param_hint=option)
    return found


def _who_listens(error: str, port: int) -> str:
    """Whose a port is that is taken, as far as this user may see."""
    if os.strerror(errno.EADDRINUSE) not in error:
        return ""
    import psutil

    for connection in psutil.net_connections("tcp"):
        if (
            connection.status == psutil.CONN_LISTEN
            and connection.laddr
            and connection.laddr.port == port
            and connection.pid
        ):
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                break
            return f" (by process {connection.pid}: {command[:100]})"
    return " (by a process of another user); say --port=0 for any that is free"


def _say_started(handle: NodeHandle, token: str, seconds: float, temp_dir: str) -> None:
    node = next(found.node for found in find_nodes(temp_dir) if found.session.session == handle.session)
    click.echo(f"node {node.node_id[:8]} runs at {node.address}, process {handle.pid} ({seconds:.2f} s)")
    if token:
        click.echo("\nJoin from another machine:")
        click.echo(f"  MORAY_TOKEN={token} moray start --address='{node.head}'")
        click.echo("\nUse it here, or there with the same MORAY_TOKEN:")
        click.echo(f'  moray.init("{node.head}")')
        click.echo("\nEnd it:\n  moray stop")


def _pass_on_stops(handle: NodeHandle) -> list[int]:
    """What tells this process to end, ends the node; the list tells that it has come."""
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        process_control.kill(handle.pid, signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return stopped


def _wait(handle: NodeHandle, stopped: list[int]) -> int:
    """Until the node ends, or this process is told to end: for supervisors."""
    handle.wait_ended()
    if stopped:
        return 0
    click.echo(f"the node has ended (status {handle.status})", err=True)
    return 1


# --- stop ---------------------------------------------------------------------------------------------


def stop(force: bool, temp_dir: str, grace_s: float = _STOP_S) -> int:
    """End this user's nodes of clusters on this machine, and only their processes."""
    nodes = [found for found in find_nodes(temp_dir, starting=True) if not found.node.driver_only]
    if not nodes:
        click.echo("no node of a cluster runs here")
        return 0
    for found in nodes:
        if not force:
            process_control.kill(found.node.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for found in nodes:
        while not force and session_directory.is_alive(found.session.session_dir) and time.monotonic() < deadline:
            time.sleep(0.02)
        forced = session_directory.is_alive(found.session.session_dir)
        if forced:
            process_control.kill(found.node.pid)
            session_directory.kill_tagged(found.session.session)
        # A node that is told to end while it begins anew cannot do so itself.
        session_directory.remove_session(found.session.session_dir)
        how = "ended by force" if forced else "ended"
        click.echo(f"node {found.node.node_id[:8]} of the cluster at {found.node.head} has {how}")
    return 0


# --- status and drain -------------------------------------------------------------------------------------


def _connect(address: str, temp_dir: str) -> Found | None:
    """Become a driver of the cluster; the node of this machine, if it has one."""
    import moray

    node = find_driver_node(address, temp_dir)
    try:
        moray.init(
            address or (f"unix://{node.session.address}" if node is not None else "auto"),
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, AuthenticationError, NodeStartError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    return node


def status(address: str, temp_dir: str, as_json: bool) -> int:
    """Nodes, resources, demand, and what waits and why."""
    import moray
    from moray.cli.output import print_table
    from moray.node.certificate import AUTHORITY_ENDS_S, authority_warning

    _connect(address, temp_dir)
    try:
        from moray.runtime.cluster_report import cluster_report

        report = cluster_report()
    finally:
        moray.shutdown()
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return 0
    rows = [
        [
            node["id"][:8] + (" (head)" if node.get("head") else ""),
            node["state"],
            node["address"],
            "  ".join(f"{name} {used:g}/{total:g}" for name, (used, total) in node["resources"].items()),
            " ".join(f"{name}={value}" for name, value in node["labels"].items()),
        ]
        for node in report["nodes"]
    ]
    print_table("Nodes", ["node", "state", "address", "used of total", "labels"], rows)
    if report["authority_ends"] and report["authority_ends"] - time.time() < AUTHORITY_ENDS_S:
        click.echo(authority_warning(report["authority_ends"]) + "\n")
    for node in report["nodes"]:
        if node["leaving"]:
            click.echo(_leaving(node["id"][:8], node["leaving"]))
    if report["pending"]:
        rows = [[str(item["count"]), item["name"], item["reason"]] for item in report["pending"]]
        print_table("Waiting", ["how many", "what", "why"], rows, right=[0])
    else:
        click.echo("nothing waits")
    return 0


def _leaving(node: str, leaving: dict[str, Any]) -> str:
    """When a node leaves, why, and what keeps it."""
    left_s = leaving["deadline"] - time.time()
    when = f"within {left_s:.0f} s" if left_s > 0 else "now: its deadline has come"
    lines = [f"node {node} leaves {when} ({leaving['reason']}); it has", *(leaving["holds"] or ["nothing more"])]
    return "\n  ".join(lines) + "\n"


def drain(node: str, deadline: str, reason: str, temp_dir: str) -> int:
    """Have a node leave: no new work, what may move moves, then it ends."""
    import moray

    seconds = _seconds(deadline)
    _connect("", temp_dir)
    try:
        from moray.runtime.cluster_report import drain_node

        problem = drain_node(node, seconds, reason)
    finally:
        moray.shutdown()
    if problem:
        raise click.ClickException(problem)
    click.echo(f"node {node} takes no new work, and leaves within {seconds:g} s")
    return 0


def _seconds(text: str) -> float:
    """``90``, ``90s``, ``10m``, ``2h``."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = -1
    if value <= 0:
        raise click.BadParameter(f"{text!r} should be a time such as 90s, 10m or 2h", param_hint="--deadline")
    return value
