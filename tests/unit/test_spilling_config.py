"""Where spilled objects go, as users write it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moray.launch.config import NodeConfig
from moray.launch.spilling import spill_places, spill_targets


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        ({}, ["/default"]),
        ({"object_spilling_directory": "/disk"}, ["/disk"]),
        ({"object_spilling_directory": "s3://bucket/path"}, ["s3://bucket/path"]),
        ({"type": "filesystem", "params": {"directory_path": "/disk"}}, ["/disk"]),
        ({"type": "filesystem", "params": {"directory_path": ["/a", "/b"], "buffer_size": 1 << 20}}, ["/a", "/b"]),
        ({"type": "smart_open", "params": {"uri": "s3://bucket/path"}}, ["s3://bucket/path"]),
        ({"type": "smart_open", "params": {"uri": ["s3://a", "s3://b"]}}, ["s3://a", "s3://b"]),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_what_may_be_written(config: dict[str, Any], targets: list[str], as_json: bool) -> None:
    if "type" in config:
        config = {"object_spilling_config": json.dumps(config) if as_json else config}
    given = {**config, "other": 1}
    assert spill_targets(given, "/default") == targets
    assert given == {"other": 1}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "should have a type among 'filesystem', 'smart_open'"),
        ({"type": "smart_open"}, "needs params with 'uri'"),
        ({"type": "filesystem", "params": "/tmp/x"}, "needs params with 'directory_path'"),
        ({"type": "filesystem", "params": {"directory_path": [1]}}, "needs params with 'directory_path'"),
    ],
)
def test_what_may_not(config: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spill_targets({"object_spilling_config": config}, "")


def test_both_ways_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        spill_targets({"object_spilling_directory": "/a", "object_spilling_config": "{}"}, "")


def test_a_session_has_its_own_folder() -> None:
    config = NodeConfig(session="s1", session_dir="/run/s1")
    assert spill_places(config) == ("/run/s1/spill", [])
    config.spill_targets = ["/disk/"]
    assert spill_places(config) == ("/disk/s1", [])
    config.spill_targets = ["s3://bucket/path"]
    assert spill_places(config) == ("/run/s1/spill", ["s3://bucket/path/s1"])
