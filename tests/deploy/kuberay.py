"""Field names of the Kubernetes objects that deploy/kuberay uses, and a check against them.

RayJob, RayService and their parts: the CRD reference that KubeRay generates, ray-project/kuberay docs/reference/api.md
at release v1.6.2 (published as https://docs.ray.io/en/master/kuberay/references/api.html). Pods, claims and network
policies: the fields of the Kubernetes API reference v1.28 that a worker group needs.
"""

from __future__ import annotations

from typing import Any

LEAF, TEXTS = "", "{}"
"""Any value; a mapping of strings to strings, as the API asks even for numbers."""

# A type's fields: another type, [a list of it], LEAF, TEXTS, or the values that are allowed (=V, V|W).
FIELDS: dict[str, dict[str, str]] = {
    "RayJob": {"apiVersion": "ray.io/v1", "kind": "=RayJob", "metadata": "ObjectMeta", "spec": "RayJobSpec"},
    "RayService": {
        "apiVersion": "ray.io/v1",
        "kind": "=RayService",
        "metadata": "ObjectMeta",
        "spec": "RayServiceSpec",
    },
    "RayJobSpec": {
        "activeDeadlineSeconds": LEAF,
        "backoffLimit": LEAF,
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "PodTemplateSpec",
        "metadata": TEXTS,
        "clusterSelector": TEXTS,
        "submitterConfig": LEAF,
        "managedBy": LEAF,
        "deletionStrategy": LEAF,
        "entrypoint": LEAF,
        "runtimeEnvYAML": LEAF,
        "jobId": LEAF,
        "submissionMode": "K8sJobMode|HTTPMode|InteractiveMode|SidecarMode",
        "entrypointResources": LEAF,
        "entrypointNumCpus": LEAF,
        "entrypointNumGpus": LEAF,
        "ttlSecondsAfterFinished": LEAF,
        "preRunningDeadlineSeconds": LEAF,
        "shutdownAfterJobFinishes": LEAF,
        "suspend": LEAF,
    },
    "RayServiceSpec": {
        "rayClusterDeletionDelaySeconds": LEAF,
        "serveService": LEAF,
        "upgradeStrategy": LEAF,
        "managedBy": LEAF,
        "serveConfigV2": LEAF,
        "rayClusterConfig": "RayClusterSpec",
        "excludeHeadPodFromServeSvc": LEAF,
    },
    "RayClusterSpec": {
        "upgradeStrategy": LEAF,
        "authOptions": "AuthOptions",
        "suspend": LEAF,
        "managedBy": LEAF,
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": TEXTS,
        "enableInTreeAutoscaling": LEAF,
        "gcsFaultToleranceOptions": LEAF,
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": LEAF,
        "workerGroupSpecs": "[WorkerGroupSpec]",
    },
    "AuthOptions": {"enableK8sTokenAuth": LEAF, "secretName": LEAF, "mode": "disabled|token"},
    "AutoscalerOptions": {
        "resources": LEAF,
        "image": LEAF,
        "imagePullPolicy": LEAF,
        "securityContext": LEAF,
        "idleTimeoutSeconds": LEAF,
        "upscalingMode": "Default|Aggressive|Conservative",
        "version": "v1|v2",
        "env": LEAF,
        "envFrom": LEAF,
        "volumeMounts": LEAF,
    },
    "HeadGroupSpec": {
        "template": "PodTemplateSpec",
        "headService": LEAF,
        "enableIngress": LEAF,
        "resources": TEXTS,
        "labels": TEXTS,
        "rayStartParams": TEXTS,
        "serviceType": "ClusterIP|NodePort|LoadBalancer",
    },
    "WorkerGroupSpec": {
        "suspend": LEAF,
        "groupName": LEAF,
        "replicas": LEAF,
        "minReplicas": LEAF,
        "maxReplicas": LEAF,
        "idleTimeoutSeconds": LEAF,
        "resources": TEXTS,
        "labels": TEXTS,
        "rayStartParams": TEXTS,
        "template": "PodTemplateSpec",
        "scaleStrategy": LEAF,
        "numOfHosts": LEAF,
    },
    "ObjectMeta": {"name": LEAF, "namespace": LEAF, "labels": TEXTS, "annotations": TEXTS},
    "PodTemplateSpec": {"metadata": "ObjectMeta", "spec": "PodSpec"},
    "PodSpec": {
        "containers": "[Container]",
        "initContainers": "[Container]",
        "volumes": "[Volume]",
        "nodeSelector": TEXTS,
        "tolerations": LEAF,
        "affinity": LEAF,
        "serviceAccountName": LEAF,
        "imagePullSecrets": LEAF,
        "restartPolicy": "Always|OnFailure|Never",
        "securityContext": LEAF,
        "terminationGracePeriodSeconds": LEAF,
    },
    "Container": {
        "name": LEAF,
        "image": LEAF,
        "imagePullPolicy": LEAF,
        "command": LEAF,
        "args": LEAF,
        "env": LEAF,
        "envFrom": LEAF,
        "ports": "[ContainerPort]",
        "resources": "ResourceRequirements",
        "volumeMounts": "[VolumeMount]",
        "securityContext": LEAF,
        "livenessProbe": LEAF,
        "readinessProbe": LEAF,
        "lifecycle": LEAF,
    },
    "ContainerPort": {"containerPort": LEAF, "name": LEAF, "protocol": "TCP|UDP|SCTP"},
    "ResourceRequirements": {"requests": TEXTS, "limits": TEXTS},
    "VolumeMount": {"name": LEAF, "mountPath": LEAF, "subPath": LEAF, "readOnly": LEAF},
    "Volume": {
        "name": LEAF,
        "persistentVolumeClaim": "PersistentVolumeClaimVolumeSource",
        "emptyDir": "EmptyDirVolumeSource",
        "configMap": LEAF,
        "secret": LEAF,
        "hostPath": LEAF,
        "nfs": LEAF,
    },
    "PersistentVolumeClaimVolumeSource": {"claimName": LEAF, "readOnly": LEAF},
    "EmptyDirVolumeSource": {"medium": LEAF, "sizeLimit": LEAF},
    "NetworkPolicy": {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "=NetworkPolicy",
        "metadata": "ObjectMeta",
        "spec": "NetworkPolicySpec",
    },
    "NetworkPolicySpec": {
        "podSelector": "LabelSelector",
        "policyTypes": LEAF,
        "ingress": "[NetworkPolicyIngressRule]",
        "egress": LEAF,
    },
    "NetworkPolicyIngressRule": {"from": "[NetworkPolicyPeer]", "ports": "[NetworkPolicyPort]"},
    "NetworkPolicyPeer": {"podSelector": "LabelSelector", "namespaceSelector": "LabelSelector", "ipBlock": LEAF},
    "NetworkPolicyPort": {"protocol": "TCP|UDP|SCTP", "port": LEAF, "endPort": LEAF},
    "LabelSelector": {"matchLabels": TEXTS, "matchExpressions": LEAF},
}


def unknown(value: Any, kind: str, path: str = "") -> list[str]:
    """Paths of an object's fields that its type does not have, or whose values it does not take."""
    if kind == LEAF:
        return []
    if kind == TEXTS:
        return [f"{path}.{key}" for key, each in value.items() if not isinstance(each, str)]
    if kind.startswith("["):
        return [bad for number, each in enumerate(value) for bad in unknown(each, kind[1:-1], f"{path}[{number}]")]
    if kind not in FIELDS:
        return [] if value in kind.lstrip("=").split("|") else [path]
    found = []
    for name, each in value.items():
        found += unknown(each, FIELDS[kind][name], f"{path}.{name}") if name in FIELDS[kind] else [f"{path}.{name}"]
    return found
