"""Channels of Ray's compiled graphs: moray's are an inner matter (:mod:`moray.runtime.channels`)."""
