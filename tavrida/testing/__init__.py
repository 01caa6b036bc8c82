# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""What authors of services test with; docs/testing.md tells how.

- ``plugin``: the pytest fixtures, found by pytest itself
- ``app``: controllers that run in memory, with a client beside them
- ``handlers``: one handler, called without any transport
- ``faults``: what goes wrong between a program and its broker, and when
- ``faulty``: the transport that lets it go wrong
- ``recording``: what happened, and waiting for it

Importing this package imports none of them.
"""
