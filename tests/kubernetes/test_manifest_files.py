"""Manifests in files: what is read, and how words are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.kubernetes.manifest_files import read_manifests
from runtime.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.yaml",
            "kind: A\nspec:\n  x: 1\n  x: 2\n",
            r"the key 'x' is there twice in one mapping in line 4",
        ),
        (
            "a.json",
            '{"kind": "A", "kind": "B"}',
            r"the key 'kind' is there twice in one object\. Leave one out",
        ),
        ("a.yaml", "- kind: A\n", r"holds list, but a manifest is a mapping"),
        (
            "a.yaml",
            "kind: List\nitems: [null, x]\n",
            r"items\[0\]: holds nothing, but a manifest is a mapping",
        ),
        ("a.yaml", "kind: List\nitems: [{kind: A}, x]\n", r"a\.yaml: items\[1\]: holds str, but a manifest"),
        ("a.yaml", "kind: List\nitems: x\n", r"items of a List holds str\. Write a list of manifests"),
        ("a.yaml", "kind: [", r"is not valid YAML: .* in line"),
        ("a.txt", "", r"holds no manifest"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, name: str, text: str, says: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=says):
        read_manifests([tmp_path])


def test_words_are_read_as_kubectl_reads_them(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "kind: A\nv: [y, N, 1e3, 0o17, 017, 1:30, 2026-01-01, 0x1f, 10.0.0.1, 'y', 1_0]\n1: a\ny: b\n"
    )
    manifest = read_manifests([file])[0].manifest
    assert manifest["v"] == [True, False, 1000.0, 15, 15, "1:30", "2026-01-01", 31, "10.0.0.1", "y", 10]
    assert (manifest["1"], manifest["true"]) == ("a", "b")


def test_documents_lists_and_json_are_read_in_the_order_of_the_files(tmp_path: Path):
    (tmp_path / "2.json").write_text('{"kind": "C"}')
    (tmp_path / "1.yaml").write_text(
        "kind: A\n---\n---\napiVersion: v1\nkind: List\n"
        "items: [{kind: B1}, {kind: List, items: [{kind: B2}]}]\n"
    )
    (tmp_path / "notes.md").write_text("# no manifest")
    kinds = [one.manifest["kind"] for one in read_manifests([tmp_path])]
    assert kinds == ["A", "B1", "B2", "C"]
