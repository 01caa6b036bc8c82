# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Discovery backends. Plugins of the namespace tavrida.discovery; the base is Discovery."""
