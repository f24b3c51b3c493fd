"""Ray Serve: one replica that multiplexes its models (`BENCH_MODELS_MAX` of them at a time), plain HTTP, raw FP32."""

import asyncio
import os
import sys

import ray
from predictors import load_model, read_rows
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

_MODELS_MAX = int(os.environ["BENCH_MODELS_MAX"])


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class Bench:
    """The model is named by the header serve_multiplexed_model_id."""

    @serve.multiplexed(max_num_models_per_replica=_MODELS_MAX)
    async def model(self, name: str):
        """Load one; Ray drops the least recently used."""
        return load_model(name)

    async def __call__(self, request: Request):
        """One run."""
        model = await self.model(serve.get_multiplexed_model_id())
        return Response(model(read_rows(await request.body(), model.shape)).tobytes())


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, logging_level="error", object_store_memory=100_000_000)
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False}
    )
    serve.run(Bench.options(logging_config={"enable_access_log": False}).bind())
    asyncio.run(asyncio.Event().wait())
