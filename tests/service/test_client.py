"""Answers don't wait for the garbage collector."""

import gc
import weakref
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from outlive_service.client import Client
from outlive_service.partner import create_partner
from outlive_service.settings import PartnerSettings

pytestmark = pytest.mark.anyio


async def test_an_answer_that_nobody_holds_is_gone(serve: Callable[[FastAPI], str]) -> None:
    url = serve(create_partner(PartnerSettings()))
    async with Client(base_url=url) as client:
        gc.collect()
        gc.disable()
        try:
            answer = await client.get("/records")
            assert answer.json()["notices"] == []
            await answer.aclose()
            gone = weakref.ref(answer)
            del answer
            assert gone() is None
        finally:
            gc.enable()
