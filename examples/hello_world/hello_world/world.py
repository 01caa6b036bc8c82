# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""World: answers Hello, or refuses, and listens to what Hello publishes."""

from tavrida import dispatcher, service


@dispatcher.rpc_service("test_world")
class WorldController(service.ServiceController):
    # The annotation is checked: a caller whose param is no number is told so, and world not run.
    @dispatcher.rpc_method(service="test_world", method="world")
    def world(self, request, proxy, param: int):
        print("---- request to world ----")
        print(request.context)
        print(request.headers)
        print(param)
        if param < 0:
            raise ValueError(f"the world has no place for {param}")
        return {"param": "world response"}

    @dispatcher.subscription_method(service="test_hello", method="hello")
    def hello_subscription(self, notification, proxy, param):
        print("---- notification from hello ----")
        print(param)
