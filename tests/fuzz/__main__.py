"""`python -m tests.fuzz TARGET [SECONDS] [DIRECTORY]`: atheris, from the kept corpus; what is new goes to DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

CORPUS = Path(__file__).parent / "corpus"

with atheris.instrument_imports(include=["moray.protocol", "moray.security"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = sys.argv[1]
    seconds = sys.argv[2] if len(sys.argv) > 2 else "60"
    new = sys.argv[3] if len(sys.argv) > 3 else str(CORPUS / target)
    arguments = [
        sys.argv[0],
        new,
        str(CORPUS / target),
        f"-max_total_time={seconds}",
        "-max_len=2048",
        "-rss_limit_mb=1024",
    ]
    arguments += ["-timeout=10", f"-artifact_prefix={new}/", "-verbosity=1", "-print_final_stats=1"]
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
