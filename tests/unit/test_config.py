"""Variables of the environment."""

from __future__ import annotations

import pytest

from moray import config


def test_moray_wins_over_ray() -> None:
    both = {"MORAY_ADDRESS": "a", "RAY_ADDRESS": "b"}
    assert config.env_name("ADDRESS", both) == "MORAY_ADDRESS"
    assert config.env_str("ADDRESS", "c", both) == "a"
    assert config.env_str("ADDRESS", "c", {"RAY_ADDRESS": "b"}) == "b"
    assert config.env_str("ADDRESS", "c", {}) == "c"


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORAY_SOME_NUMBER", "5")
    assert config.env_int("SOME_NUMBER", 1) == 5


def test_numbers_and_switches() -> None:
    assert config.env_int("X", 1, {"MORAY_X": " 7 "}) == 7
    assert config.env_float("X", 1, {"RAY_X": "0.5"}) == 0.5
    assert [config.env_bool("X", False, {"MORAY_X": text}) for text in ("1", "True", "on", "0", "no", "")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size"),
    [("64000000", 64_000_000), ("64MB", 64_000_000), ("1.5 GiB", 3 << 29), ("2k", 2000), ("7 B", 7), ("1TB", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert config.env_bytes("X", 1, {"MORAY_X": text}) == size


@pytest.mark.parametrize("text", ["much", "1XB", "-5", "", "MB", "1 2"])
def test_a_wrong_size_names_the_variable(text: str) -> None:
    with pytest.raises(ValueError, match="RAY_X="):
        config.env_bytes("X", 1, {"RAY_X": text})


def test_a_wrong_number_names_the_variable() -> None:
    with pytest.raises(ValueError, match="MORAY_X='seven'"):
        config.env_int("X", 1, {"MORAY_X": "seven"})
    with pytest.raises(ValueError, match="MORAY_X='perhaps'"):
        config.env_bool("X", True, {"MORAY_X": "perhaps"})


def test_how_nodes_are_chosen() -> None:
    assert config.scheduler_knobs({}) == (0.5, 0.2, 1)
    rays = {"RAY_scheduler_spread_threshold": "0.8", "RAY_scheduler_top_k_absolute": "5"}
    assert config.scheduler_knobs(rays) == (0.8, 0.2, 5)
    assert config.scheduler_knobs({**rays, "MORAY_scheduler_spread_threshold": "0.1"}) == (0.1, 0.2, 5)
    assert config.scheduler_knobs({"MORAY_SCHEDULER_TOP_K_FRACTION": "1"}) == (0.5, 1.0, 1)
    with pytest.raises(ValueError, match="RAY_scheduler_spread_threshold=2 should be 0 to 1"):
        config.scheduler_knobs({"RAY_scheduler_spread_threshold": "2"})
    with pytest.raises(ValueError, match="MORAY_SCHEDULER_TOP_K_FRACTION='x' should be a number"):
        config.scheduler_knobs({"MORAY_SCHEDULER_TOP_K_FRACTION": "x"})
