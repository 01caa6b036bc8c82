# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# The tutorial's World, which answers Hello, as it stands there but for the broker's place.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, I001, T201
# fmt: off
import os

from tavrida import config
from tavrida import discovery
from tavrida import dispatcher
from tavrida import server
from tavrida import service

@dispatcher.rpc_service("test_world")
class WorldController(service.ServiceController):

    @dispatcher.rpc_method(service="test_world", method="world")
    def world(self, request, proxy, param):
        print("---- request to world------")
        print(request.context)
        print(request.headers)
        print(param)  # == 12345
        print("---------------------------")
        return {"param": "world response"}

def run():

    disc = discovery.LocalDiscovery()

    # register remote service's exchange to send there requests,
    # responses, errors
    disc.register_remote_service("test_hello", "test_exchange")
    WorldController.set_discovery(disc)

    creds = config.Credentials("guest", "guest")
    conf = config.ConnectionConfig("localhost", credentials=creds,
                                   port=int(os.environ["PORT"]), virtual_host=os.environ["VHOST"])

    srv = server.Server(conf,
                        queue_name="test_world_service",
                        exchange_name="test_world_exchange",
                        service_list=[WorldController])
    srv.run()


run()
