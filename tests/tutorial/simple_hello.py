# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# The tutorial's simple service, as it stands there but for the broker's place.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, I001, T201
# fmt: off
import os

from tavrida import config
from tavrida import dispatcher
from tavrida import server
from tavrida import service

@dispatcher.rpc_service("test_hello")
class HelloController(service.ServiceController):

    @dispatcher.rpc_method(service="test_hello", method="hello")
    def handler(self, request, proxy, param):
        print(param)

def run():

    creds = config.Credentials("guest", "guest")
    conf = config.ConnectionConfig("localhost", credentials=creds,
                                   port=int(os.environ["PORT"]), virtual_host=os.environ["VHOST"],
                                   async_engine=True)
    srv = server.Server(conf,
                        queue_name="test_service",
                        exchange_name="test_exchange",
                        service_list=[HelloController])
    srv.run()


run()
