"""Programs of others: packages that have a Ray backend, each by a script on real data, run on moray unchanged.

``python -m examples.programs`` runs each script without Ray, on moray by ``moray run --as-ray``, and on Ray, compares
what they found, and can write the table of docs/compatibility.md.
"""
