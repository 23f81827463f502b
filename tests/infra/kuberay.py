"""Finds errors in Kubernetes manifests without a cluster.

The objects of KubeRay are held against a schema with the fields of its v1 API and no others (an
operator ignores a field that it does not know, and so a typing error). What they hold of Kubernetes
itself, the pod templates, goes to kubernetes-validate, as do Secrets and ConfigMaps.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

# The oldest Kubernetes that the manifests are written for, and the newest that is known here.
KUBERNETES = ("1.28", "1.37")

_STRING = {"type": "string"}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_OBJECT = {"type": "object"}  # a part of Kubernetes, checked elsewhere or not used here
_NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}


def _fields(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    """An object with these fields only."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_GROUP = {"rayStartParams": _STRINGS, "template": _OBJECT, "resources": _STRINGS}
_CLUSTER = _fields(
    ["headGroupSpec", "workerGroupSpecs", "rayVersion"],
    rayVersion=_STRING,
    enableInTreeAutoscaling=_FLAG,
    suspend=_FLAG,
    authOptions=_fields([], mode={"enum": ["disabled", "token"]}, secretName=_STRING),
    autoscalerOptions=_fields(
        [],
        resources=_OBJECT,
        image=_STRING,
        imagePullPolicy=_STRING,
        securityContext=_OBJECT,
        idleTimeoutSeconds=_COUNT,
        upscalingMode={"enum": ["Conservative", "Default", "Aggressive"]},
        version={"enum": ["v1", "v2"]},
        env={"type": "array"},
        envFrom={"type": "array"},
        volumeMounts={"type": "array"},
    ),
    headServiceAnnotations=_STRINGS,
    gcsFaultToleranceOptions=_OBJECT,
    headGroupSpec=_fields(
        ["rayStartParams", "template"],
        **_GROUP,
        serviceType=_STRING,
        headService=_OBJECT,
        enableIngress=_FLAG,
        labels=_STRINGS,
    ),
    workerGroupSpecs={
        "type": "array",
        "minItems": 1,
        "items": _fields(
            ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
            **_GROUP,
            groupName=_NAME,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            numOfHosts=_COUNT,
            idleTimeoutSeconds=_COUNT,
            labels=_STRINGS,
        ),
    },
)
_JOB = _fields(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_STRING,
    rayClusterSpec=_CLUSTER,
    activeDeadlineSeconds=_COUNT,
    backoffLimit=_COUNT,
    submitterPodTemplate=_OBJECT,
    submitterConfig=_fields([], backoffLimit=_COUNT),
    metadata=_STRINGS,
    clusterSelector=_STRINGS,
    runtimeEnvYAML=_STRING,
    jobId=_STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=_STRING,
    shutdownAfterJobFinishes=_FLAG,
    ttlSecondsAfterFinished=_COUNT,
    suspend=_FLAG,
)
_SERVICE = _fields(
    ["serveConfigV2", "rayClusterConfig"],
    serveConfigV2=_STRING,
    rayClusterConfig=_CLUSTER,
    serviceUnhealthySecondThreshold=_COUNT,
    deploymentUnhealthySecondThreshold=_COUNT,
    rayClusterDeletionDelaySeconds=_COUNT,
    excludeHeadPodFromServeSvc=_FLAG,
    suspend=_FLAG,
    serveService=_OBJECT,
    upgradeStrategy=_fields(
        [], type={"enum": ["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]}
    ),
)


def _schema(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _fields(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_fields(
            ["name"], name=_NAME, namespace=_NAME, labels=_STRINGS, annotations=_STRINGS
        ),
        spec=spec,
    )


_SPECS = {"RayCluster": _CLUSTER, "RayJob": _JOB, "RayService": _SERVICE}
_SCHEMAS = {kind: _schema(kind, spec) for kind, spec in _SPECS.items()}


def load(path: Path) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster that a RayCluster, RayJob or RayService describes."""
    names = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    spec, name = document["spec"], names.get(document["kind"])
    return spec[name] if name else spec


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group first, then those of the workers."""
    spec = cluster_spec(document)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def problems(documents: Sequence[dict[str, Any]]) -> list[str]:
    """Everything that is wrong with manifests that are applied together."""
    return [problem for document in documents for problem in _problems(document, documents)]


def _problems(document: dict[str, Any], others: Sequence[dict[str, Any]]) -> Iterator[str]:
    kind = document.get("kind", "")
    if kind not in _SCHEMAS:
        yield from _kubernetes_problems(document)
        return
    found = list(jsonschema.Draft202012Validator(_SCHEMAS[kind]).iter_errors(document))
    yield from (f"{kind}: {error.json_path}: {error.message}" for error in found)
    if found:
        return
    for group in groups(document):
        template = group["template"]
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
        yield from _kubernetes_problems({**wrapped, "template": template})
        yield from _pod_problems(template.get("spec", {}), others)
    for group in cluster_spec(document)["workerGroupSpecs"]:
        if not group["minReplicas"] <= group.get("replicas", 0) <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas are not between minReplicas and maxReplicas"


def _kubernetes_problems(document: dict[str, Any]) -> Iterator[str]:
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{document['kind']}, Kubernetes {version}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message


def _pod_problems(pod: dict[str, Any], others: Sequence[dict[str, Any]]) -> Iterator[str]:
    """References that lead nowhere, and containers that do not say what they need."""
    names = {(other["kind"], other["metadata"]["name"]) for other in others}
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    for container in pod.get("containers", []):
        where = container.get("name", "?")
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{where}: mounts {mount['name']}, which is no volume of the pod"
        for source in container.get("envFrom", []):
            for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                if key in source and (kind, source[key]["name"]) not in names:
                    yield f"{where}: there is no {kind} {source[key]['name']}"
        resources = container.get("resources", {})
        for part in ("requests", "limits"):
            for resource in ("cpu", "memory"):
                if resource not in resources.get(part, {}):
                    yield f"{where}: {part} no {resource}"
