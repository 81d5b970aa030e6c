"""The pictures of the documents: ``python -m examples.pictures [name …] [--folder FOLDER]`` draws them anew.

``processes`` and ``task`` are drawn from what is written in :mod:`examples.pictures.diagrams`; ``reduce`` measures.
"""
