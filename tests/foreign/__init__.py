# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Clients that know nothing of tavrida, each written as its own documentation shows it."""
