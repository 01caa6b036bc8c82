# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of transports: one suite for every plugin of tavrida.transports."""
