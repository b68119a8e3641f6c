"""The usual layouts, from one GPU to several nodes: a cluster, a training and an app that go together."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from cluster.cluster_spec import ClusterSpec
from cluster.cluster_store import check_bucket
from cluster.gpus import Gpu, catalogue, find
from runtime.core.config import parse_spec
from runtime.core.errors import ConfigError
from runtime.core.lookup import did_you_mean
from serve_apps.spec import ServeSpec
from train_jobs.spec import TrainSpec

_BESIDE_CPUS, _BESIDE_GIB = 3, 9
"""Of each node, since they may be on any: Ray's head and its autoscaler, a job's submitter, Kubernetes'
own pods."""

_PLAIN = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?")

Level = Literal[0, 1, 2]
LEVELS: tuple[Level, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Layout:
    """What the layouts differ in."""

    level: Level
    name: str = "lab"
    image: str = "registry.example.com/team/tandem:0.1.0"
    gpu: str = "L4"
    """A product, as NVML, Kubernetes or Ray spell it."""

    gpus: int = 4
    """Of each node; level 0 has one."""

    nodes: int = 3
    """At level 2."""

    cpus: int = 8
    """That each node can allocate."""

    memory_gib: int = 32
    """That each node can allocate."""

    store: str | None = None
    """``gs://`` or ``s3://``, or for level 2 an export, ``server:/path``."""

    model: str = "base"
    dataset: str = "dataset"


def files(layout: Layout) -> dict[str, str]:
    """``cluster.yaml``, ``train.yaml`` and ``serve.yaml`` of a layout, by name.

    Raises:
        ConfigError: the GPU is not in the catalogue, or the level cannot be laid out so.
    """
    _check(layout)
    texts = {"cluster.yaml": _cluster(layout), "train.yaml": _train(layout), "serve.yaml": _serve(layout)}
    parse_spec(ClusterSpec, texts["cluster.yaml"], origin="cluster.yaml")
    parse_spec(TrainSpec, texts["train.yaml"], origin="train.yaml")
    parse_spec(ServeSpec, texts["serve.yaml"], origin="serve.yaml")
    return texts


def _check(layout: Layout) -> None:
    if find(layout.gpu) is None:
        raise ConfigError(
            f"--gpu is {layout.gpu!r}, which is not in the catalogue. "
            f"{did_you_mean(layout.gpu, _products())} "
            "See: tandem plan MODEL."
        )
    if layout.cpus <= _BESIDE_CPUS or layout.memory_gib <= _BESIDE_GIB:
        raise ConfigError(
            f"--cpus is {layout.cpus} and --memory-gib {layout.memory_gib}, but {_BESIDE_CPUS} CPUs and "
            f"{_BESIDE_GIB} GiB "
            "of a node are for Ray's head and Kubernetes itself. Give more."
        )
    if layout.level and layout.gpus < 2:
        raise ConfigError(
            f"--gpus is {layout.gpus}, but at level {layout.level} a node's GPUs are split between "
            "training and "
            "serving. Set --gpus 2 or more, or take level 0."
        )
    if layout.level == 2 and layout.nodes < 2:
        raise ConfigError(
            f"--nodes is {layout.nodes}, but level 2 has several. Set --nodes 2 or more, or level 1."
        )
    if layout.level == 2 and layout.store is None:
        raise ConfigError(
            "--store is missing: at level 2 nodes share the store. Give gs://bucket/prefix, "
            "s3://bucket/prefix, or "
            "an NFS export as server:/path."
        )


def _products() -> list[str]:
    return [gpu.name for gpu in catalogue()]


def _served_gpus(layout: Layout) -> int:
    """GPUs of one replica: a power of two, which divides every usual number of attention heads."""
    most = layout.gpus if layout.level == 2 else layout.gpus // 2
    return 1 << (most.bit_length() - 1)


def _cluster(layout: Layout) -> str:
    gpu = find(layout.gpu)
    assert gpu is not None
    heads = {
        0: "Level 0: one GPU, shared by fractions between training and serving.",
        1: f"Level 1: one node, {layout.gpus} GPUs: some train, the others serve one model together.",
        2: f"Level 2: {layout.nodes} nodes of {layout.gpus} GPUs: training on one, replicas on the others.",
    }
    endpoint = "endpoint:\n  kind: LoadBalancer\n" if layout.level == 2 else ""
    return (
        f"# {heads[layout.level]}\n#\n"
        "#   tandem render cluster.yaml train.yaml serve.yaml\n"
        "#   tandem cluster apply cluster.yaml train.yaml serve.yaml\n"
        f"name: {_quoted(layout.name)}\n"
        f"image: {_quoted(layout.image)}\n"
        "head: {cpus: 1, memory: 4GiB}\n"
        f"{_groups(layout, gpu)}"
        f"{_store(layout)}"
        "training:\n"
        "  cluster: serving               # in the Ray cluster that serves: one ledger over all GPUs\n"
        f"{_upgrade(layout)}"
        f"{endpoint}"
    )


def _groups(layout: Layout, gpu: Gpu) -> str:
    """At level 2 one group trains and one serves: each has its size, and its nodes where they have labels."""
    nodes = (
        f"    gpus: {layout.gpus if layout.level else 1}\n"
        f"    cpus: {layout.cpus - _BESIDE_CPUS}                      # what is left beside the head and "
        "Kubernetes\n"
        f"    memory: {layout.memory_gib - _BESIDE_GIB}GiB\n"
    )
    product = f"    accelerator_type: {gpu.kubernetes}\n"
    if layout.level < 2:
        return f"node_groups:\n  - name: gpu\n{product}{nodes}    count: 1\n"
    return (
        "# One Ray cluster has both, so that neither lies idle: what waits takes whatever node has room.\n"
        "node_groups:\n"
        f"  - name: training\n{product}{nodes}"
        "    count: 1                     # as many as scaling.num_workers of train.yaml fill\n"
        f"  - name: replicas\n{product}{nodes}"
        f"    min: {layout.nodes - 1}\n"
        f"    max: {2 * layout.nodes - 1}                       # Ray's autoscaler asks for more when work "
        "waits\n"
        "    # node_labels: {pool: serving}    # in either group, where its nodes have a label of their own\n"
    )


def _quoted(text: str) -> str:
    """As YAML reads it back: quoted where that is not plain to see."""
    return text if _PLAIN.fullmatch(text) and yaml.safe_load(text) == text else json.dumps(text)


def _upgrade(layout: Layout) -> str:
    if layout.level == 2:
        return ""
    return (
        "serving:\n"
        "  upgrade: none                  # a second cluster beside the first would need a second node\n"
    )


def _store(layout: Layout) -> str:
    if layout.store is None:
        return (
            "store:\n"
            "  # A folder of the node; there once: sudo install -d -o 1000 -g 1000 /var/lib/tandem\n"
            "  host_path: /var/lib/tandem\n"
        )
    if "://" in layout.store:
        check_bucket(layout.store, field="--store")
        return f"store:\n  uri: {_quoted(layout.store)}\n{_credentials(layout)}"
    server, _, path = layout.store.partition(":")
    if not path.startswith("/"):
        raise ConfigError(
            f"--store is {layout.store!r}. Give gs://bucket/prefix, s3://bucket/prefix, or an export as "
            "server:/path."
        )
    return f"store:\n  nfs: {{server: {_quoted(server)}, path: {_quoted(path)}}}\n"


def _credentials(layout: Layout) -> str:
    """Lines to choose from, for a bucket lets nobody in who shows nothing."""
    secret = f"kubectl -n {layout.name} create secret generic"
    if str(layout.store).lower().startswith("s3:"):
        ways = (
            f"access_key: s3    # {secret} s3 --from-env-file=s3.env, with AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY",
            "service_account_annotations: {eks.amazonaws.com/role-arn: arn:aws:iam::123456789012:role/lab}",
        )
    else:
        ways = (
            f"key_file: {{secret: google, key: sa.json}}    # {secret} google --from-file=sa.json",
            "service_account: tandem@PROJECT.iam.gserviceaccount.com    # on GKE, with provider: gke above",
        )
    lines = "".join(f"  # {way}\n" for way in ways)
    return f"  # What pods show the bucket; without one of these they need what their nodes have:\n{lines}"


def _train(layout: Layout) -> str:
    if layout.level == 0:
        workers = (
            "  num_workers: 1\n"
            "  gpus_per_worker: 0.5       # half of the card's memory; the app in serve.yaml has the other\n"
        )
        recipe, deepspeed = "  lora_rank: 8\n  lora_target: all\n", ""
    else:
        trained = layout.gpus if layout.level == 2 else layout.gpus - _served_gpus(layout)
        workers = f"  num_workers: {trained}\n  gpus_per_worker: 1\n"
        recipe, deepspeed = "", f"deepspeed: {'zero3' if layout.level == 2 else 'zero2'}\n"
    kind = "lora" if layout.level == 0 else "full"
    return (
        f"# {'LoRA on half of the GPU.' if layout.level == 0 else 'Full fine-tuning with DeepSpeed.'}\n"
        "name: sft\n"
        f"model: {_quoted(layout.model)}\n"
        f"dataset: {_quoted(layout.dataset)}\n"
        "llamafactory:\n"
        "  stage: sft\n"
        f"  finetuning_type: {kind}\n"
        f"{recipe}"
        "  template: qwen3_nothink      # the model's own\n"
        "  num_train_epochs: 1\n"
        "  per_device_train_batch_size: 1\n"
        "  gradient_accumulation_steps: 8\n"
        "  bf16: true\n"
        "  save_steps: 100\n"
        f"{deepspeed}"
        "scaling:\n"
        f"{workers}"
        "publish:\n"
        "  name: sft\n"
    )


def _serve(layout: Layout) -> str:
    size = 1 if layout.level == 0 else _served_gpus(layout)
    gpus = "0.5" if layout.level == 0 else "1"
    replicas = {0: (1, 1), 1: (1, 1), 2: (layout.nodes - 1, 2 * layout.nodes - 1)}[layout.level]
    engine = f"engine:\n  tensor_parallel_size: {size}\n" if size > 1 else ""
    return (
        f"# {'Half of the GPU' if layout.level == 0 else f'{size} GPUs a replica'}; keys: tandem keys "
        "create NAME\n"
        "name: chat\n"
        f"model: {_quoted(layout.model)}\n"
        f"{engine}"
        "resources:\n"
        f"  gpus: {gpus}\n"
        "  cpus: 1\n"
        "autoscaling:\n"
        f"  min_replicas: {replicas[0]}\n"
        f"  max_replicas: {replicas[1]}\n"
    )


def write(texts: dict[str, str], folder: Path) -> list[Path]:
    """Write the files into a folder: all, or none where one of them is there already."""
    there = [name for name in texts if (folder / name).exists()]
    if there:
        raise ConfigError(
            f"{folder / there[0]} exists already and is not replaced. Move it away, or name another "
            "folder: --out."
        )
    new = {folder / name: folder / f".{name}.new" for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in zip(new.values(), texts.values(), strict=True):
            file.write_text(text)
        for final, file in new.items():
            file.rename(final)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror}). Name another folder: --out."
        ) from None
    return list(new)
