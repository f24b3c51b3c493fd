"""What an operator sets of pipelines has its defaults here.

By itself, since settings are read before anything may import NumPy, which reads from the environment how many threads
it may take (`runtime_adapters.framework_threads`)."""

PIPELINES_DEPTH_MAX = 4
"""Pipelines in one another."""
