# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
# The tutorial's subscriber, as it stands there but for the broker's place.
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

    @dispatcher.subscription_method(service="test_hello", method="hello")
    def hello_subscription(self, notification, proxy, param):
        print("---- notification from hello ------")
        print(param)  # == "hello publication"

def run():

    # register remote notification exchange to bind and get notifications
    # In this example service 'test_subscribe' gets notifications to it's queue
    # from 'test_notification_exchange' which is the publication exchange of
    # service 'test_hello'
    disc = discovery.LocalDiscovery()
    disc.register_remote_publisher("test_hello",
                                   "test_notification_exchange")
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
