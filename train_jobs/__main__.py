"""``python -m train_jobs run SPEC``: check, plan, and hand over to the train environment.

Meant as the entrypoint of ``ray job submit``, under any interpreter of the cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Literal, NoReturn

from cluster import environments
from cluster.inventory import Inventory
from cluster.ledger.picture import as_read
from cluster.ledger.shown import newest
from cluster.nodes import node_of
from cluster.nodes_to_come import at_its_largest
from runtime.core.errors import ClusterError, ConfigError, TandemError
from storage.runs import RunFolder
from storage.store import Store, open_store
from train_jobs.plan import TrainPlan
from train_jobs.source import Source, read_source, source_of

_DESCRIPTION = """\
Fine-tune a model with LLaMA-Factory and DeepSpeed under Ray Train.

  ray job submit --address http://127.0.0.1:8265 -- python -m train_jobs run /path/to/spec.yaml
"""

_DRIVER_ENV = {"RAY_DEDUP_LOGS": "0"}
"""Every rank's lines are kept apart: Ray would fold equal lines of several ranks into one."""

_EPILOG = """\
The spec is checked before anything starts. Exit code 2: the spec cannot work, and one message says which
field, why, and what to write instead. Exit code 1: the run failed; the last line says why. The run's folder
in the store holds spec.json, plan.json, metrics.jsonl, checkpoints/ and, at the end, result.json.
"""


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and run. Returns only if there is nothing to hand over to."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except TandemError as error:
        # The message alone: it says all that a traceback would hide.
        print(error, file=sys.stderr, flush=True)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_jobs",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="check a spec, then train on this cluster")
    run.add_argument(
        "spec",
        metavar="SPEC",
        nargs="?",
        help="a train spec, YAML or JSON, by path or address (default, with --run: the run's own)",
    )
    run.add_argument(
        "--llamafactory",
        metavar="FILE",
        help="instead of SPEC: a YAML file as llamafactory-cli train takes it",
    )
    run.add_argument(
        "--num-workers",
        metavar="N",
        type=_count,
        help="workers, instead of scaling.num_workers; with --run the global batch stays what it was",
    )
    run.add_argument("--no-wait", action="store_true", help="fail at once where the cluster has no room now")
    run.add_argument("--dry-run", action="store_true", help="print the resolved plan as JSON; start nothing")
    run.add_argument(
        "--store", metavar="URI", help="the store (default: $TANDEM_STORE, else ~/.tandem/store)"
    )
    run.add_argument(
        "--run",
        "--resume",
        metavar="RUN_ID",
        help="go on with this run, from its last checkpoint if it has one (default: a new run)",
    )
    run.add_argument(
        "--run-id",
        metavar="RUN_ID",
        help="begin a run of this id, NAME-<8 hex digits>, or go on with it where a lost cluster left it: "
        "for a job that is tried again",
    )
    return parser


def _run(options: argparse.Namespace) -> Literal[0]:
    if options.spec is None and options.llamafactory is None and not options.run:
        raise ConfigError("SPEC is missing. Name a train spec, or with --run the run whose spec it is.")
    if options.run and options.run_id:
        raise ConfigError("--run and --run-id both name the run. Leave one out.")
    store = open_store(options.store)
    if options.run_id and (begun := _begun(store, options.run_id)):
        return _take_up(options, store, begun)
    given = store.run(options.run) if options.run else None
    try:
        return _plan_and_go(options, store, given)
    except TandemError as error:
        # Who made the run folder waits for its result. Not where this job only meant to take it up.
        if given is not None and not options.dry_run and _is_ours(given):
            given.write_result({"status": "failed", "error": str(error)})
        raise


def _begun(store: Store, run_id: str) -> RunFolder | None:
    """The run of exactly this id."""
    return next((run for run in store.runs(run_id.rpartition("-")[0]) if run.run_id == run_id), None)


def _take_up(options: argparse.Namespace, store: Store, run: RunFolder) -> Literal[0]:
    """Go on with a run whose cluster was lost. How it ended before, if it has, is how it ends now."""
    ended = run.result()
    if ended is None:
        its_own = argparse.Namespace(**vars(options) | {"spec": None, "llamafactory": None})
        return _plan_and_go(its_own, store, run)
    if ended["status"] == "succeeded":
        print(f"run {run.run_id} has succeeded: there is nothing to do.", flush=True)
        return 0
    raise ClusterError(
        f"run {run.run_id} has {ended['status']}: {ended.get('error')}\n"
        f"It is not begun again by itself. Go on with: tandem train --resume {run.run_id}"
    )


def _is_ours(run: RunFolder) -> bool:
    return run.record().get("submission_id") in (None, submission_id())


def _plan_and_go(options: argparse.Namespace, store: Store, given: RunFolder | None) -> Literal[0]:
    if given is not None and (given.result() or {}).get("status") == "succeeded":
        raise ConfigError(f"run {given.run_id} has succeeded: there is nothing to go on with.")
    source = _source(options, store, given)
    inventory = living_nodes()
    go_on_with = options.num_workers if given is not None else None
    plan = source.plan(store, inventory=inventory, run=given, go_on_with=go_on_with)
    if options.dry_run:
        print(plan.to_json())
        return 0
    if inventory is None:
        raise ClusterError(
            "No Ray cluster is running here. Start one with `tandem up` or `ray start --head`, or submit "
            "this command to one with `ray job submit`."
        )
    environments.check_pair(("core", "train"))
    python = environments.interpreter("train")
    for note in plan.notes:
        print(f"note: {note}", flush=True)
    source.register(store)
    # Only a spec that can run gets a folder.
    run = given or store.new_run(source.spec.name, source.spec.to_json(), run_id=options.run_id)
    return hand_over(
        plan.model_copy(update={"run_id": run.run_id, "run_uri": run.uri, "may_wait": not options.no_wait}),
        run,
        python,
    )


def _source(options: argparse.Namespace, store: Store, given: RunFolder | None) -> Source:
    """The spec from a file, an address, a LLaMA-Factory file, or the run that goes on."""
    if given is None or options.spec is not None or options.llamafactory is not None:
        workers = options.num_workers if given is None else None
        return read_source(options.spec, options.llamafactory, store=store, num_workers=workers)
    return source_of(given)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def living_nodes() -> Inventory | None:
    """The nodes of the cluster that this process runs on, and those to come; None where there is no cluster.

    Asks the dashboard: a driver of its own (``ray.init``) would take 2 s longer.

    Raises:
        ClusterError: ``$RAY_ADDRESS`` names a cluster that does not answer.
    """
    from ray.dashboard.utils import get_address_for_submission_client
    from ray.exceptions import RpcError
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        nodes = list_nodes(
            address=os.environ.get("RAY_ADDRESS"),
            filters=[("state", "=", "ALIVE")],
            limit=10_000,
            detail=True,
            # Ray takes nodes that died and are filtered out here for an answer that was cut.
            raise_on_missing_output=False,
        )
    except (ConnectionError, RayStateApiException):
        return None
    except RpcError:
        raise ClusterError(
            f"RAY_ADDRESS is {os.environ.get('RAY_ADDRESS')}, but no cluster answers there. Unset or correct "
            "it."
        ) from None
    living = Inventory.of(node_of(node.node_id, node.resources_total or {}) for node in nodes)
    url = get_address_for_submission_client(os.environ.get("RAY_ADDRESS"))
    return at_its_largest(as_read(living, newest(url)))


def hand_over(plan: TrainPlan, run: RunFolder, python: Path) -> NoReturn:
    """Write ``plan.json`` and become the driver: the same process, with the train environment's Python."""
    run.begin_again()
    run.write_plan(plan.to_json())
    run.update_record(submission_id=submission_id(), address=os.environ.get("RAY_ADDRESS"))
    print(f"run {run.run_id}: {run.uri}", flush=True)
    command = [str(python), "-m", "train_jobs.engine.driver", run.uri]
    os.execve(python, command, os.environ | environments.process_env("train") | _DRIVER_ENV)


def submission_id() -> str | None:
    """The id under which Ray's job API knows this process, or None outside of it."""
    # Ray gives the entrypoint its own record this way; the runtime context would need ray.init first.
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return config.get("metadata", {}).get("job_submission_id")


if __name__ == "__main__":
    sys.exit(main())
