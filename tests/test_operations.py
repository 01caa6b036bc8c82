# SPDX-FileCopyrightText: The tavrida authors
# SPDX-License-Identifier: Apache-2.0
"""The unit file and the manifest in etc/ fit the server that they start."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from tavrida.cli.master import MARGIN
from tavrida.cli.server import BAD_CONFIGURATION, NO_BROKER
from tavrida.config import ServerSettings
from tests import commands

ROOT = Path(__file__).parent.parent

#: Seconds that a server may take to stop.
LONGEST_STOP = ServerSettings().graceful_timeout + MARGIN


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    """The section [Service] of the unit file."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string((ROOT / "etc/systemd/tavrida-server@.service").read_text())
    assert {"Unit", "Service", "Install"} == set(parser.sections())
    return parser["Service"]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The objects of the manifest, by their kind."""
    text = (ROOT / "etc/kubernetes/tavrida-server.yaml").read_text()
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def test_systemd_waits_longer_than_the_server_takes_to_stop(
    unit: configparser.SectionProxy,
) -> None:
    """And leaves the workers to their master."""
    assert LONGEST_STOP < float(unit["TimeoutStopSec"])
    assert "mixed" == unit["KillMode"]
    assert ("notify", "main") == (unit["Type"], unit["NotifyAccess"])


def test_systemd_does_not_restart_what_cannot_start(unit: configparser.SectionProxy) -> None:
    """A broker that is away may come back; a wrong file does not mend itself."""
    prevented = unit["RestartPreventExitStatus"].split()
    assert str(BAD_CONFIGURATION) in prevented
    assert str(NO_BROKER) not in prevented


def test_kubernetes_waits_longer_than_the_server_takes_to_stop(manifest: dict[str, Any]) -> None:
    """Else it kills handlers that would have finished."""
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    assert LONGEST_STOP < pod["terminationGracePeriodSeconds"]


def test_the_ini_of_the_manifest_is_right(manifest: dict[str, Any], tmp_path: Path) -> None:
    """All but the service, which is the reader's own."""
    path = tmp_path / "shop.conf"
    path.write_text(manifest["ConfigMap"]["data"]["shop.conf"])
    ended = commands.run("tavrida-server", "--check", "--config-file", path)
    (line,) = ended.stderr.splitlines()
    assert "no plugin 'shop' in tavrida.controllers" in line


def test_selector_and_mounts_of_the_manifest_fit(manifest: dict[str, Any]) -> None:
    """What refers to something refers to what is there."""
    spec = manifest["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    pod = spec["template"]["spec"]
    (volume,) = pod["volumes"]
    assert manifest["ConfigMap"]["metadata"]["name"] == volume["configMap"]["name"]
    for container in (*pod["initContainers"], *pod["containers"]):
        (mount,) = container["volumeMounts"]
        assert volume["name"] == mount["name"]
        assert f"{mount['mountPath']}/shop.conf" == container["command"][-1]


def test_new_pods_serve_before_old_ones_stop(manifest: dict[str, Any]) -> None:
    """Without a probe of /ready, Kubernetes takes a pod that only runs for one that serves."""
    spec = manifest["Deployment"]["spec"]
    assert 0 == spec["strategy"]["rollingUpdate"]["maxUnavailable"]
    (server,) = spec["template"]["spec"]["containers"]
    asked = [server[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")]
    assert ["/ready", "/live"] == [each["path"] for each in asked]
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}
    ini = configparser.ConfigParser()
    ini.read_string(manifest["ConfigMap"]["data"]["shop.conf"])
    assert "0.0.0.0" == ini["health"]["host"]  # noqa: S104 - the kubelet asks from outside
    for each in asked:
        assert ini["health"].getint("port") == ports[each["port"]]


def test_pods_keep_to_the_restricted_pod_security_standard(manifest: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert "RuntimeDefault" == pod["securityContext"]["seccompProfile"]["type"]
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert ["ALL"] == container["securityContext"]["capabilities"]["drop"]


def test_what_is_checked_is_what_runs(manifest: dict[str, Any]) -> None:
    """The url too, which the environment has."""
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    (check,), (server,) = pod["initContainers"], pod["containers"]
    for name in ("image", "env", "volumeMounts"):
        assert server[name] == check[name]
