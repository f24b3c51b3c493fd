"""What can be wrong with a message, told apart by whose fault it is.

* `InvalidMessage`   - the sender's: a client's request that cannot be read or contradicts itself
                       (INVALID_ARGUMENT at the edge), or, in a client, a response of that kind.
* `UnsendableOutput` - the model's: it returned something that the protocol has no form for (INTERNAL).

Messages are one sentence: the tensor, what was found, what is allowed.
"""

from __future__ import annotations


class WireError(ValueError):
    """Base of the errors of this package."""


class InvalidMessage(WireError):
    """The bytes are not the message they should be, or its parts contradict one another."""


class UnsendableOutput(WireError):
    """An array cannot be put on the wire."""
