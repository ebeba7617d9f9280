"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline for an example: on a busy machine a slow one says nothing.
settings.register_profile("mlxrpc", deadline=None)
settings.load_profile("mlxrpc")
