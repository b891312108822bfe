"""The files that start clusters: valid, closed to the internet, and pinned to one set of versions.

No cloud and no Kubernetes is asked: Ray's own schema and checks stand for `ray up`, and a schema of
the parts that are used, written after the published definitions, for KubeRay and Kueue.
"""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CLUSTERS = ("ray-cluster.yaml", "deploy/ray-cluster-gcp.yaml", "deploy/ray-cluster-onprem.yaml")
KUBERNETES = ("deploy/rayjob.yaml", "deploy/kueue.yaml")


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / name).read_text(encoding="utf-8")))


def pinned() -> dict[str, Requirement]:
    lines = (ROOT / "deploy/requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\d.]+", str(one.specifier)) for one in found)
    return {one.name.lower(): one for one in found}


# Clusters that `ray up` starts.


@pytest.mark.parametrize("name", CLUSTERS)
def test_ray_accepts_the_cluster(name, monkeypatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = read(name)
    # What `ray up` does first; the second call checks against Ray's schema.
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError, match="num_workers"):
        validate_config(prepare_config({**copy.deepcopy(config), "num_workers": 3}))
    workers = [
        one for key, one in prepared["available_node_types"].items()
        if config.get("head_node_type") != key
    ]  # fmt: skip
    assert [one["min_workers"] for one in workers] == [2]
    assert sum(one["min_workers"] for one in workers) <= prepared["max_workers"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_nothing_is_open_to_the_internet_and_the_token_is_asked_for(name):
    config = read(name)
    starts = [
        command
        for which in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[which]
        if "ray start" in command
    ]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
        assert "--dashboard-host=127.0.0.1" in command or "--head" not in command
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "0.0.0.0" not in (ROOT / name).read_text(encoding="utf-8")


def test_ray_makes_no_security_group_of_its_own(monkeypatch):
    """Ray's own group lets the whole internet try SSH, whatever rules are added to it."""
    from ray.autoscaler._private.aws import config as aws
    from ray.autoscaler._private.util import prepare_config

    (ssh,) = aws._create_default_ssh_inbound_rules()
    assert ssh["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}], "no longer: the group may be Ray's again"

    def asked(*arguments: Any) -> None:
        raise PermissionError("Ray would make a group")

    monkeypatch.setattr(aws, "_upsert_security_groups", asked)
    config = prepare_config(read("ray-cluster.yaml"))
    made = aws._configure_security_group(copy.deepcopy(config))
    assert made["available_node_types"] == config["available_node_types"]
    del config["available_node_types"]["gpu-worker"]["node_config"]["SecurityGroupIds"]
    with pytest.raises(PermissionError):
        aws._configure_security_group(config)


@pytest.mark.parametrize("name", CLUSTERS)
def test_local_paths_of_the_cluster_exist(name):
    mounts = read(name)["file_mounts"]
    local = [path for path in mounts.values() if not path.startswith("~")]
    assert local == ["deploy"]
    (install,) = [c for c in read(name)["setup_commands"] if "--requirement" in c]
    there = next(word for word in install.split() if word.endswith(".txt"))
    inner = Path(there).relative_to(next(key for key, path in mounts.items() if path == "deploy"))
    assert (ROOT / "deploy" / inner).is_file()


# One set of versions.


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {one.name.lower(): one for one in map(Requirement, project["dependencies"])}
    pins = pinned()
    assert set(pins) == set(wanted)
    for name, pin in pins.items():
        (exact,) = pin.specifier
        assert wanted[name].specifier.contains(exact.version), name
        assert wanted[name].extras <= pin.extras, name
    assert "default" in pins["ray"].extras, "jobs are submitted to the dashboard"


def test_images_bring_the_pinned_ray():
    (exact,) = pinned()["ray"].specifier
    image = f"rayproject/ray:{exact.version}-py311-gpu"
    for name in CLUSTERS[:2]:
        assert read(name)["docker"]["image"] == image
    assert f"FROM {image}\n" in (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    (job,) = documents("deploy/rayjob.yaml")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == exact.version


def test_the_image_holds_what_the_package_is_built_from():
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    copied = {
        name for line in text.splitlines() if line.startswith("COPY") for name in line.split()[1:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    needed |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed <= copied
    assert all((ROOT / name).exists() for name in copied if not name.startswith("--"))


# Kubernetes.


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Give the schema of an object with no other fields."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 63}
CONTAINER = closed(
    {
        "name": NAME,
        "image": TEXT,
        "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
        "ports": listed(closed({"containerPort": COUNT, "name": NAME}, "containerPort")),
    },
    "name",
)
POD = closed(
    {"spec": closed({"serviceAccountName": NAME, "containers": listed(CONTAINER)}, "containers")}
)
HEAD = closed(
    {
        "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        "rayStartParams": TEXTS,
        "template": POD,
    },
    "template",
)
WORKERS = closed(
    {
        "groupName": NAME,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": POD,
    },
    "groupName", "minReplicas", "maxReplicas", "template",
)  # fmt: skip
CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}, "secretName": TEXT}),
        "enableInTreeAutoscaling": FLAG,
        "headGroupSpec": HEAD,
        "workerGroupSpecs": listed(WORKERS),
    },
    "headGroupSpec",
)
JOB = closed(
    {
        "entrypoint": TEXT,
        "backoffLimit": COUNT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "runtimeEnvYAML": TEXT,
        "rayClusterSpec": CLUSTER,
    }
)
QUOTA = closed({"name": TEXT, "nominalQuota": QUANTITY}, "name", "nominalQuota")
FLAVOR = closed({"name": NAME, "resources": listed(QUOTA)}, "name", "resources")
GROUP = closed(
    {"coveredResources": listed(TEXT), "flavors": listed(FLAVOR)}, "coveredResources", "flavors"
)
CLUSTER_QUEUE = closed(
    {
        "namespaceSelector": {"type": "object"},
        "queueingStrategy": {"enum": ["StrictFIFO", "BestEffortFIFO"]},
        "preemption": closed(
            {
                "withinClusterQueue": {
                    "enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]
                }
            }
        ),
        "resourceGroups": listed(GROUP),
    }
)
METADATA = closed({"name": NAME, "namespace": NAME, "labels": TEXTS}, "name")


def resource(version: str, **fields: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": {"const": version}, "kind": TEXT, "metadata": METADATA}
    return closed({**head, **fields}, "apiVersion", "kind", "metadata")


KUEUE = "kueue.x-k8s.io/v1beta2"
SCHEMAS = {
    "RayJob": resource("ray.io/v1", spec=JOB),
    "ResourceFlavor": resource(KUEUE, spec=closed({"nodeLabels": TEXTS})),
    "ClusterQueue": resource(KUEUE, spec=CLUSTER_QUEUE),
    "LocalQueue": resource(KUEUE, spec=closed({"clusterQueue": NAME})),
    "WorkloadPriorityClass": resource(KUEUE, value={"type": "integer"}, description=TEXT),
}


@pytest.mark.parametrize("name", KUBERNETES)
def test_manifests_have_the_published_form(name):
    for document in documents(name):
        jsonschema.validate(document, SCHEMAS[document["kind"]])
        broken = {**document, "spce": {}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, SCHEMAS[document["kind"]])


def test_the_manifests_name_each_other():
    (job,) = documents("deploy/rayjob.yaml")
    of_kind: dict[str, list[dict[str, Any]]] = {}
    for one in documents("deploy/kueue.yaml"):
        of_kind.setdefault(one["kind"], []).append(one)
    (queue,), (cluster_queue,) = of_kind["LocalQueue"], of_kind["ClusterQueue"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    groups = cluster_queue["spec"]["resourceGroups"]
    used = {flavor["name"] for group in groups for flavor in group["flavors"]}
    assert used == {one["metadata"]["name"] for one in of_kind["ResourceFlavor"]}
    for group in groups:
        for flavor in group["flavors"]:
            assert [quota["name"] for quota in flavor["resources"]] == group["coveredResources"]


def test_the_queue_can_admit_the_job():
    """All pods of the job at once stay below the quotas; otherwise it would wait for ever."""
    (job,) = documents("deploy/rayjob.yaml")
    spec = job["spec"]["rayClusterSpec"]
    pods = [(1, spec["headGroupSpec"])]
    pods += [(group["replicas"], group) for group in spec["workerGroupSpecs"]]
    asked: dict[str, int] = {}
    for number, group in pods:
        for container in group["template"]["spec"]["containers"]:
            for name, amount in container["resources"]["requests"].items():
                asked[name] = asked.get(name, 0) + number * int(amount.removesuffix("Gi"))
    (queue,) = [one for one in documents("deploy/kueue.yaml") if one["kind"] == "ClusterQueue"]
    quotas = {
        quota["name"]: int(quota["nominalQuota"].removesuffix("Gi"))
        for group in queue["spec"]["resourceGroups"]
        for flavor in group["flavors"]
        for quota in flavor["resources"]
    }
    assert set(asked) == set(quotas)
    assert all(asked[name] < quotas[name] for name in asked)


def test_the_entrypoint_is_a_command_of_gencls():
    from jobs.main import cli

    (job,) = documents("deploy/rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "gencls"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    given = command.make_context(words[1], words[2:]).params
    assert given["address"] == "auto"
    assert str(given["output_dir"]).startswith("s3://")


def test_the_job_is_given_time_to_commit():
    from cluster.stopping import STOP_SECONDS

    (job,) = documents("deploy/rayjob.yaml")
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert float(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > STOP_SECONDS
