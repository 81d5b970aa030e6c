"""Machines by demand: they come later; until then a cluster has the machines that were started (`moray start`)."""
