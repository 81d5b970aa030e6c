"""A program: a store that spills to a service which speaks S3. In a process of its own, for s3fs leaves a thread."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import s3fs
from moto.server import ThreadedMotoServer

from tests.store.harness import Loop

MIB = 1 << 20
A = b"process-a---"


def main(directory: str) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    system = s3fs.S3FileSystem(use_listings_cache=False)
    system.mkdir("spills")
    names = [bytes([number]) * 28 for number in range(10)]
    data = [os.urandom(MIB - number) for number in range(10)]
    with Loop(4 * MIB, Path(directory), targets=["s3://spills/session"]) as loop:
        for name, each in zip(names, data, strict=True):
            loop.put(A, name, each)
        assert loop["spilled_objects"] > 4
        assert system.find("spills/session")
        assert [bytes(loop.pin(A, name)) for name in names] == data
        assert not loop.warnings, loop.warnings
    assert not system.find("spills/session")
    server.stop()
    print("done")


if __name__ == "__main__":
    main(sys.argv[1])
