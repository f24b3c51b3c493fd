"""Requests that wait for the same model run together: who with whom, how many, and whether the model allows it."""
