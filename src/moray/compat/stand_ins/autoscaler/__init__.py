"""Ray's autoscaler: there is none, the machines are those that were started."""
