"""The scripts of this folder: which package each is about, what it needs, what it does."""

from __future__ import annotations

from typing import Final, NamedTuple


class Program(NamedTuple):
    """A script, and what the table says of it."""

    #: The file, without ``.py``.
    script: str
    #: The distribution whose Ray backend is used; its version goes into the table.
    package: str
    #: How the package uses Ray.
    uses: str
    #: Modules that must be there for the script to run.
    modules: tuple[str, ...]
    #: Why it cannot run on moray yet; empty if it runs.
    fails: str = ""


PROGRAMS: Final = (
    Program("sklearn_digits", "scikit-learn", "joblib backend: grid search", ("sklearn", "joblib")),
    Program("sklearn_forest", "joblib", "joblib backend: cross validation, importances", ("sklearn", "joblib")),
    Program("pymoo_features", "pymoo", "a task per evaluation", ("pymoo", "sklearn")),
    Program("modin_health", "modin", "data frames of blocks", ("modin", "statsmodels")),
    Program("sktime_airline", "sktime", "a task per cut-off", ("sktime", "sklearn")),
    Program("swifter_health", "swifter", "a task per part of the groups", ("swifter", "statsmodels")),
    Program("deephyper_wine", "deephyper", "coroutines that await tasks", ("deephyper", "sklearn")),
    Program("cubed_images", "cubed", "tasks as asyncio futures, with memory", ("cubed", "sklearn")),
    Program("econml_visits", "econml", "a task per fold", ("econml", "statsmodels")),
    Program("hamilton_diabetes", "apache-hamilton", "a task per node of a dataflow", ("hamilton", "sklearn")),
    Program("bestfit_health", "spark-bestfit", "a task per distribution", ("spark_bestfit", "statsmodels")),
    Program("raymap_digits", "ray-map", "batches in flight, with limits", ("ray_map", "sklearn")),
    Program("flower_digits", "flwr", "a pool of actors of its own", ("flwr", "sklearn")),
    Program("hydra_cancer", "hydra-ray-launcher", "a task per run", ("hydra", "hydra_plugins.hydra_ray_launcher")),
    Program("cotengra_lattice", "cotengra", "an executor of its own", ("cotengra",)),
    Program("deap_diabetes", "deap", "`ray.util.multiprocessing.Pool`", ("deap", "sklearn")),
    Program("dask_photos", "dask", "`ray.util.dask`", ("dask", "sklearn")),
    Program("prefect_wine", "prefect-ray", "task runner, lazy import of ray", ("prefect_ray", "sklearn")),
    Program("datatrove_texts", "datatrove", "placement groups, actors", ("datatrove", "sklearn")),
)  # fmt: skip

#: Installed as usual. The bounds are those that let all of them live in one environment.
REQUIREMENTS: Final = (
    "scikit-learn", "joblib", "pymoo", "modin", "pandas<2.4", "sktime", "swifter", "deephyper", "cubed", "econml",
    "apache-hamilton", "spark-bestfit", "flwr", "hydra-core", "cotengra", "deap", "dask[array,dataframe]", "prefect",
    "fastapi==0.139.*", "datatrove", "statsmodels", "tqdm", "pillow",
)  # fmt: skip
#: These ask pip for Ray itself, which must not be where moray runs.
WITHOUT_DEPENDENCIES: Final = ("ray-map", "hydra-ray-launcher", "prefect-ray")
