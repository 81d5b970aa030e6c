"""Bodies of frames that are no messages, each for a reason of its own."""

from __future__ import annotations

from typing import Final

UNREADABLE: Final[dict[str, bytes]] = {
    "junk": b"\xc1",
    # A KvRequest whose `op` is no UTF-8.
    "text": b"\x96\xcc\xa0\x01\xa2\xff\xfe\xc4\x00\xc4\x00\xc4\x00",
    # A GroupList with lists in lists in lists.
    "nesting": b"\x93\xcc\xa7\x01\x91\x81\xa1a" + b"\x91" * 5_000,
}
