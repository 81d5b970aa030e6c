"""Spilling elsewhere, from init() on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import moray

MIB = 1 << 20


@pytest.mark.slow
def test_objects_go_where_init_says_and_come_back(tmp_path: Path) -> None:
    places = [tmp_path / "one", tmp_path / "two"]
    config = {"type": "filesystem", "params": {"directory_path": [str(place) for place in places]}}
    moray.init(
        num_cpus=1,
        object_store_memory=32 * MIB,
        _system_config={"object_spilling_config": json.dumps(config)},
    )
    try:
        refs = [moray.put(np.full(4 * MIB, number, np.uint8)) for number in range(40)]
        assert all(os.listdir(place) for place in places)
        assert all((moray.get(ref) == number).all() for number, ref in enumerate(refs))
        del refs
    finally:
        moray.shutdown()
    assert not any(any(files) for place in places for _, _, files in os.walk(place))


@pytest.mark.parametrize(
    "config",
    [
        "nonsense",
        {"type": "nowhere"},
        {"type": "filesystem", "params": {"directory_path": "/tmp", "no_such": 1}},
        {"type": "filesystem", "params": {"directory_path": "/tmp", "buffer_size": "large"}},
    ],
)
def test_a_config_that_means_nothing_is_an_error_at_init(config: object) -> None:
    with pytest.raises(ValueError, match="object_spilling_config"):
        moray.init(num_cpus=1, _system_config={"object_spilling_config": config})
