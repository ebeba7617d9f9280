from __future__ import annotations

import asyncio

from mlxrpc_server import loop


def test_the_server_runs_on_the_faster_loop_where_it_is_installed() -> None:
    seen = []

    async def main() -> None:
        seen.append(type(asyncio.get_running_loop()).__module__)

    loop.run(main())
    assert seen == ["uvloop"]
