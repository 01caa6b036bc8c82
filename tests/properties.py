# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""How hypothesis runs in these tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

#: A busy machine is slow, which is no failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
