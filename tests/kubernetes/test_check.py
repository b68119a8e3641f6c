"""``tandem check``: each faulty manifest is refused with field and remedy, good ones pass; what is said."""

from __future__ import annotations

import copy
import json
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.kubernetes.check import check, without_schema
from cluster.kubernetes.faults import Fault
from cluster.kubernetes.lint import lint
from cluster.kubernetes.lints import rayjobs, rayservices
from cluster.kubernetes.manifest_files import read_manifests
from cluster.kubernetes.references import reference_faults
from cluster.kubernetes.render import render
from cluster.kubernetes.schemas import Schemas
from runtime.cli_check import check as check_command
from tests.conftest import ROOT
from tests.kubernetes.accepted import SCHEMAS, crds
from tests.kubernetes.specs import app, job, spec
from tests.servers.kubernetes_api import Cluster

FAULTY = sorted((ROOT / "tests" / "kubernetes" / "faulty").glob("*.yaml"))


def expected(file: Path) -> tuple[bool, list[str], str]:
    """Whether it is advice, the fields that are at fault, and a part of what is said of the first."""
    lines = [line[2:] for line in file.read_text().splitlines() if line.startswith("# ")]
    fields = [line.removeprefix("field: ") for line in lines if line.startswith("field: ")]
    says = next(line.removeprefix("says: ") for line in lines if line.startswith("says: "))
    return "advice" in lines, fields, says


def checked(*paths: Path, schemas: Schemas | None = None) -> list[Fault]:
    written = read_manifests(paths)
    return check([one.manifest for one in written], schemas or crds(), files=[one.file for one in written])


@pytest.mark.parametrize("file", FAULTY, ids=lambda file: file.stem)
def test_a_faulty_manifest_is_refused_with_its_field_and_a_remedy(file: Path):
    is_advice, fields, says = expected(file)
    found = checked(file)
    said = {fault.field: fault for fault in found if fault.warning == is_advice}
    # No other fault: what is right about the manifest is not complained of.
    assert sorted(said) == sorted(fields), [*map(str, found)]
    first = said[fields[0]]
    assert says in str(first) and first.file == str(file), str(first)
    assert first.why and first.remedy
    assert not (is_advice and [fault for fault in found if not fault.warning])


def test_there_are_many_faulty_manifests():
    assert len([file for file in FAULTY if not expected(file)[0]]) >= 36


LINTED_ONLY = ("a_rayservice_with_a_rayjobs_cluster_field", "an_upgrade_that_does_not_exist", "half_a_gpu",
               "a_raycluster_with_a_name_of_54_characters", "a_kind_that_kuberay_does_not_have")  # fmt: skip


@pytest.mark.parametrize("name", LINTED_ONLY)
def test_the_lint_needs_no_schemas(name: str):
    file = next(file for file in FAULTY if file.stem == name)
    found = checked(file, schemas=Schemas({}))
    assert expected(file)[1][0] in [fault.field for fault in found if not fault.warning]


def test_a_secrets_value_is_in_no_message():
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": 12345}}
    faults = check([secret])
    assert [fault.field for fault in faults] == ["stringData.key"]
    assert "12345" not in str(faults[0])


def test_a_lint_takes_a_manifest_of_any_shape():
    shapes: list[Any] = [None, 7, "x", [], {}, [None, 7], {"spec": []}]
    for kind in (
        "RayService",
        "RayJob",
        "RayCluster",
        "RayCronJob",
        "Pod",
        "PodMonitor",
        "Secret",
        "Gateway",
    ):
        for shape in shapes:
            body = {"apiVersion": "ray.io/v1" if kind.startswith("Ray") else "v1", "kind": kind}
            check([body | {"metadata": {"name": "a", "labels": shape}, "spec": shape, "data": shape}])
            check(
                [body | {"metadata": {"name": "a"}, "spec": {"rayClusterConfig": shape, "template": shape}}]
            )
            list(rayjobs.lint(body | {"spec": {"deletionStrategy": shape, "clusterSelector": shape}}))
            list(rayservices.lint(body | {"spec": {"upgradeStrategy": shape, "rayClusterConfig": shape}}))


def every_place(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in a manifest, items of lists included."""
    if way:
        yield way
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ())
    ):
        yield from every_place(item, (*way, key))


def test_a_lint_takes_any_value_at_any_place_of_a_manifest():
    door = {
        "endpoint": {"kind": "Gateway", "class_name": "gke", "host": "llm.example.com", "tls_secret": "tls"}
    }
    shared = {"training": {"cluster": "shared"}}
    manifests = render(spec(**door), apps=[app()], jobs=[job()]) + render(spec(**shared), jobs=[job()])
    # As YAML reads `{{ .Values.name }}`, and what else nobody can compare, sort or count.
    values: list[Any] = [{"{{ .Values.name }}": None}, [[7]], [{"name": {"a": None}}], {7: 7}, None, 7]
    for manifest in manifests:
        for way in every_place(manifest):
            for value in values if way not in (("apiVersion",), ("kind",)) else ():
                changed = copy.deepcopy(manifest)
                holder = reduce(operator.getitem, way[:-1], changed)
                holder[way[-1]] = copy.deepcopy(value)
                lint(changed)
                reference_faults([changed])


def test_an_app_of_serves_config_may_have_a_name_of_any_type():
    service = render(spec(), apps=[app()])
    one = next(one for one in service if one["kind"] == "RayService")
    for text in ("applications: [{name: {a: b}}, {name: [7]}]", "applications: 2026-99-99"):
        changed = one | {"spec": one["spec"] | {"serveConfigV2": text}}
        list(rayservices.lint(changed))


def test_a_helm_template_that_was_not_rendered_is_checked(tmp_path: Path):
    file = tmp_path / "deployment.yaml"
    file.write_text(HELM)
    code, output = run_with(tmp_path / "none", str(file))
    assert code == 2 and "Traceback" not in output
    assert "fault: spec.template.spec.volumes[0].name is {" in output


HELM = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - name: web
          image: nginx
          volumeMounts: [{name: data, mountPath: /data}]
      volumes:
        - name: {{ .Values.volume }}
          emptyDir: {}
"""
RAY = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": {"entrypoint": "x"}}


def test_kinds_without_a_schema_are_named():
    assert without_schema([RAY, {"apiVersion": "v1", "kind": "Service"}, RAY]) == ["ray.io/v1 RayJob"]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(check_command, list(arguments))
    return done.exit_code, done.output


def test_the_command_prints_each_fault_with_its_remedy_and_exits_with_2(tmp_path: Path):
    crds()
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(RAY))
    code, output = run(str(file), "--schemas", str(SCHEMAS))
    assert code == 2
    assert f"{file}: RayJob a\n  fault: spec.rayClusterSpec is not set. The job has neither" in output
    assert output.endswith("1 objects: 1 faults, 0 pieces of advice.\n")


def test_advice_fails_only_where_it_is_strict(tmp_path: Path):
    crds()
    file = next(file for file in FAULTY if file.stem == "advice_any_gpu_product")
    assert run(str(file), "--schemas", str(SCHEMAS))[0] == 0
    code, output = run(str(file), "--schemas", str(SCHEMAS), "--strict", "--json")
    report = json.loads(output)
    assert (code, report["faults"], report["schemas"]) == (2, [], str(SCHEMAS))
    assert [item["field"] for item in report["advice"]] == expected(file)[1]


def run_with(kubeconfig: Path, *arguments: str) -> tuple[int, str]:
    """The command in a process of its own: Kubernetes' client reads KUBECONFIG when it is imported."""
    variables = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
    done = subprocess.run(
        [sys.executable, "-c", "from runtime.cli_check import check; check()", *arguments],
        env=variables | {"KUBECONFIG": str(kubeconfig)}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout or done.stderr


def test_without_schemas_and_cluster_it_says_what_was_not_checked(tmp_path: Path):
    file, none = tmp_path / "job.yaml", tmp_path / "none"
    file.write_text(json.dumps(RAY))
    code, output = run_with(none, str(file))
    assert code == 2
    assert "no cluster answered" in output
    assert "checked by Tandem's lint only: ray.io/v1 RayJob." in output
    code, output = run_with(none, str(file), "--from-cluster")
    assert code == 1 and "kubeconfig" in output


@pytest.mark.parametrize("text", ["foo: [", "clusters: 3", "- a"])
def test_a_kubeconfig_that_is_none_is_told_by_its_name_and_a_check_needs_none(tmp_path: Path, text: str):
    file, broken = tmp_path / "job.yaml", tmp_path / "broken"
    file.write_text(json.dumps(RAY))
    broken.write_text(text)
    code, output = run_with(broken, str(file))
    assert code == 2 and "no cluster answered" in output
    code, output = run_with(broken, str(file), "--from-cluster")
    assert code == 1 and f"ClusterError: {broken} is no kubeconfig that can be used" in output, output
    assert "kubectl config view" in output


def test_the_schemas_may_be_those_of_the_cluster(tmp_path: Path, kubernetes_api: Cluster):
    crds()
    for written in read_manifests([SCHEMAS / "ray.io_rayjobs.yaml"]):
        kubernetes_api.put(written.manifest)
    file = tmp_path / "job.json"
    file.write_text(json.dumps({**RAY, "spec": {"entrypoint": "x", "clusterSelectors": {}}}))
    code, output = run_with(kubernetes_api.kubeconfig(tmp_path / "config"), str(file), "--json")
    report = json.loads(output)
    assert (code, report["schemas"], report["without_schema"]) == (2, "the cluster", [])
    assert "spec.clusterSelectors" in [fault["field"] for fault in report["faults"]]
