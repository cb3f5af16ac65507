"""What infra/ ships, read by the tools that will read it: nothing of it may refer to what is not there."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
# the oldest and the newest that a cluster of these days runs
KUBERNETES = ("1.31", "1.37")
KUBERAY = ("RayCluster", "RayJob")


def tool(name: str) -> str:
    """A program's path. Skips the test where it is not installed."""
    found = shutil.which(name, path=PATH)
    return found or pytest.skip(f"{name} is not installed here")


# --- shell scripts ---


def scripts() -> list[Path]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode:
        pytest.skip("no git checkout: what belongs to it is not known")
    files = [ROOT / line for line in found.stdout.splitlines()]
    return [file for file in files if file.is_file() and file.open("rb").readline().startswith(b"#!/usr/bin/env bash")]


def test_shell_scripts_pass_shellcheck() -> None:
    checked = scripts()
    assert {ROOT / ".ci/run", INFRA / "slurm/study.sbatch", INFRA / "mlflow/server.sh"} <= set(checked)
    done = subprocess.run([tool("shellcheck"), *map(str, checked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# --- Dockerfile ---


def dockerfile() -> list[tuple[str, str]]:
    parser = pytest.importorskip("dockerfile_parse").DockerfileParser(path=str(INFRA / "Dockerfile"))
    return [(line["instruction"], line["value"]) for line in parser.structure]


def test_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), str(INFRA / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_dockerfile_copies_what_is_there_and_installs_as_make_setup_does() -> None:
    instructions = dockerfile()
    copied = [word for name, value in instructions if name == "COPY" for word in value.split()[:-1]]
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {pattern.removesuffix("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert packages == {"petl", "spaces", "search"}
    assert packages <= set(copied)
    assert {"README.md", "LICENSE", "pyproject.toml"} <= set(copied)  # what building the package reads

    makefile = (ROOT / "Makefile").read_text()
    assert ("ARG", "CONSTRAINTS=infra/constraints.txt") in instructions
    assert "CONSTRAINTS ?= infra/constraints.txt" in makefile
    assert {"infra/constraints.txt", "infra/constraints-gpu.txt"} <= set(copied)
    installs = [value for name, value in instructions if name == "RUN" and "pip install" in value]
    assert len(installs) == 1
    assert """-c "$CONSTRAINTS" -e '.[cluster]'""" in installs[0]
    assert "-c $(CONSTRAINTS) -e '.[demo,dev]'" in makefile
    assert "cluster" in project["project"]["optional-dependencies"]


# --- Kubernetes ---


def manifests() -> list[tuple[Path, dict[str, Any]]]:
    found = [
        (path, document)
        for path in sorted((INFRA / "kuberay").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    assert {document["kind"] for _, document in found} > {*KUBERAY, "StatefulSet", "Deployment"}
    return found


def one(kind: str) -> dict[str, Any]:
    return next(document for _, document in manifests() if document["kind"] == kind)


def templates(document: Any) -> Iterator[dict[str, Any]]:
    """The pod templates in a document, wherever they are."""
    if isinstance(document, dict):
        if "containers" in document.get("spec", {}):
            yield document
        for value in document.values():
            yield from templates(value)
    elif isinstance(document, list):
        for value in document:
            yield from templates(value)


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_are_what_kubernetes_takes(version: str) -> None:
    """The core kinds wholly; of KubeRay's the pod templates in them."""
    validate = pytest.importorskip("kubernetes_validate").validate
    checked = 0
    for _, document in manifests():
        if document["kind"] not in KUBERAY:
            validate(document, version, strict=True)
            checked += 1
            continue
        for template in templates(document):
            wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
            validate(wrapped, version, strict=True)
            checked += 1
    assert checked == 7 + 2 * 2


def test_a_wrong_manifest_is_refused() -> None:
    package = pytest.importorskip("kubernetes_validate")
    wrong = copy.deepcopy(one("RayCluster"))
    template = next(templates(wrong))
    template["spec"]["containers"][0]["resourcs"] = {}
    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
    with pytest.raises(package.ValidationError, match="resourcs"):
        package.validate(wrapped, KUBERNETES[-1], strict=True)


def test_ray_kinds_are_what_kuberay_takes() -> None:
    pytest.skip("not validated: no package ships KubeRay's schemas; infra/kuberay/README.md says how on a cluster")


def test_the_job_has_the_specification_of_the_cluster() -> None:
    assert one("RayJob")["spec"]["rayClusterSpec"] == one("RayCluster")["spec"]


def test_manifests_refer_to_what_there_is() -> None:
    text = (INFRA / "kuberay/README.md").read_text()
    documents = [document for _, document in manifests()]
    claims = {document["metadata"]["name"] for document in documents if document["kind"] == "PersistentVolumeClaim"}
    maps = {document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"}
    maps |= set(re.findall(r"kubectl create configmap (\S+)", text))
    services = {document["metadata"]["name"] for document in documents if document["kind"] == "Service"}
    used = [template["spec"] for document in documents for template in templates(document)]
    assert len(used) == 6
    for spec in used:
        for volume in spec.get("volumes", []):
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {None, *claims}
            assert volume.get("configMap", {}).get("name") in {None, *maps}
        for container in spec["containers"]:
            for variable in container["env"]:
                if "valueFrom" in variable:
                    secret = variable["valueFrom"]["secretKeyRef"]
                    assert f"create secret generic {secret['name']}" in text
                    assert f"--from-literal={secret['key']}=" in text
                elif "://" in variable["value"]:
                    assert variable["value"].split("://")[1].split("@")[-1].split(":")[0].split("/")[0] in services
    clusters = {document["metadata"]["name"] for document in documents if document["kind"] == "RayCluster"}
    for name in clusters:  # KubeRay calls the Secret with a cluster's token so
        assert f"create secret generic {name} " not in text
    for name in {path.name for path, _ in manifests()}:
        assert name in text


def test_ray_versions_agree() -> None:
    import ray

    assert one("RayCluster")["spec"]["rayVersion"] == ray.__version__
    for name in ("constraints.txt", "constraints-gpu.txt"):
        assert f"ray=={ray.__version__}" in (INFRA / name).read_text().splitlines()


# --- Ray's cluster launcher ---


def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((INFRA / "ray/cluster.yaml").read_text())
    return content


def read_by_ray(content: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(content))
    validate_config(prepared)
    return prepared


def test_ray_reads_the_cluster_file() -> None:
    prepared = read_by_ray(cluster())
    kinds = prepared["available_node_types"]
    assert kinds[prepared["head_node_type"]]["max_workers"] == 0
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    gpus = {name for name, kind in kinds.items() if kind["resources"].get("GPU")}
    assert spot == gpus == {"gpu"}
    commands = " ".join(prepared["setup_commands"] + prepared["head_setup_commands"])
    for word in commands.replace("=", " ").split():
        if word.startswith("infra/"):
            assert (ROOT / word).is_file(), word
    assert "infra/constraints-gpu.txt" in commands
    for start in (prepared["head_start_ray_commands"], prepared["worker_start_ray_commands"]):
        assert "RAY_AUTH_MODE=token" in start[-1]


@pytest.mark.parametrize(
    "change",
    [{"max_workers": 1}, {"head_node_type": "nowhere"}, {"provder": {}}],
    ids=lambda change: next(iter(change)),
)
def test_ray_refuses_a_wrong_cluster_file(change: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"max_workers|head_node_type|provder"):
        read_by_ray({**cluster(), **change})


# --- pages ---


def test_every_folder_has_its_page() -> None:
    overview = (INFRA / "README.md").read_text()
    folders = [path for path in INFRA.iterdir() if path.is_dir()]
    assert len(folders) == 4
    for folder in folders:
        page = (folder / "README.md").read_text()
        assert f"]({folder.name}/README.md)" in overview
        for heading in ("What it costs", "What to edit", "How to see that it works"):
            assert f"## {heading}" in page, (folder.name, heading)
