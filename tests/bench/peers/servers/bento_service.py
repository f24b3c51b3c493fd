"""BentoML: one worker, a mounted ASGI application, as its own endpoints read no raw tensors; access log off."""

import bentoml
from predictors import load_all, read_name, read_rows
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

_models = {}


async def _predict(request):
    body = await request.body()
    model = _models[read_name(body)]
    return Response(model(read_rows(body, model.shape)).tobytes())


@bentoml.service(workers=1, traffic={"timeout": 600}, logging={"access": {"enabled": False}})
@bentoml.asgi_app(Starlette(routes=[Route("/predict", _predict, methods=["POST"])]), path="/bench")
class Bench:
    """Every model of the list."""

    def __init__(self):
        _models.update(load_all())
