# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Two services that the tests of the kit run: a shop, and the stock that it asks."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from oslo_config import cfg

from tavrida import dispatcher, messages, service
from tests.waiting import DEADLINE


@dispatcher.rpc_service("stock")
class Stock(service.ServiceController):
    """Knows how much there is; ``gate`` holds up those who ask it to."""

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.gate = threading.Event()

    @dispatcher.rpc_method(service="stock", method="take")
    def take(self, request: Any, proxy: Any, sku: int, amount: int = 1) -> dict[str, Any]:
        if amount < 1:
            raise ValueError(f"cannot take {amount}")
        return {"sku": sku, "taken": amount}

    @dispatcher.rpc_method(service="stock", method="slow")
    def slow(self, request: Any, proxy: Any) -> None:
        assert self.gate.wait(DEADLINE)

    @dispatcher.subscription_method(service="shop", method="sell")
    def sold(self, notification: Any, proxy: Any, sku: int) -> None:
        if sku < 0:
            raise KeyError(sku)


@dispatcher.rpc_service("shop")
class Shop(service.ServiceController):
    """Asks the stock, in each of the ways that there are."""

    @classmethod
    def list_opts(cls) -> list[Any]:
        return [cfg.IntOpt("limit", default=10), cfg.StrOpt("name", required=True, default="Shop")]

    @dispatcher.rpc_method(service="shop", method="sell")
    def sell(self, request: Any, proxy: Any, sku: int) -> dict[str, Any]:
        proxy.publish(sku=sku)
        return {"sold": sku, "limit": self.options["limit"]}

    @dispatcher.rpc_method(service="shop", method="order")
    def order(self, request: Any, proxy: Any, sku: int, amount: int = 1) -> None:
        proxy.stock.take(sku=sku, amount=amount).call()

    @dispatcher.rpc_response_method(service="stock", method="take")
    def taken(self, response: Any, proxy: Any, taken: int) -> None:
        pass

    @dispatcher.rpc_method(service="shop", method="ask")
    def ask(self, request: Any, proxy: Any, sku: int) -> dict[str, Any]:
        return dict(proxy.stock.take(sku=sku).wait().payload)

    @dispatcher.rpc_method(service="shop", method="ask_many")
    async def ask_many(self, request: Any, proxy: Any, skus: list[int]) -> dict[str, Any]:
        answers = await asyncio.gather(*(proxy.stock.take(sku=sku) for sku in skus))
        return {"taken": [answer["sku"] for answer in answers]}

    @dispatcher.rpc_method(service="shop", method="hand_on")
    def hand_on(self, request: Any, proxy: Any, sku: int) -> None:
        proxy.stock.take(sku=sku).transfer(request)

    @dispatcher.rpc_method(service="shop", method="tell")
    def tell(self, request: Any, proxy: Any, sku: int) -> None:
        proxy.add_headers({"tenant": "a"})
        proxy.stock.take(sku=sku).cast()

    @dispatcher.rpc_method(service="shop", method="refuse")
    def refuse(self, request: Any, proxy: Any) -> Any:
        return messages.Error({"class": "Refused", "message": "no", "code": 7})
