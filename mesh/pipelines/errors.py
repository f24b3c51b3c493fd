"""What can go wrong with a request to a pipeline, beside what its models' own requests can."""

from __future__ import annotations


class BrokenPipeline(Exception):
    """A pipeline that cannot answer as it is registered, whatever is sent. Clients see FAILED_PRECONDITION."""


class NoBranch(Exception):
    """No condition of a Switch holds of the request. Clients see NOT_FOUND, as KServe's router answers 404."""


class TooMuch(Exception):
    """One request takes more steps, or its steps' answers more memory, than this pod's limits allow. Clients see
    RESOURCE_EXHAUSTED."""
