"""Models of mlx-lm are evaluated as a worker does on this device."""

from __future__ import annotations

import mlx.core as mx

if mx.default_device() == mx.Device(mx.cpu):
    mx.disable_compile()
