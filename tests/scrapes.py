# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics as a Prometheus server reads them."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import DEADLINE


class Scrape:
    """What /metrics of a port says at one moment."""

    def __init__(self, port: int) -> None:
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            self.content_type = str(answer.headers["Content-Type"])
            self.text = answer.read().decode()
        self.families = {each.name: each for each in text_string_to_metric_families(self.text)}
        self._values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return the value of the sample with exactly these labels; 0 where there is none."""
        return self._values.get((name, frozenset(labels.items())), 0.0)
