# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Hello: answers, asks the service World, hears its answers and errors, and publishes."""

from oslo_config import cfg

from tavrida import dispatcher, service


@dispatcher.rpc_service("test_hello")
class HelloController(service.ServiceController):
    @classmethod
    def list_opts(cls):
        # An option of our own, read from [service:test_hello] of the ini.
        return [cfg.StrOpt("greeting", default="Hello", help="The word that greets.")]

    @dispatcher.rpc_method(service="test_hello", method="hello")
    def handler(self, request, proxy, param, number: int = 12345):
        print("---- request to hello ----")
        print(param)
        # The answer comes to world_resp or world_error, later; nobody waits for it here.
        proxy.test_world.world(param=number).call()
        # Whoever subscribed to test_hello.hello hears this.
        proxy.publish(param="hello publication")
        # And this is the answer to our own caller.
        return {"greeting": f"{self.options['greeting']}, {param}!"}

    @dispatcher.rpc_response_method(service="test_world", method="world")
    def world_resp(self, response, proxy, param):
        print("---- response from world to hello ----")
        print(response.context)
        print(response.headers)
        print(param)

    @dispatcher.rpc_error_method(service="test_world", method="world")
    def world_error(self, error, proxy):
        print("---- error from world to hello ----")
        print(error.context)
        print(error.headers)
        print(error.payload)
