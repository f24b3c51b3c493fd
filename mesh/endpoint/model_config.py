"""Triton's model configuration extension: a model as Triton would configure it.

Made of what is known of the model: what its copy declares, its spec, and this pod's rules about running requests
together. Triton's `dims` leave out the batch dimension where `max_batch_size` is above 0, so a model whose rows may
share a run says `max_batch_size: 64, dims: [4]` for what its metadata call `[-1, 4]`. Every other model has
`max_batch_size: 0` and the metadata's shapes, as have those whose inputs would be left without any dimension. Requests
are refused by none of this: a single one may have more rows.
"""

from __future__ import annotations

from math import inf

from mesh.batching.rules import rules_for
from mesh.batching.settings import BatchSettings
from mesh.endpoint.access import Access
from mesh.endpoint.v2 import V2Endpoint, asked_name
from mesh.generations import key_of
from mesh.loading.loading import Loading
from mesh.overview import Overview
from mesh.serving import Serving
from mesh.transport.base import Call, Reply, UnaryHandler
from mesh.wire import messages
from mesh.wire.generated import inference_pb2
from placement.policy.snapshot import ModelName
from placement.records import ModelRecord
from runtime_adapters.base import ModelMetadata, TensorSpec

EXTENSION = "model_configuration"
_MICROSECONDS = 1e6
_CONTROL_TYPES = {"CORRID": "TYPE_STRING"}


class ModelConfigEndpoint:
    """The handler of `ModelConfig`."""

    def __init__(
        self,
        v2: V2Endpoint,
        serving: Serving,
        loading: Loading,
        overview: Overview,
        batching: BatchSettings,
        access: Access,
    ) -> None:
        self._v2 = v2
        self._serving = serving
        self._loading = loading
        self._overview = overview
        self._batching = batching
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {messages.MODEL_CONFIG.path: self.model_config}

    async def model_config(self, call: Call) -> Reply:
        """Loads the model the first time, as its metadata do: only a load tells them."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.MODEL_CONFIG, call.body)
        name = asked_name(call, request.name)
        record, hop = await self._v2.resolve(call, tenant, name, request.version)

        def told(current: ModelRecord, metadata: ModelMetadata) -> Reply:
            config = self._config(request.name if name == request.name else current.id, current, metadata)
            return inference_pb2.ModelConfigResponse(config=config).SerializeToString()

        async def answer(current: ModelRecord, space_wait_s: float = inf) -> Reply:
            return told(current, await self._serving.metadata(current, call.deadline_s, space_wait_s))

        if not record.spec.has_copies:
            return told(record, await self._v2.metadata_of_pipeline(call, tenant, record))
        if self._serving.knows_metadata(record):
            return await answer(record)
        return await self._v2.routed(call, tenant, hop, record, answer)

    def _config(self, name: str, record: ModelRecord, metadata: ModelMetadata) -> inference_pb2.ModelConfig:
        rules = rules_for(self._batching, record.spec, metadata)
        is_row_of_scalars = any(len(tensor.shape) < 2 for tensor in metadata.inputs)
        rows_max = 0 if rules.why_not or is_row_of_scalars else rules.rows_max
        config = inference_pb2.ModelConfig(
            name=name,
            platform=metadata.platform,
            backend=record.spec.format or self._loading.format_of(key_of(record)),
            max_batch_size=rows_max,
        )
        config.version_policy.latest.num_versions = 1
        for tensor in metadata.inputs:
            config.input.add(
                name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor, rows_max), optional=tensor.optional
            )
        for tensor in metadata.outputs:
            config.output.add(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor, rows_max))
        if rows_max:
            config.dynamic_batching.max_queue_delay_microseconds = round(rules.delay_s * _MICROSECONDS)
        copies = self._overview.view.copies.get(ModelName(record.tenant, record.id), ())
        config.instance_group.add(
            name=record.id,
            count=max(1, sum(copy.servable > 0 for copy in copies)),
            kind=inference_pb2.ModelInstanceGroup.KIND_AUTO,
        )
        if metadata.sequences:
            for control in ("START", "END", "CORRID"):
                inputs = config.sequence_batching.control_input.add(name=control)
                inputs.control.add(
                    kind=f"CONTROL_SEQUENCE_{control}", data_type=_CONTROL_TYPES.get(control, "TYPE_BOOL")
                )
        config.model_transaction_policy.decoupled = metadata.decoupled
        for key, value in record.spec.parameters.items():
            config.parameters[key].string_value = value
        return config


def _data_type(tensor: TensorSpec) -> str:
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"


def _dims(tensor: TensorSpec, rows_max: int) -> tuple[int, ...]:
    return tensor.shape[1:] if rows_max else tensor.shape
