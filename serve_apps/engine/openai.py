"""One vLLM engine with vLLM's own OpenAI-compatible FastAPI application, to be run inside a replica."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from fastapi import FastAPI, HTTPException
from starlette.exceptions import HTTPException as StarletteHTTPException
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from runtime.core.errors import ServeError
from runtime.core.log import get_logger
from serve_apps.engine.client import CountingLLM
from serve_apps.engine.command_line import command_line
from serve_apps.engine.last_words import last_error
from serve_apps.engine.nodes import keep_on_other_nodes
from serve_apps.engine.stats import EngineStats
from serve_apps.engine.watchdog import kill_children, watch_over_children
from storage.cached_folder import CachedFolder
from storage.store import open_store

_log = get_logger(__name__)


class Engine:
    """A running engine and its application. Get one from :meth:`start`."""

    def __init__(
        self,
        client: CountingLLM,
        app: FastAPI,
        model: CachedFolder,
        keepers: list[Any],
        stats: EngineStats,
        *,
        stuck_after_s: float,
    ) -> None:
        self.app = app
        self._client = client
        self._stats = stats
        self._stuck_after_s = stuck_after_s
        # In use, so that the node caches keep it: vLLM reads some of its files again later.
        self._model, self._keepers = model, keepers

    @classmethod
    async def start(cls, plan: Mapping[str, Any]) -> Engine:
        """Start vLLM as the plan says and wait until it can answer.

        Args:
            plan: A :class:`serve_apps.plan.ServePlan` as plain data.

        Raises:
            ServeError: vLLM did not start; carries the last error line that it wrote.
            StorageError: the model could not be brought to this node, or to another of its workers.
        """
        socket_dir = watch_over_children()
        # Where set on the cluster it would win over the share of memory that the plan says.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)
        spec = plan["spec"]
        model = open_store(spec["store"]).model(spec["model"]).fetch()
        keepers = keep_on_other_nodes(plan, model.path)
        if not keepers:
            # vLLM takes TMPDIR otherwise, and leaves its sockets there when it is killed. Where workers are
            # on several nodes it hands the variable to all, and the others have no such folder.
            os.environ.setdefault("VLLM_RPC_BASE_PATH", str(socket_dir))
        try:
            args = _parse(plan, model.path)
            stats = EngineStats()
            client = _start_client(args, stats)
        except Exception as error:
            # vLLM itself only says "see root cause above": the cause is what its processes wrote.
            _log.exception("vLLM could not start")
            said = last_error(error)
            # "from None": Serve shows the whole chain in the app's status; the log above has it.
            raise ServeError(f"vLLM could not start with {spec['model']}: {said}") from None
        try:
            app = await _build_app(client, args)
            return cls(client, app, model, keepers, stats, stuck_after_s=spec["health_check_timeout_s"])
        except Exception as error:
            client.shutdown()
            _log.exception("vLLM's application could not start")
            raise ServeError(f"vLLM's application could not start: {last_error(error)}") from None

    @property
    def models(self) -> OpenAIServingModels:
        """vLLM's registry of the names it answers to, adapters among them."""
        return self.app.state.openai_serving_models

    def stats(self) -> dict[str, float]:
        """What it does now: see :meth:`EngineStats.now`."""
        return self._stats.now(in_flight=self._client.output_processor.get_num_unfinished_requests())

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and answer together."""
        return self._client.model_config.max_model_len

    @property
    def takes_adapters(self) -> bool:
        """Whether it was started with room for adapters."""
        return self._client.vllm_config.lora_config is not None

    async def check_health(self) -> None:
        """Ask vLLM itself, and its engine's process too: one that is alive may still be stuck.

        Raises:
            EngineDeadError: the engine's process is gone or failed.
            ServeError: it did not answer in time; it has been killed.
        """
        await self._client.check_health()
        try:
            # A call that the engine answers between two steps, whatever it is busy with.
            await asyncio.wait_for(self._client.is_sleeping(), self._stuck_after_s)
        except TimeoutError:
            kill_children()
            raise ServeError(f"the engine did not answer within {self._stuck_after_s:g} s") from None

    def stop(self) -> None:
        """End the engine's processes."""
        self._client.shutdown()
        self._model.close()


class _Refused(Exception):
    """vLLM's own parser refused an argument."""


class _Parser(FlexibleArgumentParser):
    """vLLM's parser, raising where the command line would exit."""

    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


def _parse(plan: Mapping[str, Any], model_path: Path) -> argparse.Namespace:
    """vLLM's arguments, read by vLLM's own command-line parser."""
    parser = make_arg_parser(_Parser())
    arguments = {
        **plan["engine"],
        "model": str(model_path),
        "served_model_name": plan["served_model_name"],
    }
    args = parser.parse_args(command_line(parser, arguments))
    validate_parsed_serve_args(args)
    if args.tool_parser_plugin:
        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if args.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)
    return args


def _start_client(args: argparse.Namespace, stats: EngineStats) -> CountingLLM:
    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    return CountingLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[stats.logger],
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )


async def _build_app(client: CountingLLM, args: argparse.Namespace) -> FastAPI:
    tasks = await client.get_supported_tasks()
    app = build_app(args, tasks, client.model_config)
    await init_app_state(client, app.state, args, tasks)
    # FastAPI's own refusals too (a route that this model has not) in OpenAI's shape: vLLM's handler knows
    # only FastAPI's subclass of them.
    app.add_exception_handler(StarletteHTTPException, app.exception_handlers[HTTPException])
    # vLLM's error handler tells its own web server to exit when the engine dies. Here Serve is the server,
    # and learns it from check_health.
    app.state.server = SimpleNamespace(should_exit=False)
    return app
