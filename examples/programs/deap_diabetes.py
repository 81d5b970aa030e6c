"""DEAP: genetic programming of a formula for the progress of diabetes, evaluated in Ray's multiprocessing pool."""

from __future__ import annotations

import operator
import random
import warnings
from contextlib import ExitStack
from typing import Any

import numpy as np
from deap import algorithms, base, creator, gp, tools
from sklearn.datasets import load_diabetes

from examples.programs.outcome import CPUS, measure

warnings.filterwarnings("ignore")

PATIENTS, PROGRESS = load_diabetes(return_X_y=True)
PATIENTS = np.tile((PATIENTS * 20).T, 60)
PROGRESS = np.tile(PROGRESS, 60)


def divide(left: Any, right: Any) -> Any:
    """Division that does not fail near zero."""
    return left / np.sqrt(1 + right * right)


symbols = gp.PrimitiveSet("progress", len(PATIENTS))
for function, arity in ((np.add, 2), (np.subtract, 2), (np.multiply, 2), (divide, 2), (np.tanh, 1)):
    symbols.addPrimitive(function, arity, name=function.__name__)
symbols.addTerminal(100.0)
creator.create("Error", base.Fitness, weights=(-1.0,))
creator.create("Formula", gp.PrimitiveTree, fitness=creator.Error)


def error(formula: Any) -> tuple[float]:
    """How far the formula is from what happened."""
    guess = gp.compile(gp.PrimitiveTree(formula), symbols)(*PATIENTS)
    return (round(float(np.sqrt(np.mean((guess - PROGRESS) ** 2))), 9),)


def breed(with_ray: bool) -> dict[str, Any]:
    """The best formula after some generations."""
    random.seed(4)
    box = base.Toolbox()
    box.register("expression", gp.genHalfAndHalf, pset=symbols, min_=2, max_=5)
    box.register("individual", tools.initIterate, creator.Formula, box.expression)
    box.register("population", tools.initRepeat, list, box.individual)
    box.register("mate", gp.cxOnePoint)
    box.register("grow", gp.genFull, min_=0, max_=2)
    box.register("mutate", gp.mutUniform, expr=box.grow, pset=symbols)
    box.register("select", tools.selTournament, tournsize=4)
    box.register("evaluate", error)
    for change in ("mate", "mutate"):
        box.decorate(change, gp.staticLimit(key=operator.attrgetter("height"), max_value=9))
    with ExitStack() as stack:
        if with_ray:
            from ray.util.multiprocessing import Pool

            box.register("map", stack.enter_context(Pool(CPUS)).map)
        people, log = algorithms.eaSimple(box.population(n=400), box, 0.7, 0.2, ngen=15, verbose=False)
    best = tools.selBest(people, 1)[0]
    return {"formula": str(best), "error": best.fitness.values[0], "evaluated": log.select("nevals")}


if __name__ == "__main__":
    measure(breed)
