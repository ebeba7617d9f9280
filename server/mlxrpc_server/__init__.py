"""The mlxrpc server: language models on MLX behind a typed gRPC contract."""

from __future__ import annotations

__version__ = "0.1.0"
