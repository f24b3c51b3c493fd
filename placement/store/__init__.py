"""Where records are kept: one protocol, and its implementations."""
