"""``docs/kuberay.yaml``: pods match the Kubernetes client's models, and other fields match KubeRay's API reference."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import yaml

from tests.support.cluster.config_checks import ROOT

client = pytest.importorskip("kubernetes.client", reason="install the extra: pip install -e '.[test]'")
FILE = ROOT / "docs" / "kuberay.yaml"
Change = Callable[[dict[str, Any]], Any]
# The fields of a RayCluster in KubeRay 1.6 and 1.7, with their types; `dict` is a map of strings to strings.
FIELDS: dict[str, dict[str, Any]] = {
    "RayClusterSpec": {
        "rayVersion": str, "enableInTreeAutoscaling": bool, "suspend": bool, "managedBy": str,
        "authOptions": "AuthOptions", "autoscalerOptions": "AutoscalerOptions", "headServiceAnnotations": dict,
        "headGroupSpec": "HeadGroupSpec", "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"mode": ("disabled", "token"), "secretName": str, "enableK8sTokenAuth": bool},
    "AutoscalerOptions": {
        "version": ("v1", "v2"), "idleTimeoutSeconds": int, "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "resources": "V1ResourceRequirements", "image": str, "imagePullPolicy": str, "env": ["V1EnvVar"],
        "envFrom": ["V1EnvFromSource"], "volumeMounts": ["V1VolumeMount"], "securityContext": "V1SecurityContext",
    },
    "HeadGroupSpec": {
        "serviceType": str, "headService": "V1Service", "enableIngress": bool, "resources": dict, "labels": dict,
        "rayStartParams": dict, "template": "V1PodTemplateSpec",
    },
    "WorkerGroupSpec": {
        "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int, "suspend": bool,
        "idleTimeoutSeconds": int, "priority": int, "resources": dict, "labels": dict, "rayStartParams": dict,
        "template": "V1PodTemplateSpec",
    },
}  # fmt: skip
REQUIRED = {
    "RayClusterSpec": ("headGroupSpec",),
    "HeadGroupSpec": ("template", "rayStartParams"),
    "WorkerGroupSpec": ("groupName", "minReplicas", "maxReplicas", "template", "rayStartParams"),
}


def all_problems(document: dict[str, Any]) -> list[str]:
    """Return all problems of a RayCluster document, one line each."""
    problems = [f"{key} is not {value}" for key, value in {"apiVersion": "ray.io/v1", "kind": "RayCluster"}.items()
             if document.get(key) != value]  # fmt: skip
    problems += [f"unknown field {key}" for key in document if key not in ("apiVersion", "kind", "metadata", "spec")]
    return (
        problems
        + _kubernetes("V1ObjectMeta", document["metadata"], "metadata")
        + _ray("RayClusterSpec", document["spec"], "spec")
    )


def _ray(kind: str, value: Any, path: str) -> list[str]:
    """Check a value of one of KubeRay's types."""
    if not isinstance(value, dict):
        return [f"{path} is not a map"]
    problems = [f"{path} has no {name}" for name in REQUIRED.get(kind, ()) if name not in value]
    for name, item in value.items():
        item_path, expected = f"{path}.{name}", FIELDS[kind].get(name)
        if expected is None:
            problems.append(f"{item_path}: unknown field")
        elif isinstance(expected, tuple):
            problems += [] if item in expected else [f"{item_path}: {item!r} is none of {expected}"]
        elif expected is dict:
            problems += [
                f"{item_path}.{key}: {text!r} is not a string"
                for key, text in item.items()
                if not isinstance(text, str)
            ]
        elif isinstance(expected, list):
            problems += [p for i, entry in enumerate(item) for p in _named(expected[0], entry, f"{item_path}[{i}]")]
        elif isinstance(expected, str):
            problems += _named(expected, item, item_path)
        elif type(item) is not expected:
            problems.append(f"{item_path}: {item!r} is not {expected.__name__}")
    return problems


def _named(kind: str, value: Any, path: str) -> list[str]:
    """Check a value of a type of KubeRay or Kubernetes, by the name of the type."""
    return _ray(kind, value, path) if kind in FIELDS else _kubernetes(kind, value, path)


def _kubernetes(kind: str, value: Any, path: str) -> list[str]:
    """Check a value with the client's model, which is generated from Kubernetes' OpenAPI and rejects unknown fields."""
    try:
        getattr(client, kind).model_validate(value, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, (path, *e['loc'])))}: {e['msg']}" for e in error.errors()]
    return []


@pytest.fixture
def document() -> dict[str, Any]:
    (loaded,) = yaml.safe_load_all(FILE.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_file_is_valid(document: dict[str, Any]) -> None:
    assert all_problems(document) == []


def worker(document: dict[str, Any]) -> dict[str, Any]:
    """Return the group of workers."""
    group: dict[str, Any] = document["spec"]["workerGroupSpecs"][0]
    return group


def pod(document: dict[str, Any]) -> dict[str, Any]:
    """Return the specification of a worker's pod."""
    spec: dict[str, Any] = worker(document)["template"]["spec"]
    return spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(apiVersion="ray.io/v1alpha1"), "apiVersion"),
        (lambda d: d["spec"].update(rayversion="2"), "rayversion: unknown"),
        (lambda d: d["spec"].pop("headGroupSpec"), "no headGroupSpec"),
        (lambda d: d["spec"]["authOptions"].update(mode="none"), "none of"),
        (lambda d: worker(d).pop("maxReplicas"), "no maxReplicas"),
        (lambda d: worker(d).update(replicas="0"), "is not int"),
        (lambda d: worker(d)["rayStartParams"].update({"num-gpus": 1}), "is not a string"),
        (lambda d: pod(d).update(container=[]), "container: Extra inputs"),
        (lambda d: pod(d).pop("containers"), "containers"),
        (lambda d: pod(d)["containers"][0].pop("name"), "name"),
        (
            lambda d: pod(d)["containers"][0]["env"].append({"name": "X", "value": 1}),
            "value: Input should be a valid string",
        ),
        (
            lambda d: pod(d)["containers"][0]["resources"]["limits"].update({"nvidia.com/gpu": 1}),
            "gpu: Input should be",
        ),
        (lambda d: pod(d)["volumes"][0]["emptyDir"].update(size="1Gi"), "size: Extra inputs"),
        (lambda d: pod(d).update(service_account_name="x"), "service_account_name: Extra inputs"),
    ],
)
def test_invalid_files_are_detected(change: Change, message: str, document: dict[str, Any]) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    assert any(message in problem for problem in all_problems(changed)), all_problems(changed)


def test_settings_match_cluster_yaml(document: dict[str, Any]) -> None:
    import ray

    spec = document["spec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"]["mode"] == "token"
    assert spec["enableInTreeAutoscaling"] is True
    assert (worker(document)["minReplicas"], worker(document)["replicas"]) == (0, 0)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    hook = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"]
    limits = pod(document)["containers"][0]["resources"]["limits"]
    maximum = f"{worker(document)['maxReplicas']} CPU={limits['cpu']} GPU={limits['nvidia.com/gpu']}"
    assert f"python -m fgst.cli.autoscaling {maximum};" in hook[-1]
    containers = [spec["headGroupSpec"]["template"]["spec"]["containers"][0], pod(document)["containers"][0]]
    assert containers[0]["image"] == containers[1]["image"]
    for container in containers:
        assert not container["image"].endswith("latest")
        for variable in container.get("env", []):
            assert "PASSWORD" not in variable["name"] or "valueFrom" in variable
    assert containers[1]["resources"]["requests"] == containers[1]["resources"]["limits"]
    assert {m["name"] for m in containers[1]["volumeMounts"]} == {v["name"] for v in pod(document)["volumes"]}
