# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The fault laboratory: real servers, load and brokers, broken on purpose, and a ledger.

``./dev faults`` plays every row in full and prints the table of docs/reliability.md.
"""
