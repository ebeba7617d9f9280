"""Streams of one asyncio client that run together, and how many of them did at most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlxrpc.v1 import inference_pb2 as pb
from tests.end_to_end.streams import TIMEOUT, Received, check_deltas

if TYPE_CHECKING:
    # The stub over an asyncio channel has a name for its type alone.
    from mlxrpc.v1.inference_pb2_grpc import InferenceServiceAsyncStub


class Crowd:
    """Streams that run together, and how many of them did at most."""

    def __init__(self, stub: InferenceServiceAsyncStub) -> None:
        self._stub = stub
        self._running = 0
        self.most = 0

    async def stream(self, wish: pb.StreamGenerateRequest) -> Received:
        received = Received()
        async for event in self._stub.StreamGenerate(wish, timeout=TIMEOUT):
            received.add(event)
            self._running += event.HasField("started")
            self._running -= event.HasField("finished")
            self.most = max(self.most, self._running)
        check_deltas(received)
        return received

    async def leave_early(self, wish: pb.StreamGenerateRequest, deltas: int) -> None:
        call = self._stub.StreamGenerate(wish, timeout=TIMEOUT)
        received = Received()
        async for event in call:
            received.add(event)
            if len(received.deltas) == deltas:
                break
        call.cancel()
