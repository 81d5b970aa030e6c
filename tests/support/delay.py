"""Delays what leaves a host: ``python delay.py ADDRESS SECONDS``, run in the host's namespace.

Kernels without netem cannot do that themselves. A tunnel takes the packets for the host's network, this program
keeps each one for its time, and sends it as it is by the real interface. Ends with SIGTERM, and the tunnel with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import NoReturn

_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_TUN_WITHOUT_HEADER = 0x1001  # IFF_TUN | IFF_NO_PI
_PACKET_BYTES = 1 << 16


def main(address: str, seconds: float) -> NoReturn:
    tunnel = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tunnel, _SET_INTERFACE, struct.pack("16sH22x", b"delay", _TUN_WITHOUT_HEADER))
    # Answers come by the interface, not by the tunnel that their senders are reached through.
    for name in ("all", "eth0"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    network = address.rpartition(".")[0] + ".0/25"
    subprocess.run(["ip", "link", "set", "delay", "mtu", "1500", "up"], check=True)
    subprocess.run(["ip", "route", "add", network, "dev", "delay", "src", address], check=True)
    print("ready", flush=True)
    kept: deque[tuple[float, bytes]] = deque()
    while True:
        now = time.monotonic()
        while kept and kept[0][0] <= now:
            _due, packet = kept.popleft()
            out.sendto(packet, (socket.inet_ntoa(packet[16:20]), 0))
        select.select([tunnel], [], [], kept[0][0] - now if kept else None)
        try:
            while True:
                packet = os.read(tunnel, _PACKET_BYTES)
                if packet[0] >> 4 == 4:  # The kernel looks for IPv6 routers there, too.
                    kept.append((time.monotonic() + seconds, packet))
        except BlockingIOError:
            pass


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
