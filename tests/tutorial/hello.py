# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# The tutorial's Hello, which asks World, as it stands there but for the broker's place.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, I001, T201
# fmt: off
import os

from tavrida import config
from tavrida import discovery
from tavrida import dispatcher
from tavrida import server
from tavrida import service

@dispatcher.rpc_service("test_hello")
class HelloController(service.ServiceController):

    @dispatcher.rpc_method(service="test_hello", method="hello")
    def handler(self, request, proxy, param):
        print("---- request to hello ----")
        print(param)
        proxy.test_world.world(param=12345).call()

    @dispatcher.rpc_response_method(service="test_world", method="world")
    def world_resp(self, response, proxy, param):
        # Handles responses from test_world.world
        print("---- response from world to hello ----")
        print(response.context)
        print(response.headers)
        print(param)  # == "world response"
        print("--------------------------------------")

    @dispatcher.rpc_error_method(service="test_world", method="world")
    def world_error(self, error, proxy):
        # Handles error from test_world.world
        print("---- error from hello ------")
        print(error.context)
        print(error.headers)
        print(error.payload)
        print("----------------------------")

def run():

    disc = discovery.LocalDiscovery()

    # register remote service's exchanges to send there requests (RPC calls)
    disc.register_remote_service("test_world", "test_world_exchange")
    HelloController.set_discovery(disc)

    # define connection parameters
    creds = config.Credentials("guest", "guest")
    conf = config.ConnectionConfig("localhost", credentials=creds,
                                   port=int(os.environ["PORT"]), virtual_host=os.environ["VHOST"],
                                   async_engine=True)
    # create server
    srv = server.Server(conf,
                        queue_name="test_service",
                        exchange_name="test_exchange",
                        service_list=[HelloController])
    srv.run()


run()
