"""Biases by token id: the first who knows the vocabulary refuses what lies outside, and says whose fault it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from mlxrpc_server.catalog import Catalog, ModelConfig
from mlxrpc_server.errors import InvalidRequest, ModelUnusable
from mlxrpc_server.generation import Service
from mlxrpc_server.models import Limits, Models
from mlxrpc_server.tokenizer import Tokenizers
from mlxrpc_server.types import ModelName, Request, RequestId, SamplingChoice, TextInput
from tests import noise_model
from tests.fakes import no_model

Serving = Callable[[SamplingChoice], Service]


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    tokenizers = Tokenizers()

    def service(defaults: SamplingChoice) -> Service:
        config = ModelConfig(name=ModelName("noise"), source=noise_model.folder(), defaults=defaults)
        return Service(Catalog([config]), tokenizers, Models(no_model, Limits()))

    yield service
    await tokenizers.close()


def asking(sampling: SamplingChoice) -> Request:
    return Request(id=RequestId("id"), model=ModelName(""), input=TextInput("x"), sampling=sampling)


async def size_of(service: Service) -> int:
    return (await service.tokenizer(service.catalog.find(""))).vocabulary_size


async def test_a_requests_biases_stand_over_the_configured_ones_as_a_whole(serving: Serving) -> None:
    service = serving(SamplingChoice(logit_bias=((1, 1.0), (2, 2.0)), presence_penalty=0.5))
    plan = await service.plan(asking(SamplingChoice(logit_bias=((2, -3.0),))))
    assert (plan.orders.sampling.logit_bias, plan.orders.sampling.presence_penalty) == (((2, -3.0),), 0.5)


async def test_a_requests_biases_outside_the_vocabulary_are_each_named(serving: Serving) -> None:
    service = serving(SamplingChoice())
    size = await size_of(service)
    with pytest.raises(InvalidRequest) as refused:
        await service.plan(asking(SamplingChoice(logit_bias=((size - 1, 1.0), (size, 1.0), (2**32 - 1, 1.0)))))
    paths = [violation.path for violation in refused.value.violations]
    assert paths == [f"sampling.logit_bias[{size}]", f"sampling.logit_bias[{2**32 - 1}]"]


async def test_a_configured_bias_outside_the_vocabulary_is_not_the_callers_fault(serving: Serving) -> None:
    service = serving(SamplingChoice(logit_bias=((10**9, 1.0),)))
    with pytest.raises(ModelUnusable, match=r"logit_bias\[1000000000\]"):
        await service.plan(asking(SamplingChoice()))


async def test_xtc_is_told_what_ends_a_text(serving: Serving) -> None:
    service = serving(SamplingChoice())
    plan = await service.plan(asking(SamplingChoice(xtc_probability=0.5)))
    assert set(plan.orders.sampling.end_ids) == plan.orders.stop_ids != set()
    assert (await service.plan(asking(SamplingChoice()))).orders.sampling.end_ids == ()
