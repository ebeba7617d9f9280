"""What one log record becomes."""

from __future__ import annotations

import json
import logging

from mlxrpc_server.logs import JsonLines, TextLines

PARAGRAPHS = "the file is broken:\n\n  line 3\u2028\tis not JSON\r\n"


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "created": 0.0, "levelno": logging.INFO, "levelname": "INFO"})
    vars(made).update(extra)
    return made


def test_a_text_line_is_one_line_whatever_its_causes_say() -> None:
    line = TextLines({"model": "m"}).format(record("model\nfailed", cause=PARAGRAPHS, retry_seconds=1.5))
    assert line == (
        "1970-01-01T00:00:00.000Z info    model failed model=m"
        " cause=the file is broken: line 3 is not JSON retry_seconds=1.5"
    )


def test_a_json_line_keeps_a_cause_as_it_is() -> None:
    line = JsonLines({}).format(record("failed", cause=PARAGRAPHS))
    assert json.loads(line)["cause"] == PARAGRAPHS
    assert "\n" not in line


def test_a_traceback_stands_below_its_line() -> None:
    error = ValueError("a")
    line = TextLines({}).format(record("a bug", exc_info=(ValueError, error, None)))
    first, *rest = line.splitlines()
    assert first.endswith("a bug")
    assert rest == ["ValueError: a"]
