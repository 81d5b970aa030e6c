"""What a store must know of a blob that it never unpickles: its first byte.

:mod:`moray.serialization` has all the forms.
"""

from __future__ import annotations

from typing import Final

#: Values read in place whose memory their readers may write to (torch tensors): each reader gets pages of its
#: own, copied by the kernel when they are written (SNAPSHOT).
OWN_PAGES: Final = ord("T")
