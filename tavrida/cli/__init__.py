# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The commands: ``tavrida-server``, which serves, and ``tavrida``, which does the rest."""
