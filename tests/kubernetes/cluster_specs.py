"""Strategies for valid cluster specs, apps and jobs: every field, and what goes together."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cluster.cluster_spec import ClusterSpec
from cluster.kubernetes.workloads import ServeApp, TrainJob
from runtime.core.config import load_spec

GIB = 1 << 30
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TEXT = st.text(max_size=10)
"""Emoji, quotes, control characters."""
# Words that YAML would read as another type, were they not quoted.
_VALUE = st.sampled_from(["a", "yes", "1e3", "0o17", "true", "null", "10", "with.dot-and_more", "", "Z" * 63])
_KEY = st.sampled_from(["team", "example.com/pool", "cost-centre", "A_b.C", f"{'x' * 63}.io/{'y' * 63}"])
_LABELS = st.dictionaries(_KEY, _VALUE, max_size=2)
_ANNOTATIONS = st.dictionaries(st.one_of(_KEY, st.just("Example.com/a")), st.text(max_size=20), max_size=2)
CATALOGUED = ("NVIDIA-L4", "NVIDIA-A100-SXM4-80GB", "Tesla-T4", "NVIDIA-H100-80GB-HBM3")
_GPUS = st.sampled_from([*CATALOGUED, "NVIDIA-of-next-year"])


def _name(most: int) -> st.SearchStrategy[str]:
    inner = st.text(_LETTERS + "0123456789-", max_size=most - 2)
    return st.builds(lambda first, rest, last: first + rest + last, st.sampled_from(_LETTERS), inner,
                     st.sampled_from(_LETTERS + "0123456789"))  # fmt: skip


_OBJECT = st.one_of(_name(20), st.sampled_from(["0", "my.secret", "a" * 253]))
"""Names of what is in the cluster already."""

_QUEUE = st.one_of(_name(20), st.sampled_from(["1.team-a", "q" * 63]))
_HOST = st.sampled_from(
    ["llm.example.com", "*.example.com", "localhost", "1.example.com", "xn--bcher-kva.example"]
)
_RANGES = st.lists(
    st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "192.168.7.5/32", "2001:db8::/32", "::1/128"]), max_size=3
)


def _some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping with any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


_TOLERATION = st.one_of(
    st.fixed_dictionaries({"key": _KEY}, optional={"effect": st.sampled_from(["NoSchedule", "NoExecute"])}),
    st.fixed_dictionaries({"key": _KEY, "operator": st.just("Equal"), "value": _VALUE}),
)
_PLACE = {"node_labels": _LABELS, "tolerations": st.lists(_TOLERATION, max_size=2)}
_SECRET_KEY = st.fixed_dictionaries(
    {"secret": _OBJECT, "key": st.one_of(_name(10), st.sampled_from(["sa.JSON", "_key", ".k"]))}
)


@st.composite
def node_groups(draw: st.DrawFn, name: str, most: int = 5) -> dict[str, Any]:
    """A group of at most ``most`` nodes, with GPUs or without."""
    group: dict[str, Any] = draw(_some(
        **_PLACE, labels=_LABELS, spot=st.booleans(), idle_timeout_s=st.integers(300, 3600)
    ))  # fmt: skip
    if draw(st.booleans()):
        group |= {"accelerator_type": draw(_GPUS), "gpus": draw(st.sampled_from([1, 4, 8]))}
        if group["accelerator_type"] not in CATALOGUED:
            group["gpu_memory"] = 96 * GIB
    if draw(st.booleans()):
        group |= {"count": draw(st.integers(1, most))}
    else:
        top = draw(st.integers(1, most))
        group |= {"min": draw(st.integers(0, top)), "max": top}
    return group | {"name": name, "cpus": draw(st.sampled_from([0.5, 4, 15.5, 90])),
                    "memory": draw(st.integers(2 * GIB, 1000 * GIB))}  # fmt: skip


_NFS = st.one_of(
    st.fixed_dictionaries({"server": st.just("10.0.0.2"), "path": st.just("/models")}),
    st.fixed_dictionaries({"storage_class": _OBJECT}),
    st.fixed_dictionaries({"claim": _OBJECT}),
).flatmap(lambda source: _some(fs_group=st.integers(1, 5000)).map(lambda more: source | more))


_ENDPOINT = st.sampled_from(
    ["https://s3.example.com", "http://minio:9000", "http://[::1]:9000/", "http://10.0.0.7"]
)


@st.composite
def stores(draw: st.DrawFn, provider: str, nodes: int) -> dict[str, Any]:
    """A store on NFS, in a bucket with each kind of credentials, or in both; on the only node."""
    store: dict[str, Any] = draw(_some(
        cache_size=st.integers(GIB, 500 * GIB), service_account_annotations=_ANNOTATIONS,
        options=_ENDPOINT.map(lambda url: {"s3://team": {"endpoint_url": url}}),
    ))  # fmt: skip
    kind = draw(st.sampled_from(["nfs", "gs", "s3", *(["host"] if nodes == 1 else [])]))
    if kind == "host":
        return store | {"host_path": "/models"}
    if kind == "nfs":
        folder = _some(uri=st.sampled_from(["/mnt/tandem/store", "/mnt/tandem/a/b.c", "/mnt/tandem"]))
        return store | {"nfs": draw(_NFS)} | draw(folder)
    store["uri"] = f"{kind}://team/tandem"
    if kind == "s3":
        return store | draw(_some(access_key=_OBJECT))
    if provider == "gke" and draw(st.booleans()):
        return store | {"service_account": "tandem@project.iam.gserviceaccount.com"}
    return store | draw(_some(key_file=_SECRET_KEY, nfs=_NFS))


@st.composite
def endpoints(draw: st.DrawFn) -> dict[str, Any]:
    """Each kind of endpoint."""
    kind = draw(st.sampled_from(["ClusterIP", "LoadBalancer", "Ingress", "Gateway"]))
    endpoint: dict[str, Any] = {"kind": kind} | draw(_some(annotations=_ANNOTATIONS))
    if kind == "LoadBalancer":
        classes = st.sampled_from(["service.k8s.aws/nlb", "internal-vip"])
        endpoint |= draw(_some(source_ranges=_RANGES, load_balancer_class=classes))
    if kind in ("Ingress", "Gateway"):
        endpoint |= {"host": draw(_HOST)} | draw(_some(tls_secret=_OBJECT))
    if kind == "Gateway" or (kind == "Ingress" and draw(st.booleans())):
        endpoint["class_name"] = draw(st.one_of(st.just("nginx"), _OBJECT))
    return endpoint


_REDIS = st.fixed_dictionaries(
    {"redis_address": st.sampled_from(["redis:6379", "redis", "rediss://r.example.com:7001", "10.0.0.9:1"])},
    optional={"password": _SECRET_KEY},
)
_HEAD = _some(cpus=st.sampled_from([1, 2.5, 8]), memory=st.integers(2 * GIB, 64 * GIB), **_PLACE)


@st.composite
def cluster_specs(draw: st.DrawFn) -> ClusterSpec:
    """A valid spec with any of what a spec may hold."""
    provider = draw(st.sampled_from(["gke", "other"]))
    names = draw(st.lists(_name(30).filter(lambda name: name != "head"), min_size=1, max_size=3, unique=True))
    groups = [draw(node_groups(name)) for name in names]
    nodes = sum(group.get("count", group.get("max", 0)) for group in groups)
    serving = draw(_serving(any("max" in group and group["min"] < group["max"] for group in groups)))
    # The operator's Gateway is the only endpoint of an incremental upgrade.
    endpoint = {} if serving["upgrade"] == "incremental" else draw(endpoints())
    queueing = draw(st.sampled_from(["none", "kueue", "volcano", "kai"]))
    fields = {
        "name": draw(_name(30)),
        "image": "registry.example.com/team/tandem:0.1.0",
        "provider": provider,
        "node_groups": groups,
        "store": draw(stores(provider, nodes)),
        "endpoint": endpoint,
        "queueing": {"kind": queueing} | ({"queue": draw(_QUEUE)} if queueing != "none" else {}),
        "serving": serving,
    }
    return load_spec(ClusterSpec, fields | draw(_OTHERS) | draw(_some(training=_training(queueing))))


def _training(queueing: str) -> st.SearchStrategy[dict[str, Any]]:
    """Volcano begins no job in a cluster that is there."""
    clusters = ["own"] if queueing == "volcano" else ["own", "shared"]
    return _some(
        cluster=st.sampled_from(clusters), backoff_limit=st.integers(0, 5), ttl_s=st.integers(0, 9000),
        pending_deadline_s=st.integers(60, 90_000),
    )  # fmt: skip


@st.composite
def _serving(draw: st.DrawFn, autoscales: bool) -> dict[str, Any]:
    """An incremental upgrade needs a group that autoscales."""
    upgrade = draw(st.sampled_from(["new_cluster", "none", *(["incremental"] if autoscales else [])]))
    gateway = {"gateway_class_name": "istio"} if upgrade == "incremental" else {}
    return {"upgrade": upgrade, **gateway, "longest_request_s": draw(st.integers(1, 86_400))}


_OTHERS = _some(
    namespace=_name(63),
    image_pull_policy=st.sampled_from(["IfNotPresent", "Always", "Never"]),
    api_server_port=st.integers(1, 65_535),
    image_pull_secrets=st.lists(_OBJECT, max_size=2, unique=True),
    head=_HEAD,
    auth=_some(mode=st.sampled_from(["token", "none"]), secret=_OBJECT),
    monitoring=_some(
        enabled=st.booleans(), dcgm=st.booleans(), dashboards=st.booleans(), release=_VALUE,
        namespace=_name(9), dcgm_namespace=_name(63),
    ),
    gcs_fault_tolerance=_REDIS,
)  # fmt: skip


@st.composite
def serve_apps(draw: st.DrawFn) -> list[ServeApp]:
    """None to three apps."""
    names = draw(st.lists(_name(20), max_size=3, unique=True))
    return [
        ServeApp(
            name,
            {
                "name": name,
                "route_prefix": f"/{name}",
                "import_path": "serve_apps.build:build_app",
                "args": {"name": name, "model": draw(_VALUE), "note": draw(_TEXT)},
            },
            draw(st.sampled_from([0.5, 20.0, 900.0])),
        )
        for name in names
    ]


# A run's name may hold capitals, dots and underscores.
_RUN = st.text(_LETTERS + "ABC_-.", min_size=1, max_size=50).filter(lambda text: text.strip("-_."))


@st.composite
def train_jobs(draw: st.DrawFn, spec: ClusterSpec) -> list[TrainJob]:
    """None to two jobs, with or without GPUs, of which some group's nodes hold a worker."""
    jobs = []
    for name in draw(st.lists(_RUN, max_size=2, unique=True)):
        group = draw(st.sampled_from(spec.node_groups))
        product = draw(st.sampled_from([None, "any", group.ray_accelerator_type])) if group.gpus else None
        jobs.append(
            TrainJob(
                name=name,
                spec={"name": name, "note": draw(_TEXT), "learning_rate": "1e3"},
                run_id=f"{name}-0a1b2c3d",
                num_workers=(1, draw(st.integers(1, 9))),
                cpus_per_worker=0.5,
                gpus_per_worker=draw(st.sampled_from([0.5, 1, group.gpus])) if group.gpus else 0,
                memory_bytes_per_worker=draw(st.integers(0, GIB // 2)),
                accelerator_type=product,
            )
        )
    return jobs


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterSpec, list[ServeApp], list[TrainJob]]:
    """A cluster and what runs on it."""
    spec = draw(cluster_specs())
    return spec, draw(serve_apps()), draw(train_jobs(spec))
