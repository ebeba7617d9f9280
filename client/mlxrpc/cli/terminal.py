"""How a command ends, as the person at the terminal sees it: one sentence for an error, and an exit code."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from mlxrpc._errors import DeadlineExceeded, Error, Internal, InvalidArgument, Unavailable

OK, FAILED, USAGE = 0, 1, 2
INTERRUPTED = 130  # as a shell reports SIGINT
BROKEN_PIPE = 141  # and SIGPIPE

NOT_CONNECTED = re.compile(r"failed to connect to all addresses; last error: UNKNOWN: (ipv[46]:\S+: )?")
"""gRPC's words before the cause."""


def exit_code(command: Callable[[], int], server: str = "") -> int:
    """Runs a command. Whatever it fails with becomes a sentence and a code; bugs keep their traceback."""
    try:
        code = command()
        sys.stdout.flush()
    except Error as error:
        for line in lines(error, server):
            say(line)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (ValueError, FileNotFoundError) as error:
        say(f"mlxrpc: {error}")
        return USAGE
    return code


def lines(error: Error, server: str) -> Iterator[str]:
    """The error in words, and below it every field at fault that the sentence does not already tell of."""
    yield f"mlxrpc: {_sentence(error, server)}"
    for violation in error.violations if isinstance(error, InvalidArgument) else ():
        line = f"{violation.field}: {violation.description}"
        if line not in error.message:
            yield f"  {line}"


def _sentence(error: Error, server: str) -> str:
    if isinstance(error, Unavailable) and error.status is None:
        return f"no answer from {server}: {NOT_CONNECTED.sub('', error.message)}"
    if isinstance(error, DeadlineExceeded) and error.status is None:
        return f"{server} did not finish in time (--timeout)"
    if isinstance(error, Internal) and error.request_id and error.request_id not in error.message:
        return f"{error.message} (request id {error.request_id})"
    if error.retry_after is not None:
        return f"{error.message} (try again in {error.retry_after:g} s)"
    return error.message


def say(line: str) -> None:
    """To stderr: stdout is for what was asked for."""
    print(line, file=sys.stderr)


def as_json(*messages: Message) -> list[dict[str, object]]:
    """The messages as protobuf's own JSON, with the contract's field names, fields at zero included."""
    return [
        MessageToDict(each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for each in messages
    ]


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
