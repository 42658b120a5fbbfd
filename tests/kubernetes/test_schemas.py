"""The manifests follow the schemas of Kubernetes and of Kubeflow's training operator: `make test-kubernetes`.

How the pods that they describe behave is in tests/e2e/test_kubernetes.py.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubeflow.training import models

MANIFESTS = Path(__file__).parents[2] / "launcher/kubernetes"
DOCUMENTS = [document for path in sorted(MANIFESTS.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]
OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()


def _kinds(wanted: bool) -> Any:
    chosen = [document for document in DOCUMENTS if (document["kind"] == "PyTorchJob") == wanted]
    return pytest.mark.parametrize("document", chosen, ids=lambda document: document["kind"])


def _check(values: Any, kind: str, path: str = "") -> None:
    """Hold the keys of a mapping against the operator's own class; pods in it have Kubernetes' schema."""
    if container := re.fullmatch(r"(?:list\[|dict\(str, )(\w+)[\])]", kind):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            _check(value, container[1], f"{path}.{key}")
    elif kind == "V1PodTemplateSpec":
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": values["spec"]}
        for version in (OLDEST, NEWEST):
            kubernetes_validate.validate(pod, version, strict=True)
    elif kind.startswith("KubeflowOrg"):
        cls = getattr(models, kind)
        types = {name: cls.openapi_types[attribute] for attribute, name in cls.attribute_map.items()}
        assert values.keys() <= types.keys(), path
        for key, value in values.items():
            _check(value, types[key], f"{path}.{key}")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@_kinds(False)
def test_objects_of_kubernetes(document, version):
    kubernetes_validate.validate(document, version, strict=True)


@_kinds(True)
def test_objects_of_the_training_operator(document):
    _check(document, "KubeflowOrgV1PyTorchJob")


@_kinds(True)
def test_this_notices_a_key_that_is_misspelt(document):
    pods = document["spec"]["pytorchReplicaSpecs"]
    with pytest.raises(AssertionError, match="spec.runPolicy"):
        _check(document | {"spec": document["spec"] | {"runPolicy": {"backofLimit": 1}}}, "KubeflowOrgV1PyTorchJob")
    template = {"spec": pods["Master"]["template"]["spec"] | {"terminationGracePeriod": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        _check({"template": template}, "KubeflowOrgV1ReplicaSpec")
