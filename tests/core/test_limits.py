"""How many calls of a group run at once, against a dumb model (LIMITS)."""

from __future__ import annotations

from random import Random

import pytest

from moray.core.limits import Limit


@pytest.mark.parametrize("seed", range(50))
def test_fixed_walks(seed: int) -> None:
    """Calls begin, wait, are cancelled and end in any order."""
    random = Random(seed)
    size = random.randint(1, 4)
    limit = Limit(size)
    inside: set[int] = set()
    waiting: list[int] = []
    for number in range(300):
        dice = random.random()
        if dice < 0.5:
            if limit.take():
                assert not waiting, "it has overtaken others (LIMITS-2)"
                inside.add(number)
            else:
                assert len(inside) == size, "a place is lost"
                limit.line_up(number)
                waiting.append(number)
        elif dice < 0.65 and waiting:
            gone = random.choice(waiting)
            assert limit.withdraw(gone)
            waiting.remove(gone)
        elif dice < 0.75 and inside:
            assert not limit.withdraw(random.choice(sorted(inside)))
        elif inside:
            inside.remove(random.choice(sorted(inside)))
            called = limit.release()
            assert called == (waiting.pop(0) if waiting else None), "in their order, each once (LIMITS-3)"
            if called is not None:
                inside.add(called)
        assert len(inside) <= size, "LIMITS-1"
        assert limit.free == size - len(inside)


def test_a_place_that_was_given_to_who_is_cancelled_goes_on() -> None:
    limit = Limit(1)
    assert limit.take()
    limit.line_up("first")
    limit.line_up("second")
    assert limit.release() == "first"
    assert not limit.withdraw("first")
    assert limit.release() == "second"
    assert limit.release() is None
    assert limit.take()
