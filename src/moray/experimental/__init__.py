"""What is useful and may still change: ``tqdm_ray``, progress bars of many workers."""
