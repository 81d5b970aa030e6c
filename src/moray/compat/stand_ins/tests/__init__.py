"""What Ray's tests import of each other."""
