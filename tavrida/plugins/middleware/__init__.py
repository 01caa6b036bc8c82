# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Middleware that comes with tavrida. Plugins of the namespace tavrida.middleware."""
