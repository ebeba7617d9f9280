"""The client of mlxrpc: language models on MLX, served over gRPC. Needs no MLX and no server code.

    import mlxrpc

    with mlxrpc.Client("127.0.0.1:50051") as client:
        print(client.generate("Hello"))

        with client.stream("Tell me a story", max_tokens=200) as stream:
            for delta in stream:
                print(delta.text, end="", flush=True)

The contract itself, for what is not here, is in `mlxrpc.v1`.
"""

from mlxrpc._aio import AsyncClient, AsyncStream
from mlxrpc._errors import (
    Cancelled,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    IncompleteStream,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
)
from mlxrpc._messages import (
    Message,
    Part,
    Prompt,
    Text,
    Tokens,
    Tool,
    ToolCall,
    assistant,
    image,
    system,
    tool_result,
    user,
)
from mlxrpc._models import Model, ModelList, ModelState, Server
from mlxrpc._requests import CountOptions, GenerateOptions, StreamOptions
from mlxrpc._results import Completion, Delta, FinishReason, Timings
from mlxrpc._sync import Client, Stream
from mlxrpc._version import __version__

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Client",
    "Completion",
    "CountOptions",
    "DeadlineExceeded",
    "Delta",
    "Error",
    "FailedPrecondition",
    "FinishReason",
    "GenerateOptions",
    "IncompleteStream",
    "Internal",
    "InvalidArgument",
    "Message",
    "Model",
    "ModelList",
    "ModelState",
    "NotFound",
    "Part",
    "PermissionDenied",
    "Prompt",
    "ResourceExhausted",
    "Server",
    "Stream",
    "StreamOptions",
    "Text",
    "Timings",
    "Tokens",
    "Tool",
    "ToolCall",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "__version__",
    "assistant",
    "image",
    "system",
    "tool_result",
    "user",
]
