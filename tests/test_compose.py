"""docker-compose.yml and the Dockerfile, as far as that can be said without running them: bench/image.py runs them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from image import stages, substituted  # noqa: E402

from api.dispatch import build_parser  # noqa: E402
from autotune.shared_folder import FOLDER  # noqa: E402

ROLES, SECRET = ("OWNER", "SERVICE", "WORKER"), 'a "secret": #'
SCHEMA = Path(os.environ.get("AUTOTUNE_COMPOSE_SCHEMA") or ROOT / "tests" / "data" / "compose-spec.json")
"""The specification's own, as docker-compose 1.29.2 has it (Apache License 2.0); a later one may be named."""


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text()
    found: dict[str, Any] = yaml.safe_load(substituted(text, {f"{role}_PASSWORD": SECRET for role in ROLES}))
    return found


def test_it_is_what_the_specification_says(document: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text())
    if "name" not in schema["properties"]:  # as in that of 2021
        document = {key: value for key, value in document.items() if key != "name"}
    if "create_host_path" not in json.dumps(schema):
        document = json.loads(json.dumps(document).replace('"create_host_path": false', ""))
    jsonschema.Draft7Validator(schema).validate(document)


def test_a_password_is_asked_for(document: dict[str, Any]) -> None:
    assert [document["services"]["db"]["environment"][f"{role}_PASSWORD"] for role in ROLES] == [SECRET] * 3
    with pytest.raises(AssertionError, match=r"set it in \.env"):
        substituted((ROOT / "docker-compose.yml").read_text(), {})


def test_every_service_is_contained_watched_and_restarted(document: dict[str, Any]) -> None:
    assert set(document["services"]) == {"db", "migrate", "service", "worker", "cuda-worker"}
    for name, item in document["services"].items():
        restart = "on-failure" if name == "migrate" else "unless-stopped"
        assert (item["restart"], item["read_only"], item["cap_drop"]) == (restart, True, ["ALL"]), name
        assert name == "migrate" or item["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in item.get("ports", []))
        named = {volume.partition(":")[0] for volume in item["volumes"] if isinstance(volume, str)}
        assert named <= document["volumes"].keys()
        assert "secret" not in json.dumps({**item, "environment": None})
    assert document["services"]["cuda-worker"]["profiles"] == ["cuda"]


def test_whatever_measures_meets_at_the_hosts_locks(document: dict[str, Any]) -> None:
    """Not those of a container alone, whose /tmp is its own."""
    for name in ("service", "worker", "cuda-worker"):
        item = document["services"][name]
        [locks] = [volume for volume in item["volumes"] if isinstance(volume, dict)]
        assert (locks["type"], locks["source"], locks["bind"]) == ("bind", str(FOLDER), {"create_host_path": False})
        assert item["environment"]["AUTOTUNE_LOCKS"] == locks["target"]
        assert not any(locks["target"].startswith(entry.partition(":")[0]) for entry in item["tmpfs"])
    assert f"--mode=1777 /run/postgresql {locks['target']}" in (ROOT / "Dockerfile").read_text()
    for page in ("docker-compose.yml", "docs/workers/README.md"):
        assert f"mkdir -p -m 1777 {FOLDER}" in (ROOT / page).read_text()


def test_nobody_is_more_than_they_must_be(document: dict[str, Any]) -> None:
    roles = {"migrate": "owner", "service": "service", "worker": "worker", "cuda-worker": "worker"}
    for name, role in roles.items():
        environment = document["services"][name]["environment"]
        assert environment["AUTOTUNE_DB"].startswith(f"postgresql+psycopg://autotune_{role}@")
        assert not [key for key in environment if key.endswith("_PASSWORD")]
    text = (ROOT / "docker-compose.yml").read_text()
    for name, role in roles.items():
        block = text.split(f"\n  {name}:")[1].split("\n\n")[0]
        assert "*worker" in block or f"PGPASSWORD: ${{{role.upper()}_PASSWORD:" in block


def test_every_command_is_one_of_ours(document: dict[str, Any]) -> None:
    parser = build_parser()
    for name in ("migrate", "service", "worker", "cuda-worker"):
        assert parser.parse_args(document["services"][name]["command"]).run
    assert parser.parse_args(document["services"]["worker"]["healthcheck"]["test"][2:]).check


def test_the_compiler_for_cuda_finds_its_headers_and_asks_for_a_driver_that_reads_what_it_writes() -> None:
    found = {name: steps for name, _, steps in stages((ROOT / "Dockerfile").read_text())}
    environ = dict(text.split("=", 1) for word, text in found["cuda"] if word == "ENV")
    assert environ["CUDA_PATH"].endswith("/site-packages/nvidia/cuda_runtime")  # tinygrad: -I$CUDA_PATH/include
    [release] = re.findall(r"nvidia-cuda-nvrtc-cu12==(\d+\.\d+)", (ROOT / "requirements" / "cuda.txt").read_text())
    assert environ["NVIDIA_REQUIRE_CUDA"] == f'"cuda>={release}"'
    assert f"CUDA {release}" in (ROOT / "docs" / "workers" / "README.md").read_text()


def test_images_are_debian_and_end_without_root(document: dict[str, Any]) -> None:
    found = {name: (base, dict(steps)) for name, base, steps in stages((ROOT / "Dockerfile").read_text())}
    assert {item["build"]["target"] for item in document["services"].values() if "build" in item} == found.keys()
    for base, steps in found.values():
        assert base == "debian:bookworm-slim" or base in found
        assert steps["USER"] in ("postgres", "autotune")


def test_nothing_is_installed_that_is_not_locked_with_hashes() -> None:
    """But ourselves, from the files that were copied, with nothing that is not there yet."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    commands = [" ".join(found.split()) for found in re.findall(r"pip install[^&\n]*", text)]
    locks = [command.split(" --requirement ")[1].strip() for command in commands if "--require-hashes" in command]
    assert locks == ["/src/requirements/image.txt", "/src/requirements/cuda.txt"]
    assert [command for command in commands if "--require-hashes" not in command] == [
        "pip install --no-cache-dir --no-deps --no-build-isolation /src"
    ]
    for lock in locks:
        lines = (ROOT / lock.removeprefix("/src/")).read_text().replace("\\\n", "").splitlines()
        assert f"COPY {lock.removeprefix('/src/')} {lock}" in text
        assert all(" --hash=sha256:" in line for line in lines if line and not line.lstrip().startswith("#"))
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"-o {lock.removeprefix('/src/')}" in makefile for lock in locks)


def test_what_the_image_installs_is_locked_as_it_is_tested() -> None:
    locked, tested = (
        {line.split(" ")[0] for line in (ROOT / "requirements" / name).read_text().splitlines() if "==" in line}
        for name in ("image.txt", "dev.txt")
    )
    assert {line for line in locked if not line.startswith("#")} <= tested
