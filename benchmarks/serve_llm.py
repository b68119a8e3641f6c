"""Deploys bare ray.serve.llm for benchmarks/serve.py, in the serve environment: serve_llm.py JOB.json."""

import json
import sys
from pathlib import Path

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app


def main() -> None:
    """Deploy on the running cluster and leave."""
    job = json.loads(Path(sys.argv[1]).read_text())
    ray.init(address=job["address"], log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": job["port"]})
    config = LLMConfig(
        model_loading_config={"model_id": job["name"], "model_source": job["model"]},
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 0.5}]},
        engine_kwargs=job["engine"],
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 256},
        runtime_env={"env_vars": job["env"]},
    )
    serve.run(build_openai_app({"llm_configs": [config]}), name="llm", route_prefix="/")


if __name__ == "__main__":
    main()
