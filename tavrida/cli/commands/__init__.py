# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The built-in commands of ``tavrida``, one module for those that belong together."""
