"""LitServe: one inference worker, plain HTTP, raw FP32 in and out; its fast (ZeroMQ) queue."""

import sys
from typing import Annotated

import litserve
from fastapi import Body, Response
from predictors import load_all, read_name, read_rows


class BenchApi(litserve.LitAPI):
    """All models of the list behind one path, as LitServe starts processes for each further path."""

    def setup(self, device):
        """In the worker."""
        self._models = load_all()

    def decode_request(self, request: Annotated[bytes, Body()]):
        """Which model, and its rows."""
        model = self._models[read_name(request)]
        return model, read_rows(request, model.shape)

    def predict(self, x):
        """One run."""
        model, rows = x
        return model(rows)

    def encode_response(self, output):
        """The numbers as they lie."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(BenchApi(), accelerator="cpu", workers_per_device=1, fast_queue=True, timeout=False)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, generate_client_file=False
    )
