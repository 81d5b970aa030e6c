"""The table of small values in a session without a head of its own: in memory, and gone with the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moray.protocol import messages as m

if TYPE_CHECKING:
    from moray.head.values import Values
    from moray.node.clients import Client


class LocalValues:
    """Answers requests as the head does (:mod:`moray.head.values`)."""

    def __init__(self) -> None:
        #: None: nobody has asked yet.
        self._values: Values | None = None

    def on_request(self, client: Client, asked: m.KvRequest) -> None:
        """A client reads or changes a value. Loop only."""
        if self._values is None:
            from moray.head.values import Values  # With the head's storage, which few sessions need.

            self._values = Values(_Nothing())
        client.send(self._values.answer(asked))


class _Nothing:
    """In place of the head's storage."""

    def write(self, table: str, key: bytes, value: bytes | None) -> None:
        """What is kept in memory is enough."""
