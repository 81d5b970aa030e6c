"""Not for import: a directory for PYTHONPATH (:func:`moray.compat.install_in_children`)."""
