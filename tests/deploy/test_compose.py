"""The compose draft, settings and provisioning: valid, pinned, and at one with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from meter.config import load
from meter.runtime.port import hosts_of
from tests.grafana.promql import BOARDS, ROOT
from tests.needs import program

DEPLOY = ROOT / "deploy"
PROVISIONING = ROOT / "grafana" / "provisioning"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+")


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    values: dict[str, Any] = _yaml(DEPLOY / "compose.yaml")
    return values


def _services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = compose["services"]
    return services


def _mounts(service: dict[str, Any]) -> list[tuple[str, str]]:
    """Source and target of each mount."""
    pairs = (volume.split(":") for volume in service["volumes"])
    return [(parts[0], parts[1]) for parts in pairs]


def _targets() -> dict[str, str]:
    """Each scraped job's address."""
    jobs = _yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    return {job["job_name"]: job["static_configs"][0]["targets"][0] for job in jobs}


def test_compose_keeps_the_specification() -> None:
    """The Compose schema has no unknown key to complain of."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [*command, str(DEPLOY / "compose.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    """A full version each: the same file gives the same machine tomorrow."""
    images = [s["image"] for s in _services(compose).values() if "image" in s]
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 4
    assert all(PINNED.fullmatch(image) for image in images), images


def test_mounts_exist(compose: dict[str, Any]) -> None:
    """Every mounted file is in the repository, every named volume declared."""
    for service in _services(compose).values():
        for source, _ in _mounts(service):
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in compose["volumes"]


def test_ports_are_the_hosts_own(compose: dict[str, Any]) -> None:
    """Nothing is published beyond the loopback."""
    for service in _services(compose).values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_the_engine_gets_gpus_and_its_own_health_check(compose: dict[str, Any]) -> None:
    """Whether requests are served is never the meter's to decide."""
    vllm = _services(compose)["vllm"]
    (device,) = vllm["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    check = " ".join(vllm["healthcheck"]["test"])
    assert ":8000/health" in check
    assert "29401" not in check


def test_image_wraps_vllm() -> None:
    """The entrypoint is vLLM's with the meter before it, and all that is copied is sent."""
    (entrypoint,) = re.findall(r"^ENTRYPOINT (.+)$", DOCKERFILE, re.MULTILINE)
    words = yaml.safe_load(entrypoint)
    assert words[1] == "run"
    assert words[words.index("--") :] == ["--", "vllm", "serve"]
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in sent


def test_settings_are_valid_and_reach_prometheus(compose: dict[str, Any]) -> None:
    """The settings load; the port they name is scraped, published, and open inside the network."""
    settings = load(DEPLOY / "joulemeter.yaml")
    assert settings.http.host == "0.0.0.0"
    assert _targets() == {"joulemeter": f"vllm:{settings.http.port}", "vllm": "vllm:8000"}
    assert hosts_of(settings.http.host, settings.http.allowed_hosts).allow("vllm")
    assert (
        f"127.0.0.1:{settings.http.port}:{settings.http.port}"
        in (_services(compose)["vllm"]["ports"])
    )


def test_prometheus_is_configured(compose: dict[str, Any]) -> None:
    """promtool accepts the file and finds its rules; exemplars are stored."""
    config = DEPLOY / "prometheus" / "prometheus.yml"
    command = [program("promtool"), "check", "config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    service = _services(compose)["prometheus"]
    assert "--enable-feature=exemplar-storage" in service["command"]
    mounted = dict(_mounts(service))
    for name in ("prometheus.yml", *_yaml(config)["rule_files"]):
        assert mounted[f"./prometheus/{name}"] == f"/etc/prometheus/{name}"


def test_the_meter_is_scraped_as_a_part_of_its_server() -> None:
    """Job and instance of vLLM's own target, so that the boards' links keep what was chosen."""
    jobs = _yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0] for job in jobs}
    labels = targets["joulemeter"]["labels"]
    assert labels["job"] == "vllm"
    assert [labels["instance"]] == targets["vllm"]["targets"]
    # Without a difference the two targets' own series (`up`) would collide.
    assert set(labels) - {"job", "instance"}


def test_grafana_finds_prometheus_and_the_boards(compose: dict[str, Any]) -> None:
    """Addresses, paths and the scrape interval are the same on both sides."""
    (source,) = _yaml(PROVISIONING / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert (
        source["jsonData"]["timeInterval"]
        == (_yaml(DEPLOY / "prometheus" / "prometheus.yml")["global"]["scrape_interval"])
    )
    (link,) = source["jsonData"]["exemplarTraceIdDestinations"]
    assert link["url"] == "${JOULEMETER_URL}/v1/receipts/$${__value.raw}"
    environment = _services(compose)["grafana"]["environment"]
    port = load(DEPLOY / "joulemeter.yaml").http.port
    assert environment["JOULEMETER_URL"] == f"${{JOULEMETER_URL:-http://localhost:{port}}}"
    (provider,) = _yaml(PROVISIONING / "dashboards" / "joulemeter.yml")["providers"]
    grafana = _services(compose)["grafana"]
    mounted = dict(_mounts(grafana))
    assert mounted["../grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert Path(home).name in {board.name for board in BOARDS}
