"""The REST API's description, served at `/openapi.json`.

Written by hand beside the handlers, since they translate and have no models to make it from; a test holds every path
here against the paths that are served, and real answers against the schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runtime_adapters.datatypes import DTYPE_OF

Schema = Mapping[str, Any]


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1. `version`: of this server."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hexcomb",
            "version": version,
            "summary": "The Open Inference Protocol (V2) and the V1 protocol, for every model of the pool",
        },
        "paths": {
            "/v2": {"get": _operation("serverMetadata", "The server's name and version", "ServerMetadata")},
            "/v2/health/live": {"get": _operation("serverLive", "Whether the process answers", "Live")},
            "/v2/health/ready": {"get": _operation("serverReady", "Whether the pod takes requests", "Ready", {503})},
            "/v2/models": {"get": _operation("models", "Names of the registered models", "Names")},
            "/v2/models/stats": {
                "get": _operation("statistics", "What all pods have done, by model", "Statistics"),
            },
            **_of_model("/v2/models/{model}", ""),
            **_of_model("/v2/models/{model}/versions/{version}", "Version"),
            "/v2/logging": _settings("logging", "LogSettings", "Which log lines are written"),
            "/v2/trace/setting": _settings("trace", "TraceSettings", "Which requests leave a trace"),
            "/v2/models/{model}/trace/setting": {
                "parameters": [_path("model")],
                **_settings(
                    "traceOfModel", "TraceSettings", "Which requests for the model leave a trace", frozenset({404})
                ),
            },
            **_shared_memory("system"),
            **_shared_memory("cuda"),
            "/v2/repository/index": {
                "post": _operation("repositoryIndex", "Which models are there", "Index", body="IndexRequest")
            },
            **{
                f"/v2/repository/models/{{model}}/{verb}": {
                    "parameters": [_path("model")],
                    "post": _operation(name, summary, answer, {404, 413, 429, 503, 504}),
                }
                for verb, name, summary, answer in (
                    ("load", "repositoryLoad", "Wait until the model is in memory", "Loaded"),
                    ("unload", "repositoryUnload", "Have every copy leave memory, until a request comes", "Unloaded"),
                )
            },
            "/": {"get": _operation("alive", "Whether the process answers", "Alive")},
            "/v1/models": {"get": _operation("v1Models", "Names of the registered models", "Names")},
            "/v1/models/{model}": {
                "parameters": [_path("model")],
                "get": _operation("v1Model", "Whether a request for the model has a chance", "ModelReady", {404, 503}),
            },
            "/v1/models/{model}:predict": {
                "parameters": [_path("model")],
                "post": _operation("v1Predict", "Run the model", "Prediction", _INFER_ERRORS, "PredictRequest"),
            },
            "/v1/models/{model}:explain": {
                "parameters": [_path("model")],
                "post": _operation(
                    "v1Explain",
                    "Why the model predicts what it does",
                    "Explanation",
                    _INFER_ERRORS | {501},
                    "PredictRequest",
                ),
            },
        },
        "components": {"schemas": _SCHEMAS},
    }


_OPTIONAL_BODIES = frozenset({"IndexRequest", "LogSettingsChange", "TraceSettingsChange"})
"""Without one, everything is listed, and nothing changed."""
_INFER_ERRORS = frozenset({400, 404, 413, 429, 500, 503, 504})


def _of_model(path: str, suffix: str) -> dict[str, Any]:
    parameters = [_path("model"), *([_path("version")] if suffix else [])]
    infer = _operation(f"modelInfer{suffix}", "Run the model", "InferResponse", _INFER_ERRORS, "InferRequest")
    explain = _operation(
        f"modelExplain{suffix}",
        "Why the model predicts what it does",
        "InferResponse",
        _INFER_ERRORS | {501},
        "InferRequest",
    )
    for operation in (infer, explain):
        for content in (operation["requestBody"]["content"], operation["responses"]["200"]["content"]):
            # JSON, then the binary tensors; Inference-Header-Content-Length says where they begin.
            content["application/octet-stream"] = {}
    generate = _operation(
        f"modelGenerate{suffix}", "Run a model that speaks text", "Generated", _INFER_ERRORS, "GenerateRequest"
    )
    stream = _operation(
        f"modelGenerateStream{suffix}",
        "Run a model, each answer as an event when it is there",
        None,
        _INFER_ERRORS,
        "GenerateRequest",
    )
    stream["responses"]["200"] = {
        "description": "One event for each answer; its data are as generate's answer, or an Error, which is the last",
        "content": {"text/event-stream": {"schema": _TEXT}},
    }
    return {
        path: {
            "parameters": parameters,
            "get": _operation(f"modelMetadata{suffix}", "Inputs and outputs", "ModelMetadata", {404, 429, 503, 504}),
        },
        f"{path}/ready": {
            "parameters": parameters,
            "get": _operation(
                f"modelReady{suffix}", "Whether a request for the model has a chance", "ModelReady", {404, 503}
            ),
        },
        f"{path}/infer": {"parameters": parameters, "post": infer},
        f"{path}/explain": {"parameters": parameters, "post": explain},
        f"{path}/generate": {"parameters": parameters, "post": generate},
        f"{path}/generate_stream": {"parameters": parameters, "post": stream},
        f"{path}/config": {
            "parameters": parameters,
            "get": _operation(
                f"modelConfig{suffix}", "As Triton would configure the model", "ModelConfig", {404, 429, 503, 504}
            ),
        },
        f"{path}/stats": {
            "parameters": parameters,
            "get": _operation(f"modelStatistics{suffix}", "What all pods have done for it", "Statistics", {404}),
        },
    }


def _settings(name: str, schema: str, summary: str, errors: frozenset[int] = frozenset()) -> dict[str, Any]:
    return {
        "get": _operation(f"{name}Settings", summary, schema, errors),
        "post": _operation(
            f"{name}Change", f"{summary}: change it, on every pod", schema, errors | {403, 413, 503}, f"{schema}Change"
        ),
    }


def _shared_memory(kind: str) -> dict[str, Any]:
    path, region, name = f"/v2/{kind}sharedmemory", f"/v2/{kind}sharedmemory/region/{{region}}", f"{kind}SharedMemory"
    parameters = [_path("region")]
    register = _operation(f"{name}Register", "Share memory of this machine", "Done", {403, 409, 413, 501}, "Region")
    return {
        f"{path}/status": {"get": _operation(f"{name}Status", "Regions of shared memory", "Regions")},
        f"{path}/unregister": {"post": _operation(f"{name}UnregisterAll", "Let go of every region", "Done", {413})},
        f"{region}/status": {
            "parameters": parameters,
            "get": _operation(f"{name}StatusOfRegion", "One region of shared memory", "Regions", {404}),
        },
        f"{region}/register": {"parameters": parameters, "post": register},
        f"{region}/unregister": {
            "parameters": parameters,
            "post": _operation(f"{name}Unregister", "Let go of a region", "Done", {413}),
        },
    }


def _operation(
    name: str, summary: str, answer: str | None, errors: frozenset[int] | set[int] = frozenset(), body: str = ""
) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if answer is not None:
        responses["200"] = {"description": "As asked", "content": _json(answer)}
    for code in sorted(errors | {400}):
        responses[str(code)] = {"description": _ERRORS[code], "content": _json("Error")}
    if name == "serverReady":
        responses["503"] = {"description": "The pod starts, or drains", "content": _json("Ready")}
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = {"required": body not in _OPTIONAL_BODIES, "content": _json(body)}
    return operation


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


_ERRORS = {
    400: "The request is not right",
    403: "Not for this caller",
    404: "No such model, or not this version of it",
    409: "It is there already",
    413: "The body is too large",
    429: "Too much at once; Retry-After says when to try again",
    500: "The model or the server failed",
    501: "Not there",
    503: "The model or the pod is not ready; try again if Retry-After says when",
    504: "The wait for the model was too long",
}


def _object(required: Schema, optional: Schema | None = None) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _or_null(schema: Schema) -> dict[str, Any]:
    """Of a setting in a request: null leaves it as it is."""
    return {**schema, "type": [schema["type"], "null"]}


_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": True}
_TENSOR_HEAD: Schema = {
    "name": _TEXT,
    "datatype": {"type": "string", "enum": list(DTYPE_OF)},
    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
}
_TENSOR = _object(_TENSOR_HEAD, {"parameters": _PARAMETERS, "data": {"type": "array"}})
_TENSOR_METADATA = _object({**_TENSOR_HEAD, "shape": {"type": "array", "items": {"type": "integer", "minimum": -1}}})

_COUNT: Schema = {"type": "integer", "minimum": 0}
_DURATION = _object({"count": _COUNT, "ns": _COUNT})
_COMPUTE = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
_CONFIG_TENSOR = _object(
    {
        "name": _TEXT,
        "data_type": {"type": "string", "pattern": "^TYPE_"},
        "dims": {"type": "array", "items": {"type": "integer", "minimum": -1}},
    },
    {"optional": {"type": "boolean"}},
)

_LOG_SETTINGS: Schema = {
    **{key: {"type": "boolean"} for key in ("log_info", "log_warning", "log_error")},
    "log_verbose_level": _COUNT,
    **dict.fromkeys(("log_file", "log_format"), _TEXT),
}
_TRACE_TEXTS = ("trace_rate", "trace_count", "log_frequency", "trace_mode", "trace_file")

_SCHEMAS: Schema = {
    "ModelConfig": _object(
        {
            "name": _TEXT,
            "platform": _TEXT,
            "backend": _TEXT,
            "max_batch_size": _COUNT,
            "input": {"type": "array", "items": _CONFIG_TENSOR},
            "output": {"type": "array", "items": _CONFIG_TENSOR},
        },
        {"parameters": {"type": "object", "additionalProperties": _object({"string_value": _TEXT})}},
    ),
    "Statistics": _object(
        {
            "model_stats": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "last_inference": _COUNT,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": _object(
                            {**dict.fromkeys(("success", "fail", "queue"), _DURATION), **_COMPUTE}
                        ),
                        "batch_stats": {"type": "array", "items": _object({"batch_size": _COUNT, **_COMPUTE})},
                        "memory_usage": {
                            "type": "array",
                            "items": _object({"type": _TEXT, "id": _COUNT, "byte_size": _COUNT}),
                        },
                    }
                ),
            }
        }
    ),
    "Error": _object({"error": _TEXT}),
    "ServerMetadata": _object({"name": _TEXT, "version": _TEXT, "extensions": _TEXTS}),
    "Alive": _object({"status": {"type": "string", "enum": ["alive"]}}),
    "Live": _object({"live": {"type": "boolean"}}),
    "Ready": _object({"ready": {"type": "boolean"}}),
    "Names": _object({"models": _TEXTS}),
    "ModelReady": _object({"name": _TEXT, "ready": {"type": "boolean"}}),
    "IndexRequest": _object({}, {"ready": {"type": "boolean"}}),
    "Index": {
        "type": "array",
        "items": _object(
            {
                "name": _TEXT,
                "version": _TEXT,
                "state": {"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                "reason": _TEXT,
            }
        ),
    },
    "LogSettings": _object({}, _LOG_SETTINGS),
    "LogSettingsChange": _object({}, {key: _or_null(schema) for key, schema in _LOG_SETTINGS.items()}),
    "TraceSettings": _object({}, {"trace_level": _TEXTS, **dict.fromkeys(_TRACE_TEXTS, _TEXT)}),
    # A number stands for its digits, an array of one value for the value.
    "TraceSettingsChange": _object(
        {},
        {key: {"type": ["string", "integer", "boolean", "array", "null"]} for key in ("trace_level", *_TRACE_TEXTS)},
    ),
    "Done": {"type": "object"},
    "Region": _object({"byte_size": _COUNT}, {"key": _TEXT, "offset": _COUNT, "device_id": _COUNT}),
    "Regions": {
        "type": "array",
        "items": _object({"name": _TEXT, "byte_size": _COUNT}, {"key": _TEXT, "offset": _COUNT, "device_id": _COUNT}),
    },
    "Loaded": _object({"name": _TEXT, "load": {"type": "boolean"}}),
    "Unloaded": _object({"name": _TEXT, "unload": {"type": "boolean"}}),
    "ModelMetadata": _object(
        {
            "name": _TEXT,
            "versions": _TEXTS,
            "platform": _TEXT,
            "inputs": {"type": "array", "items": _TENSOR_METADATA},
            "outputs": {"type": "array", "items": _TENSOR_METADATA},
        }
    ),
    "InferRequest": _object(
        {"inputs": {"type": "array", "items": _TENSOR}},
        {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": _object({"name": _TEXT}, {"parameters": _PARAMETERS})},
        },
    ),
    "InferResponse": _object(
        {"model_name": _TEXT, "model_version": _TEXT, "outputs": {"type": "array", "items": _TENSOR}},
        {"id": _TEXT, "parameters": _PARAMETERS},
    ),
    # Beside these, inputs of the model and parameters of the request, by name.
    "GenerateRequest": {**_object({}, {"id": _TEXT, "parameters": _PARAMETERS}), "additionalProperties": True},
    "Generated": {
        **_object({"model_name": _TEXT, "model_version": _TEXT}, {"id": _TEXT}),
        "additionalProperties": True,
    },
    "PredictRequest": {
        "oneOf": [_object({"instances": {"type": "array", "minItems": 1}}), _object({"inputs": {}})],
    },
    "Explanation": {"oneOf": [_object({"explanations": {"type": "array"}}), _object({"outputs": {}})]},
    "Prediction": {
        "anyOf": [
            _object({"predictions": {"type": "array"}}),
            _object({"outputs": {}}),
            {"type": "object", "description": "A pipeline's: its last step's answer, or an Ensemble's by step."},
        ]
    },
}
