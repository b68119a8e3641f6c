"""The Python SDK: one object for one cluster and one store.

from runtime import Tandem

tandem = Tandem()                       # the local cluster, started when there is none
run = tandem.train("train.yaml")        # returns at once
run.wait()
app = tandem.serve({"name": "demo", "model": run.model})
print(app.chat("What does json.dumps do?"))
"""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import applications, jobs, local
from cluster.code import code_snapshot
from cluster.environments import check_pair
from cluster.inventory import Inventory
from cluster.ledger.shown import at_its_largest, picture, refuse_without_room
from cluster.ray_settings import JOB_STOP_S
from cluster.rest import checked_url, cluster_resources, ray_version
from runtime.adapters import AppAdapters
from runtime.app import App
from runtime.core.config import blamed_on, load_spec, origin_of
from runtime.core.errors import ConfigError, EnvironmentFault
from runtime.gpus import Gpus
from runtime.run import Run
from runtime.served import remove_model
from runtime.show import table_html
from serve_apps.plan import FRONT_APPLICATION, ServePlan, plan_serve
from serve_apps.request import as_asked_for
from serve_apps.request import request as serve_request
from serve_apps.spec import ServeSpec
from storage.address import is_address
from storage.datasets import Dataset
from storage.models import ModelVersion
from storage.runs import RunFolder
from storage.store import Store, open_store
from storage.workspace import storage_env
from train_jobs.plan import TrainPlan, plan_train, resolve
from train_jobs.request import request as train_request
from train_jobs.source import source_of
from train_jobs.spec import TrainSpec

if TYPE_CHECKING:
    from runtime.batch import BatchResult
    from runtime.sweep import Sweep

TrainSource = TrainSpec | Mapping[str, Any] | str | Path
ServeSource = ServeSpec | Mapping[str, Any] | str | Path


class Tandem:
    """A cluster that trains and serves, and the store that both use.

    Args:
        address: The dashboard of a running cluster, ``http://head:8265``. None: the local cluster,
            started when there is none.
        store: Root address of the store. None: ``$TANDEM_STORE``, else ``~/.tandem/store``. A remote
            cluster must reach it under the same address.

    Raises:
        ClusterError: the cluster cannot be reached or started.
        EnvironmentFault: an environment is missing, or Ray or Python versions differ.
    """

    def __init__(self, address: str | None = None, *, store: str | None = None) -> None:
        self.store: Store = open_store(store)
        self._local = local.up(local.LocalClusterSpec(store=self.store.uri)) if address is None else None
        self.dashboard_url = self._local.dashboard_url if self._local else checked_url(str(address))
        if not self._local:
            _same_ray(self.dashboard_url)

    def __repr__(self) -> str:
        return f"Tandem({self.dashboard_url!r}, store={self.store.uri!r})"

    def _repr_html_(self) -> str:
        return table_html([{"dashboard": self.dashboard_url, "store": self.store.uri}])

    # training

    def plan_train(self, spec: TrainSource) -> TrainPlan:
        """What ``train`` would do, checked against store and cluster; nothing is submitted."""
        return self._plan_train(spec)[1]

    def train(self, spec: TrainSource, *, no_wait: bool = False) -> Run:
        """Submit a training job and return at once. Where there is no room now it waits in the queue.

        Args:
            no_wait: Refuse instead.

        Raises:
            ConfigError: the spec cannot work; names file, field, value and remedy. Nothing was submitted.
            ClusterError: there is no room now, and ``no_wait``.
        """
        self._check_environments()
        resolved, plan = self._plan_train(spec)
        if no_wait:
            self._refuse_without_room(plan)
        folder = self.store.new_run(resolved.name, resolved.to_json())
        self._submit(folder, submission_id=folder.run_id, no_wait=no_wait)
        return Run(folder)

    def resume(self, run_id: str, *, num_workers: int | None = None, no_wait: bool = False) -> Run:
        """Take up a run that failed, was stopped or lost its cluster, from its last committed checkpoint.

        Args:
            num_workers: Another number of workers; the global batch stays, so that it must divide.
            no_wait: Refuse where there is no room now.

        Raises:
            ClusterError: there is no room now, and ``no_wait``.
            ConfigError: it still goes on, has succeeded, or cannot be divided so.
        """
        self._check_environments()
        run = self.run(run_id)
        if run.status in ("PENDING", "RUNNING"):
            raise ConfigError(
                f"run {run.run_id} still goes on ({run.status}). Watch it with: "
                f"tandem runs show {run.run_id} -f; end it first with: tandem stop {run.run_id}."
            )
        if run.status == "SUCCEEDED":
            raise ConfigError(
                f"run {run.run_id} has succeeded: there is nothing to go on with. To train its model "
                "further, name it as `model:` in a new spec."
            )
        folder = run.folder
        plan = source_of(folder).plan(
            self.store,
            inventory=self.inventory(),
            run=folder,
            go_on_with=num_workers,
        )
        if no_wait:
            self._refuse_without_room(plan)
        folder.begin_again()
        self._submit(
            folder,
            submission_id=f"{folder.run_id}-{secrets.token_hex(2)}",
            num_workers=num_workers,
            no_wait=no_wait,
        )
        return Run(folder)

    def _refuse_without_room(self, plan: TrainPlan) -> None:
        wanted = train_request(plan, plan.min_workers)
        refuse_without_room(self.dashboard_url, wanted, priority=plan.priority)

    def _submit(
        self, folder: RunFolder, *, submission_id: str, num_workers: int | None = None, no_wait: bool = False
    ) -> None:
        arguments = ["run", "--store", self.store.uri, "--run", folder.run_id]
        if no_wait:
            arguments.append("--no-wait")
        if num_workers is not None:
            arguments += ["--num-workers", str(num_workers)]
        folder.update_record(dashboard_url=self.dashboard_url, submission_id=submission_id)
        try:
            jobs.submit(
                self.dashboard_url,
                f"python -m train_jobs {shlex.join(arguments)}",
                submission_id=submission_id,
                env_vars=self._code() | {"RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_S)},
                metadata={"run": folder.run_id, "store": self.store.uri},
            )
        except BaseException as error:
            # The job removes this result should it have begun all the same.
            folder.write_result(
                {"status": "failed", "error": f"not submitted: {error or type(error).__name__}"}
            )
            raise

    def sweep(self, source: Mapping[str, Any] | str | Path) -> Sweep:
        """Start several runs over a space of parameters, through Ray Tune, and return at once.

        Raises:
            ConfigError: the sweep, or one of its runs, cannot work. Nothing was submitted.
        """
        from runtime.sweep import start_sweep

        return start_sweep(self, source)

    def runs(self, name: str | None = None) -> list[Run]:
        """Runs in the store, oldest first; of one name, or all."""
        return [Run(folder) for folder in self.store.runs(name)]

    def run(self, run_id: str) -> Run:
        """The run with this id, or the newest run of a name."""
        return Run(self.store.run(run_id))

    # serving

    def plan_serve(self, spec: ServeSource) -> ServePlan:
        """What ``serve`` would do, checked against store and cluster; nothing is deployed."""
        with blamed_on(spec):
            resolved = load_spec(ServeSpec, spec)
            store = open_store(resolved.store) if resolved.store else self.store
            return plan_serve(
                resolved,
                store=store,
                inventory=self.inventory(),
                http_host="127.0.0.1" if self._local else applications.http_host(self.dashboard_url),
            )

    def serve(self, spec: ServeSource, *, no_wait: bool = False) -> App:
        """Deploy a serve app, or replace the one of the same name, and return at once.

        ``app.chat`` and ``app.openai`` wait until it answers. Where there is no room for its least number of
        replicas it waits in the queue.

        Args:
            no_wait: Refuse instead. Should somebody else take the room in the meantime, the app is
                ``DEPLOY_FAILED`` and says so.

        Raises:
            ConfigError: the spec cannot work; names file, field, value and remedy. Nothing was deployed.
            ClusterError: there is no room now, and ``no_wait``.
        """
        self._check_environments()
        plan = self.plan_serve(spec)
        if no_wait:
            refuse_without_room(self.dashboard_url, serve_request(plan), priority=plan.spec.priority)
        http_port = int(self._local.http_url.rpartition(":")[2]) if self._local else None
        application = plan.application() | {"runtime_env": {"env_vars": self._code()}}
        front = FRONT_APPLICATION | {"runtime_env": application["runtime_env"]}
        there = applications.applications(self.dashboard_url).get(plan.spec.name, {})
        application = as_asked_for(application, no_wait, there)
        applications.deploy(self.dashboard_url, application, http_port=http_port, front=front)
        return App(self.dashboard_url, str(application["name"]))

    def apps(self) -> list[App]:
        """The deployed serve apps, by name."""
        return [
            App(self.dashboard_url, name) for name in sorted(applications.applications(self.dashboard_url))
        ]

    def app(self, name: str) -> App:
        """The deployed app of this name.

        Raises:
            ConfigError: there is none.
        """
        app = App(self.dashboard_url, name)
        if app.status == "NOT_STARTED":
            known = [other.name for other in self.apps()]
            raise ConfigError(f"app {name!r} is not deployed. Deployed: {', '.join(known) or 'none'}.")
        return app

    def batch(
        self, source: str | Path, output: str | Path, *, model: str | None = None, **options: Any
    ) -> BatchResult:
        """Answer the requests in a file in OpenAI's batch format; see ``runtime.batch.run_batch``.

        The key is the one in ``$TANDEM_API_KEY``, unless ``api_key`` is given.
        """
        from runtime.batch import endpoint_of, run_batch

        found = {"endpoint": endpoint_of(self.dashboard_url), "api_key": os.environ.get("TANDEM_API_KEY")}
        return run_batch(source, output, model=model, **{**found, **options})

    def adapters(self, app: str) -> AppAdapters:
        """The LoRA adapters of a deployed app: list, add, remove, without a restart."""
        return AppAdapters(self.dashboard_url, app, self.store)

    # the store

    def models(self, name: str | None = None) -> list[ModelVersion]:
        """Every committed model version in the store, of one name or all."""
        return self.store.models(name)

    def publish(self, source: str | Path, name: str, **manifest: Any) -> ModelVersion:
        """Commit a folder, or what is at an address, as a new version of the model ``name``.

        Args:
            manifest: ``version``, ``kind``, ``base``, ``template`` and so on, as in ``Store.publish_model``.
        """
        text = str(source)
        if is_address(text):
            return self.store.publish_from(text, name, **manifest)
        return self.store.publish_model(Path(source), name, **manifest)

    def remove_model(self, ref: str) -> ModelVersion:
        """Remove one version, ``name/version``.

        Raises:
            ConfigError: there is none, or an app of this cluster serves it.
        """
        return remove_model(self.store, ref, self.dashboard_url)

    def datasets(self) -> list[Dataset]:
        """Every dataset in the store."""
        return self.store.datasets()

    def add_dataset(self, name: str, source: Any, *, info: Mapping[str, Any] | None = None) -> Dataset:
        """Check and register rows, files, folders or addresses, as ``Store.add_dataset`` does."""
        return self.store.add_dataset(name, source, info=info)

    def remove_dataset(self, name: str) -> None:
        """Remove a dataset."""
        self.store.remove_dataset(name)

    def resources(self) -> dict[str, float]:
        """What the cluster has in all: ``{"CPU": 2.0, "GPU": 0.0, ...}``."""
        return cluster_resources(self.dashboard_url)

    def gpus(self) -> Gpus:
        """Every card, who holds which part of it, promised against used, and who waits for room."""
        return Gpus(picture(self.dashboard_url))

    def estimate(
        self, target: Mapping[str, Any] | str | Path, *, gpu: str | None = None, num_gpus: int = 1
    ) -> Any:
        """Will it fit, and on what: of a spec (a file or its fields) what each worker needs and has, where
        the bytes go and what would make it fit; of a model how many GPUs of each product serve and train it.

        Args:
            gpu: On this product instead of the cluster's, as NVML, Kubernetes or Ray spells it.
            num_gpus: How many of them.

        Returns:
            A :class:`runtime.estimate.Report` or :class:`runtime.estimate.Overview`.
        """
        from runtime.estimate import estimate

        return estimate(target, self.store, inventory=self.inventory(), gpu=gpu, num_gpus=num_gpus)

    def inventory(self) -> Inventory:
        """Its living nodes and their cards, and those that it may still get."""
        return at_its_largest(self.dashboard_url)

    def _plan_train(self, spec: TrainSource) -> tuple[TrainSpec, TrainPlan]:
        with blamed_on(spec):
            resolved = resolve(load_spec(TrainSpec, spec))
            plan = plan_train(
                resolved,
                store=self.store,
                inventory=self.inventory(),
                origin=origin_of(spec),
            )
            return resolved, plan

    def _check_environments(self) -> None:
        if self._local:
            check_pair()

    def _code(self) -> dict[str, str]:
        """Variables that give a job or app this process' storage settings, and its code too.

        A remote cluster's image has its own code.
        """
        code = {"PYTHONPATH": str(code_snapshot())} if self._local else {}
        return code | storage_env()


def _same_ray(dashboard_url: str) -> None:
    from importlib.metadata import version

    ours, theirs = version("ray"), ray_version(dashboard_url)
    if ours != theirs:
        raise EnvironmentFault(
            f"the cluster at {dashboard_url} runs Ray {theirs}, this environment has {ours}. Use a core "
            f"environment with Ray {theirs}, or a cluster with {ours}."
        )
