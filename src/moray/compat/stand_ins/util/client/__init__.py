"""Ray's client for remote clusters: only its types are here (:mod:`moray.compat.stand_ins.util.client.common`)."""
