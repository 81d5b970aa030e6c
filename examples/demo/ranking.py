"""A ranking: one actor keeps the points, many tasks report to it, and readers ask while they do.

The actor needs no lock, because it runs one call at a time; its name lets tasks find it without a handle.
"""

from __future__ import annotations

import random
import time
from collections import Counter

import moray
from examples.demo.show import Show, check

PLAYERS = 40
TASKS = 16
GAMES_PER_TASK = 500


class Ranking:
    """Points by player."""

    def __init__(self) -> None:
        self.points: Counter[int] = Counter()
        self.games = 0

    def add(self, player: int, points: int) -> None:
        self.points[player] += points
        self.games += 1

    def best(self, count: int) -> list[tuple[int, int]]:
        """The best players, each with its points; of equals the lower number."""
        return sorted(self.points.items(), key=lambda item: (-item[1], item[0]))[:count]

    def played(self) -> int:
        """How many games have been told of."""
        return self.games


def games(seed: int) -> list[tuple[int, int]]:
    """(player, points) of each game of a task."""
    dice = random.Random(seed)
    return [(dice.randrange(PLAYERS), dice.randrange(10)) for _ in range(GAMES_PER_TASK)]


def play(seed: int, name: str) -> None:
    """Play some games and report each of them to the ranking of this name."""
    ranking = moray.get_actor(name)
    moray.get([ranking.add.remote(player, points) for player, points in games(seed)])


class RankingShow(Show):
    name = "ranking"
    detail = f"an actor counts the points that {TASKS} tasks report, {TASKS * GAMES_PER_TASK:,} calls"

    def run(self) -> str:
        alone = Ranking()
        for seed in range(TASKS):
            for player, points in games(seed):
                alone.add(player, points)
        ranking = moray.remote(Ranking).options(name="demo_ranking").remote()
        task = moray.remote(play)
        start = time.perf_counter()
        refs = [task.remote(seed, "demo_ranking") for seed in range(TASKS)]
        answers = 0
        while moray.wait(refs, num_returns=TASKS, timeout=0)[1]:
            moray.get(ranking.played.remote())
            answers += 1
        moray.get(refs)
        seconds = time.perf_counter() - start
        best = moray.get(ranking.best.remote(3))
        check(best == alone.best(3), f"the actor's ranking is {best}, and should be {alone.best(3)}")
        check(moray.get(ranking.played.remote()) == TASKS * GAMES_PER_TASK, "a game was lost or counted twice")
        podium = ", ".join(f"player {player} ({points})" for player, points in best)
        rate = TASKS * GAMES_PER_TASK / seconds
        return f"{podium}; {rate:,.0f} reports a second, and {answers:,} questions answered meanwhile"
