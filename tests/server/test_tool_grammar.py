"""Which models can be made to call tools, and what they then may write."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mlxrpc_server import demo
from mlxrpc_server.constraints import Constraints
from mlxrpc_server.sections import Markers
from mlxrpc_server.tokenizer import Tokenizer
from mlxrpc_server.tool_grammar import can_enforce, forced, violations
from mlxrpc_server.tools import CallFormat
from mlxrpc_server.types import Conversation, Message, ModelName, Request, RequestId, Tool, ToolChoice
from tests.server.tokenizers import folder_with

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS = (Tool("f", "", SCHEMA), Tool("g", "", {"not": {}}), Tool("h", "", {}))


def asking(*names: str, once: bool = False) -> Request:
    asked = Conversation((Message("user", "x"),), tools=TOOLS)
    return Request(RequestId("r"), ModelName(""), asked, tool_choice=ToolChoice(names, once=once))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(demo.source())


@pytest.mark.parametrize(
    ("family", "enforceable"), [("json_tools", True), ("glm47", True), ("qwen3_coder", False), ("mistral", False)]
)
def test_calls_that_are_json_between_markers_can_be_enforced(family: str, enforceable: bool) -> None:
    module = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
    markers = Markers(module.tool_call_start, module.tool_call_end)
    written = CallFormat(family, markers, module.parse_tool_call)
    assert can_enforce(written, ["<|im_end|>"]) is enforceable
    assert not can_enforce(written, [markers.start]), "a grammar knows no special tokens"


def test_where_the_model_decides_nothing_is_forced(tokenizer: Tokenizer) -> None:
    assert forced(asking(), tokenizer) is None


async def test_the_schemas_of_the_chosen_tools_are_looked_at(tokenizer: Tokenizer) -> None:
    constraints = Constraints()
    assert await violations(asking("f", "h"), tokenizer, constraints) == []
    assert await violations(asking(), tokenizer, constraints) == []
    (found,) = await violations(asking("f", "g", "h"), tokenizer, constraints)
    assert found.path == "tools[1].parameters"


async def test_a_model_whose_calls_cannot_be_enforced_says_so_by_the_field(tmp_path: Path) -> None:
    xml = Tokenizer.load(folder_with(tmp_path, "{{ tools }}", tool_parser_type="qwen3_coder"))
    for request, path in ((asking("f", "h"), "tool_choice.mode"), (asking("f", once=True), "tool_choice.name")):
        (found,) = await violations(request, xml, Constraints())
        assert (found.path, found.reason) == (path, "FIELD_NOT_SUPPORTED")
