"""``ray.experimental.state``, as ``ray.util.state`` was called before."""
