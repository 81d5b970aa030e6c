"""Starting a node of a cluster: the first, which brings the head, or one that joins.

What needs `cryptography` happens here, in the process that starts the node: it makes the cluster's authority, or asks
the head for a certificate with the token, and leaves both in a directory that the node takes over into its session's
(:data:`~moray.launch.session_directory.TLS_FOLDER`). So daemons and workers never load that library, and no process of
the cluster has the token in its environment.

A node of a cluster writes what it belongs to beside its socket
(:mod:`moray.launch.cluster_file`), where drivers and the command line find it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from moray import config as config_values
from moray.config import RELAY_PATIENCE_S
from moray.launch import session_directory
from moray.launch.cluster_file import ClusterNode
from moray.launch.config import ClusterConfig, NodeConfig
from moray.launch.local import NodeHandle, NodeStartError, start_node
from moray.launch.session_directory import CLUSTER_FILE, Session, find_sessions, own_clusters

if TYPE_CHECKING:
    from moray.security.token import Token

#: The head's port if nobody says another.
DEFAULT_PORT: Final = 6379
#: Where a token may be read from when neither the caller nor the environment has one: the head's own machine.
TOKEN_FILE: Final = "token"  # noqa: S105 - the name of a file


class Found(msgspec.Struct):
    """A live node of this machine and user."""

    session: Session
    node: ClusterNode


def find_nodes(temp_dir: str = "", *, starting: bool = False) -> list[Found]:
    """The live nodes of clusters on this machine, newest first; `starting`: those, too, that begin anew just now."""
    found = []
    for session in find_sessions(temp_dir, starting=starting):
        try:
            with open(f"{session.session_dir}/{CLUSTER_FILE}", "rb") as file:
                found.append(Found(session, msgspec.json.decode(file.read(), type=ClusterNode)))
        except (OSError, msgspec.DecodeError):
            continue  # A local session; or it ends at this very moment.
    return found


def find_driver_node(address: str = "", temp_dir: str = "") -> Found | None:
    """The node of this machine that a driver connects to; None if there is none.

    Args:
        address: of the head of the cluster; "": any: one that this program has made for itself, or if there is none,
            that of this user's whose node was started last.
        temp_dir: where the sessions' directories are; "": TMPDIR, or /tmp.
    """
    nodes = _lasting_nodes(temp_dir)
    head = own_head(address, temp_dir) if address else nodes[0].node.head if nodes else ""
    # Beside the head there is what a driver expects: what the first node of the cluster was given.
    return min(
        (found for found in nodes if found.node.head == head), key=lambda found: not found.node.is_head, default=None
    )


def _lasting_nodes(temp_dir: str) -> list[Found]:
    """Those of this machine that are not for one driver alone."""
    return [found for root in (*own_clusters(), temp_dir) for found in find_nodes(root) if not found.node.driver_only]


def own_head(address: str, temp_dir: str = "", *, any_port: bool = False) -> str:
    """`address`, or that of a head of this machine if it is meant by ``localhost:PORT``.

    A head listens on the address that others reach it at, and not on the loopback. What does listen there, such as a
    tunnel, has precedence.

    Args:
        address: HOST:PORT.
        temp_dir: see :func:`find_driver_node`.
        any_port: a head with another port will do if there is none with this one.
    """
    from moray.protocol.tcp import format_address

    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or not _is_loopback(host):
        return address
    heads = [found.node.head for found in _lasting_nodes(temp_dir) if found.node.is_head]
    same = [head for head in heads if head.endswith(f":{port}")] or (heads if any_port else [])
    if not same or address in same:
        return address
    try:
        for info in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
            if (number := format_address(str(info[4][0]), int(port))) in same:
                return number  # It listens there itself, and is known by its number.
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return same[0]
    return address


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_node_ip() -> str:
    """The address that this machine uses towards others; loopback if it has no other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                ("192.0.2.1", 9)
            )  # An address for documentation: nothing is sent, only the route is looked up.
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def start_head(
    config: NodeConfig,
    *,
    node_ip: str = "",
    port: int = DEFAULT_PORT,
    node_port: int = 0,
    node_name: str = "",
    storage: str = "",
    durability: str = "",
    temp_dir: str = "",
    detached: bool = True,
) -> tuple[NodeHandle, str]:
    """Start a cluster: its first node, and the head beside it.

    Args:
        config: resources, labels, memory of the node.
        node_ip: the address that others reach this machine at; "": the one that it uses towards others.
        port: the head's; 0: any.
        node_port: the node's; 0: any.
        node_name: what people call it.
        storage: see :class:`~moray.launch.config.ClusterConfig`.
        durability: the same.
        temp_dir: where the session's directory goes; "": TMPDIR, or /tmp.
        detached: the node lives on when this process ends.

    Returns:
        The node, and the token that lets others join.

    Raises:
        NodeStartError: with one line that says why, for example who has the port.
    """
    from moray.security import authority, token as tokens

    made = authority.Authority.create()
    token = tokens.make(made.public_key)
    credentials = _new_directory(temp_dir)
    try:
        made.save(credentials)
        made.issue("head").save(credentials)
        tokens.save(token, credentials / TOKEN_FILE)
    except BaseException:
        session_directory.remove_tree(str(credentials))
        raise
    ip = node_ip or default_node_ip()
    cluster = ClusterConfig(
        head=f"{ip}:{port}",
        node_ip=ip,
        port=node_port,
        credentials=str(credentials),
        node_id=os.urandom(28),
        node_name=node_name,
        start_head=True,
        storage=storage,
        durability=durability,
    )
    return _start(config, cluster, temp_dir, detached), str(token)


def start_joined(
    config: NodeConfig,
    address: str,
    *,
    token: str = "",
    node_ip: str = "",
    node_port: int = 0,
    node_name: str = "",
    temp_dir: str = "",
    detached: bool = True,
    driver_only: bool = False,
    relayed: bool = False,
) -> NodeHandle:
    """Start a node that joins the cluster whose head is at `address`, "HOST:PORT".

    Args:
        config: resources, labels, memory of the node.
        address: the head's.
        token: the cluster's; "": MORAY_TOKEN, or that of the head, if it is on this machine.
        node_ip: the address that others reach this machine at; "": the one that it uses towards the head.
        node_port: the node's; 0: any.
        node_name: what people call it.
        temp_dir: where the session's directory goes; "": TMPDIR, or /tmp.
        detached: the node lives on when this process ends.
        driver_only: it takes no work: it connects this process, a driver, with the cluster.
        relayed: it makes connections to the head's address only, and nobody makes any to it: a relay beside the head
            passes on what it and others have to say to each other.

    Raises:
        NodeStartError: with one line that says why.
        AuthenticationError: no token, or one that is not the cluster's.
    """
    from moray.launch.joining import join_patiently
    from moray.protocol.tcp import format_address, parse_address
    from moray.security import token as tokens

    address = own_head(address, temp_dir)
    host, port = parse_address(address)
    host = _resolve(host)
    found = tokens.parse(token) if token else _find_token(address, temp_dir)
    node_id = os.urandom(28)
    identity = join_patiently(host, port, found, f"node {node_id.hex()[:16]}")
    credentials = _new_directory(temp_dir)
    try:
        identity.save(credentials)
    except BaseException:
        session_directory.remove_tree(str(credentials))
        raise
    cluster = ClusterConfig(
        head=format_address(host, port),
        node_ip=node_ip or ("127.0.0.1" if relayed else _ip_towards(host, port)),
        port=node_port,
        credentials=str(credentials),
        node_id=node_id,
        node_name=node_name,
        driver_only=driver_only,
        relayed=relayed,
        relay_patience_s=config_values.env_float("RELAY_PATIENCE_S", RELAY_PATIENCE_S),
    )
    return _start(config, cluster, temp_dir, detached)


def _start(config: NodeConfig, cluster: ClusterConfig, temp_dir: str, detached: bool) -> NodeHandle:
    try:
        return start_node(msgspec.structs.replace(config, cluster=cluster), temp_dir, detached=detached)
    finally:
        # The node has taken it over, if it came so far.
        session_directory.remove_tree(cluster.credentials)


def _new_directory(temp_dir: str) -> Path:
    """A directory beside the sessions' for what the node takes over."""
    root = session_directory.root_directory(temp_dir)
    return Path(session_directory.new_directory(root))


def _find_token(address: str, temp_dir: str) -> Token:
    """From the environment, or a node of this cluster on this machine."""
    from moray.exceptions import AuthenticationError
    from moray.security import token as tokens

    if any(os.environ.get(name) for name in ("MORAY_TOKEN", "MORAY_TOKEN_FILE")):
        return tokens.load()
    try:
        return tokens.load()
    except AuthenticationError:
        found = find_driver_node(address, temp_dir)
        path = f"{found.session.session_dir}/{session_directory.TLS_FOLDER}/{TOKEN_FILE}" if found else ""
        if path and os.path.exists(path):
            return tokens.load(path)
        raise


def _resolve(host: str) -> str:
    """The number of a host; NodeStartError if it has none."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise NodeStartError(f"the host {host!r} is not known: {error.strerror or error}") from None


def _ip_towards(host: str, port: int) -> str:
    """The address that this machine uses towards the head."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError as error:
            raise NodeStartError(f"there is no route to {host}: {error.strerror or error}") from None
        return str(probe.getsockname()[0])
