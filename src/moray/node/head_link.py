"""A node's connection to the head: its lease, what is said to the head and by it, and the table of all nodes.

**Streams** (HEAD-EPOCH; the head's side is :mod:`moray.head.peers`). What this node and its clients say to the head is
numbered, kept, and repeated on each new connection until the head says that it is carried out and stored. What the head
says is numbered too, and taken once. So neither a lost connection nor a new head loses or repeats anything.

**The lease** (FENCE). Renewed every second; it ends a lease after a renewal was *sent* that was answered, which is
never later than what the head believes. Its end stands in a shared page, where workers look for themselves, so that
nothing starts here any more when others may take this node for dead, whatever state this process is in.

**Being refused.** A head with a lower epoch than one seen before is left alone. A node that was declared dead, or whose
tag another one has, is told so: everything that runs here belongs to nobody any more. The node ends it, and then
joins anew with another id (:meth:`HeadLink.join`).

Owned by the node's loop.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, Final, Protocol

import msgspec

from moray.core.cluster_view import ClusterView
from moray.ids import tag_of
from moray.node.logs import log
from moray.platform.lease_page import LeasePage, boottime_ns
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, decode_body, encode_frame
from moray.protocol.reactor import Reactor, Timer

#: At least between renewals that tell of changes.
_RENEW_SOON_S: Final = 0.1
#: The head may ask for renewals that are earlier than usual, but for none before this time, and a smaller difference is
#: nothing to it.
_LEAST_RENEW_S: Final = m.RENEW_S / 2
_EARLIER_S: Final = 0.002
#: A connection on which the head has not answered for this share of a lease is given up: its machine may have vanished.
_PATIENCE: Final = 0.5
#: A connection that cannot be made is tried again after this time, doubled up to the last, and never at the same moment
#: as all others.
_RETRY_S: Final = 0.05
_RETRY_MAX_S: Final = 1.0
#: Refused codes upon which this node is nobody, and joins with another id.
_ANEW: Final = frozenset({"fenced", "tag"})


class Wire(Protocol):
    """A connection to the head."""

    on_message: Callable[[Any, Any], None]
    on_close: Callable[[Any, str], None]

    def send(self, message: m.Message) -> None: ...
    def send_frame(self, frame: bytes) -> bool: ...
    def flush(self) -> None: ...
    def close(self, reason: str = ...) -> None: ...


#: Connects to the head: (on_message, on_close) → the connection; OSError if that fails at once.
Dial = Callable[[Callable[[Any, Any], None], Callable[[Any, str], None]], Wire]


class HeadEvents(Protocol):
    """What concerns the node's other parts."""

    def available(self) -> tuple[m.Resources, list[tuple[m.Resources, int]]]:
        """What is free here, and what waits: (resources, how many)."""

    def inventory(self) -> tuple[list[int], list[tuple[bytes, int, bytes, int, str, int]], list[tuple[bytes, int]]]:
        """Jobs, actors and bundles that are here, as in NodeHello."""

    def deliver(self, processes: list[bytes], body: bytes) -> None:
        """Pass a message on to clients."""

    def end_actors(self, actors: list[tuple[bytes, int]]) -> None:
        """These incarnations have been replaced elsewhere."""

    def view_changed(self) -> None: ...
    def node_died(self, node_id: bytes, reason: str) -> None: ...
    def job_ended(self, ended: m.JobEnded) -> None: ...

    def fenced(self, reason: str) -> None:
        """This node is nobody to the others: end everything, then `join` with another id."""

    def mismatched(self, reason: str) -> None:
        """The head is of another version."""

    def head_silent(self, reason: str) -> None:
        """The lease has ended, because there is no connection to the head."""

    def head_back(self, after_s: float) -> None:
        """The head welcomes this node after so many seconds without a connection."""

    def head_lost(self, reason: str) -> None:
        """There has been no connection for `lost_s`."""


class HeadLink:
    """See the module."""

    def __init__(
        self, reactor: Reactor, dial: Dial, page: LeasePage, events: HeadEvents, lost_s: float = math.inf
    ) -> None:
        """`lost_s`: for how long at most this node looks for a head that it had a connection with."""
        self._reactor = reactor
        self._dial = dial
        self._page = page
        self._events = events
        self._info: m.NodeInfo | None = None
        #: What keeps this node, which is to leave, in words.
        self.holds: list[str] = []
        self._wire: Wire | None = None
        #: The head has welcomed us on this connection.
        self.welcomed = False
        #: The highest epoch of a head that was seen.
        self.epoch = 0
        self.cluster_id = ""
        self._lease_ns = 0
        #: All living nodes, as the scheduler needs them; as they describe themselves, by tag.
        self.view = ClusterView()
        self._nodes: dict[bytes, m.NodeInfo] = {}
        #: (number, frame) of what the head may not have carried out, oldest first; numbers so far.
        self._kept: deque[tuple[int, bytes]] = deque()
        self._said = 0
        self._relayed = 0
        #: Number of the last FromHead.
        self._heard = 0
        #: The first renewal that tells what this node has in all now; -1: none does yet; 0: the head knows.
        self._total_number = 0
        #: (number, when it was sent) of unanswered renewals, on CLOCK_BOOTTIME.
        self._renewals: deque[tuple[int, int]] = deque()
        self._renewal_numbers = count(1)
        #: (number of a renewal, or 0: of the next one; what waits until it is answered).
        self._current: deque[tuple[int, Callable[[], None]]] = deque()
        self._hello_ns = 0
        #: When something was heard last; monotonic.
        self._heard_at = 0.0
        #: Since when the head has been away, and why it cannot be reached; 0: it is there, or never was.
        self._away_since = 0.0
        self._away_reason = ""
        self._lost_s = lost_s
        self._away_timer: Timer | None = None
        self._renew_timer: Timer | None = None
        self._soon_timer: Timer | None = None
        self._retry_timer: Timer | None = None
        self._retry_s = _RETRY_S
        self._requests = count(1)
        self._numbers_wanted: dict[int, Callable[[int], None]] = {}
        self._settings_wanted: dict[int, list[Callable[[m.JobSettings], None]]] = {}
        #: Messages of the head to this node itself → what becomes of them; the node adds its own.
        self.handlers: dict[type[Any], Callable[[Any], None]] = {
            m.JobNumber: self._on_job_number,
            m.JobSettings: self._on_job_settings,
            m.JobEnded: events.job_ended,
        }
        self._wire_handlers: dict[type[Any], Callable[[Any], None]] = {
            m.NodeWelcome: self._on_welcome,
            m.Refused: self._on_refused,
            m.LeaseRenewed: self._on_renewed,
            m.ViewDelta: self._on_delta,
            m.RelayDone: lambda message: self._forget(message.number),
            m.FromHead: self._on_from_head,
            m.CertificateRenewed: self._on_certificate,
        }
        #: Hears of this node's new certificate, or why there is none.
        self.on_certificate: Callable[[m.CertificateRenewed], None] = lambda _message: None

    # --- beginning and end ------------------------------------------------------------------------------

    def join(self, info: m.NodeInfo) -> None:
        """Be this node from now on; nothing of an earlier one's is left."""
        self._info = info
        self.view = ClusterView(info.node_id)
        self._nodes = {}
        self._kept.clear()
        self._said = self._relayed = self._heard = 0
        self._numbers_wanted.clear()
        self._settings_wanted.clear()
        self._retry_s = _RETRY_S
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._connect()

    def close(self, reason: str = "") -> None:
        """This node ends, and nothing runs here any more: say so, if there is a connection."""
        if self.welcomed and self._wire is not None and reason:
            self._wire.send(m.NodeLeaves(reason))
            self._wire.flush()
        self._leave()

    def _leave(self) -> None:
        self._info = None
        for timer in (self._renew_timer, self._soon_timer, self._retry_timer, self._away_timer):
            if timer is not None:
                timer.cancel()
        if self._wire is not None:
            self._wire.close()

    # --- what is said to the head -----------------------------------------------------------------------

    def relay(self, process: bytes, pid: int, job: int, message: m.Message) -> None:
        """A client's message."""
        self._said += 1
        frame = encode_frame(m.ToHead(self._said, process, pid, job, encode_frame(message)[HEADER.size :]))
        self._kept.append((self._said, frame))
        if self.welcomed and self._wire is not None:
            self._wire.send_frame(frame)

    def report(self, message: m.Message) -> None:
        """The node's own: deaths, placed workers, ended jobs."""
        self.relay(b"", 0, 0, message)

    def begin_job(
        self, process: bytes, pid: int, address: str, config: bytes, on_number: Callable[[int], None]
    ) -> None:
        """A driver is here: what is its job's number?"""
        request = next(self._requests)
        self._numbers_wanted[request] = on_number
        self.report(m.JobStarted(request, process, pid, config, address=address))

    def get_job(self, job: int, on_settings: Callable[[m.JobSettings], None]) -> None:
        """What are a job's settings?"""
        waiting = self._settings_wanted.setdefault(job, [])
        waiting.append(on_settings)
        if len(waiting) == 1:
            self.report(m.GetJob(job))

    def settled(self) -> bool:
        """Whether the head has carried out all that was said."""
        return not self._kept

    def changed(self) -> None:
        """Much has changed here: tell the head soon."""
        if self._soon_timer is None and self.welcomed:
            self._soon_timer = self._reactor.call_later(_RENEW_SOON_S, self._renew_soon)

    def ask_certificate(self) -> None:
        """Ask for a new certificate, if there is a connection; answered by `on_certificate`."""
        if self.welcomed and self._wire is not None:
            self._wire.send(m.RenewCertificate())

    def set_address(self, address: str) -> None:
        """Others reach this node somewhere else from now on."""
        if self._info is not None and address != self._info.address:
            self._info.address = address
            if self._wire is not None:
                # A node says where it is when it connects, and may have done so with the old address already.
                self._wire.close(f"this node is reached at {address} now")

    def set_total(self, resources: m.Resources) -> None:
        """What this node has in all is different: bundles of groups came or went."""
        if self._info is not None and resources != self._info.resources:
            self._info.resources = dict(resources)
            self._total_number = -1
            self.changed()

    @property
    def lease_s(self) -> float:
        """How long a lease is."""
        return self._lease_ns / 1e9

    def when_current(self, call: Callable[[], None]) -> None:
        """Make `call` when the table of nodes is no older than this moment: the head has been heard of since."""
        self._current.append((0, call))
        self.changed()

    def nodes(self) -> dict[bytes, m.NodeInfo]:
        """The living nodes, this one among them, by tag."""
        return self._nodes

    # --- connections --------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._retry_timer = None
        if self._info is None or self._wire is not None:
            return
        try:
            self._wire = self._dial(self._on_message, self._on_close)
        except OSError as error:
            self._retry_later(str(error))
            return
        available, demand = self._events.available()
        info = msgspec.structs.replace(self._info, available=available, demand=demand)
        jobs, actors, bundles = self._events.inventory()
        self._hello_ns = boottime_ns()
        self._heard_at = monotonic()
        self._wire.send(
            m.NodeHello(
                m.PROTOCOL_VERSION,
                info,
                self.epoch,
                self.view.version,
                jobs,
                actors,
                bundles,
                self._heard,
                self._relayed,
            )
        )
        # A head that does not answer is left, like one that stops answering.
        self._renew_timer = self._reactor.call_later(m.RENEW_S, self._renew)

    def _on_close(self, wire: Any, reason: str) -> None:
        if wire is not self._wire:
            return
        self._wire = None
        if self.welcomed:
            log(f"the connection to the head is lost: {reason}")
            self._away_since = self._heard_at
            silent_s = max(0.0, (self._page.end_ns - boottime_ns()) / 1e9)
            self._away_timer = self._reactor.call_later(silent_s, self._on_silent)
        self.welcomed = False
        self._renewals.clear()
        if self._renew_timer is not None:
            self._renew_timer.cancel()
        if self._info is not None:
            self._retry_later(reason)

    def _on_silent(self) -> None:
        """The lease has ended, and there is no connection."""
        left_s = self._away_since + self._lost_s - monotonic()
        if left_s != math.inf:
            self._away_timer = self._reactor.call_later(
                max(0.0, left_s), lambda: self._events.head_lost(self._away_reason)
            )
        self._events.head_silent(self._away_reason)

    def _on_back(self) -> None:
        """It is here: its absence is over."""
        if self._away_timer is not None:
            self._away_timer.cancel()
            self._away_timer = None
        if self._away_since:
            away_s, self._away_since = monotonic() - self._away_since, 0.0
            self._events.head_back(away_s)

    def _retry_later(self, reason: str) -> None:
        self._away_reason = reason
        pause_s = self._retry_s * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)
        self._retry_timer = self._reactor.call_later(pause_s, self._connect)

    def _on_message(self, wire: Any, message: Any) -> None:
        if self._wire is None or wire is not self._wire:
            return
        handler = self._wire_handlers.get(type(message))
        if handler is None or (not self.welcomed and not isinstance(message, m.NodeWelcome | m.Refused)):
            wire.close(f"a head has no business sending {type(message).__name__} now")
            return
        self._heard_at = monotonic()
        handler(message)

    def _on_welcome(self, welcome: m.NodeWelcome) -> None:
        assert self._wire is not None
        if welcome.epoch < self.epoch:
            self._wire.close(f"it is an old head (epoch {welcome.epoch}; epoch {self.epoch} was here)")
            return
        if welcome.epoch > self.epoch:
            log(f"the head welcomes this node, epoch {welcome.epoch}")
        self.epoch, self.cluster_id = welcome.epoch, welcome.cluster_id
        self._lease_ns = int(welcome.lease_s * 1e9)
        self._extend(self._hello_ns)
        self._retry_s = _RETRY_S
        self.welcomed = True
        self._on_back()
        self._forget(welcome.relayed)
        for _number, frame in self._kept:
            self._wire.send_frame(frame)
        if welcome.fenced:
            self._events.end_actors(welcome.fenced)
        gone = self.view.reset(welcome.view, welcome.nodes)
        self._nodes = {tag_of(info.node_id): info for info in welcome.nodes}
        for node_id in gone:
            self._events.node_died(node_id, "it died while this node had no connection to the head")
        self._events.view_changed()
        # The whole table; what was sent on the last connection is not answered any more.
        waiting, self._current = self._current, deque()
        for _number, call in waiting:
            call()

    def _on_refused(self, refused: m.Refused) -> None:
        log(f"the head refuses this node: {refused.reason}")
        if refused.code not in _ANEW:
            # An old head, or one of another version: there may be another one soon.
            self._retry_s = _RETRY_MAX_S
            assert self._wire is not None
            self._wire.close(refused.reason)
            if refused.code == "version":
                self._events.mismatched(refused.reason)
            return
        self._page.end_ns = 1
        self._leave()
        self._events.fenced(refused.reason)

    # --- the lease ------------------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Once a second."""
        assert self._wire is not None
        if monotonic() - self._heard_at > max(2 * m.RENEW_S, _PATIENCE * self._lease_ns / 1e9):
            self._wire.close("the head does not answer")
            return
        self._renew_timer = self._reactor.call_later(m.RENEW_S, self._renew)
        if self.welcomed:
            self._send_renewal()

    def _renew_soon(self) -> None:
        self._soon_timer = None
        if self.welcomed:
            self._send_renewal()

    def _send_renewal(self) -> None:
        assert self._wire is not None
        number = next(self._renewal_numbers)
        self._current = deque((wanted or number, call) for wanted, call in self._current)
        available, demand = self._events.available()
        self._renewals.append((number, boottime_ns()))
        total: m.Resources = {}
        if self._total_number and self._info is not None:
            # Told until that is answered: connections may be lost.
            total = self._info.resources
            self._total_number = number if self._total_number < 0 else self._total_number
        self._wire.send(m.RenewLease(number, available, demand, self._heard, total, self.holds))

    def _on_renewed(self, renewed: m.LeaseRenewed) -> None:
        while self._renewals and self._renewals[0][0] <= renewed.number:
            number, sent_ns = self._renewals.popleft()
            if number == renewed.number:
                self._extend(sent_ns)
                if 0 < self._total_number <= number:
                    self._total_number = 0
        if renewed.next_s >= _LEAST_RENEW_S:
            due = monotonic() + renewed.next_s
            if self._renew_timer is not None and due < self._renew_timer.due - _EARLIER_S:
                self._renew_timer.cancel()
                self._renew_timer = self._reactor.call_later(renewed.next_s, self._renew)
        self._call_waiting(renewed.number)

    def _call_waiting(self, answered: int) -> None:
        """The table is as new as when this renewal was sent."""
        while self._current and 0 < self._current[0][0] <= answered:
            self._current.popleft()[1]()

    def _extend(self, sent_ns: int) -> None:
        """The head has heard of us after this moment: it counts a lease from then on, or from later."""
        self._page.end_ns = max(self._page.end_ns, sent_ns + self._lease_ns)

    # --- what the head says -----------------------------------------------------------------------------------

    def _on_delta(self, delta: m.ViewDelta) -> None:
        if not self.view.apply(delta.view, delta.changed, delta.dead, delta.loads):
            assert self._wire is not None
            self._wire.close(f"version {delta.view} of the table of nodes came after {self.view.version}")
            return
        for info in delta.changed:
            self._nodes[tag_of(info.node_id)] = info
        for node_id, reason in delta.dead:
            if self._nodes.pop(tag_of(node_id), None) is not None:
                self._events.node_died(node_id, reason)
        self._events.view_changed()

    def _on_certificate(self, message: m.CertificateRenewed) -> None:
        self.on_certificate(message)

    def _forget(self, number: int) -> None:
        """The head has carried out all up to this one."""
        self._relayed = max(self._relayed, number)
        while self._kept and self._kept[0][0] <= number:
            self._kept.popleft()

    def _on_from_head(self, told: m.FromHead) -> None:
        if told.number <= self._heard:
            return  # A repeat.
        if told.number != self._heard + 1:
            assert self._wire is not None
            self._wire.close(f"message {told.number} of the head came after {self._heard}")
            return
        self._heard = told.number
        if told.processes:
            self._events.deliver(told.processes, told.body)
            return
        message = decode_body(told.body)
        handler = self.handlers.get(type(message))
        if handler is None:
            log(f"the head sent {type(message).__name__}, for which there is no use here")
        else:
            handler(message)

    def _on_job_number(self, message: m.JobNumber) -> None:
        on_number = self._numbers_wanted.pop(message.request, None)
        if on_number is not None:
            on_number(message.job)

    def _on_job_settings(self, message: m.JobSettings) -> None:
        for on_settings in self._settings_wanted.pop(message.job, ()):
            on_settings(message)


def dial_plain(address: str, reactor: Reactor) -> Dial:
    """Connects to a head that neither encrypts nor checks (tests)."""

    def dial(on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]) -> Wire:
        from moray.protocol.connection import Connection
        from moray.protocol.tcp import parse_address, preface, start_connect

        # A socket that still connects takes no bytes, like one that is full: both go on when it is writable.
        connection = Connection(start_connect(*parse_address(address)), reactor, on_message, on_close)
        connection.send_frame(preface())
        return connection

    return dial


def dial_tls(address: str, reactor: Reactor, context: Any) -> Dial:
    """Connects to the head at HOST:PORT; `context` is :func:`moray.security.identity.client_context`'s."""

    def dial(on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]) -> Wire:
        from moray.protocol.tcp import parse_address, preface, start_connect
        from moray.protocol.tls import TlsConnection

        sock = start_connect(*parse_address(address))
        return TlsConnection(sock, reactor, on_message, on_close, context=context, server_side=False, preface=preface())

    return dial
