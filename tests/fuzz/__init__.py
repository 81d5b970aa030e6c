"""Bytes that nobody meant: targets, the runner of atheris, and a corpus that is kept.

`python -m tests.fuzz TARGET [SECONDS]` runs one for longer, and keeps what it finds in `corpus/TARGET`.
"""
