"""Triton's trace and logging extensions: which requests leave a trace, which log lines are written.

A change holds for every pod of the pool, until its process ends; a pod that joins later has the defaults. Whoever asks
is told the settings of the pod that was asked. Files cannot be named: where traces and logs go is the operator's.

What holds for all tenants (log settings, and the trace settings of all models) is changed by callers on the pod's own
machine alone, unless the operator lets others (`--remote-server-settings`): one client could else take everybody's log
away, or fill a disk. A tenant's own models are its own to trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh.asking import Asking, NoAnswer
from mesh.endpoint.access import Access, is_on_this_machine
from mesh.log_levels import LogSwitch
from mesh.overview import Overview
from mesh.tracing import BadTraceSetting, Tracing, now_ns
from mesh.transport.base import Call, QuickHandler, QuickReply, Reply, StatusCode, TransportError, UnaryHandler
from mesh.wire import messages
from mesh.wire.errors import InvalidMessage
from mesh.wire.generated import inference_pb2
from mesh.wire.peek import peek

TRACE_EXTENSION, LOGGING_EXTENSION = "trace", "logging"
_LOG_FLAGS = {"log_info": "info", "log_warning": "warning", "log_error": "error"}
_LOG_LEVEL = "log_verbose_level"
_LOG_FIXED = {"log_file": "", "log_format": "default"}


class ServerSettingsEndpoint:
    """Handlers of `TraceSetting` and `LogSettings`, and what stands before `ModelInfer` while requests are traced."""

    def __init__(
        self,
        tracing: Tracing,
        switch: LogSwitch,
        overview: Overview,
        asking: Asking,
        access: Access,
        *,
        knows: Callable[[str, str], bool],
        remote: bool,
    ) -> None:
        """`knows`: whether a tenant has a model or alias of this name. `remote`: callers on other machines may change
        what holds for all tenants."""
        self._knows = knows
        self._remote = remote
        self._tracing = tracing
        self._switch = switch
        self._overview = overview
        self._asking = asking
        self._access = access

    def routes(self) -> dict[str, UnaryHandler]:
        """Handlers by method."""
        return {
            messages.TRACE_SETTING.path: self.trace_setting,
            messages.LOG_SETTINGS.path: self.log_settings,
        }

    async def trace_setting(self, call: Call) -> Reply:
        """Change what is named; answer with all."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.TRACE_SETTING, call.body)
        model = request.model_name
        if model and not self._knows(tenant, model) and not self._access.is_peer(call):
            raise TransportError(
                StatusCode.NOT_FOUND,
                f"model {model[:200]!r} is not registered (tenant {tenant!r}); register it before its traces are set",
            )
        if request.settings:
            if not model:
                self._check_may_change(call, "trace settings of all models")
            changed = {key: list(value.value) for key, value in request.settings.items()}
            try:
                self._tracing.change(tenant, request.model_name, changed)
            except BadTraceSetting as error:
                raise InvalidMessage(str(error)) from error
            await self._tell_others(call, messages.TRACE_SETTING, request, tenant)
        response = inference_pb2.TraceSettingResponse()
        for key, values in self._tracing.settings(tenant, request.model_name).items():
            response.settings[key].value.extend(values)
        return response.SerializeToString()

    async def log_settings(self, call: Call) -> Reply:
        """Change what is named; answer with all."""
        tenant = self._access.caller(call).tenant
        request = messages.parse(messages.LOG_SETTINGS, call.body)
        changed: dict[str, bool | int] = {}
        for key, value in request.settings.items():
            kind = value.WhichOneof("parameter_choice")
            if key in _LOG_FLAGS and kind == "bool_param":
                changed[_LOG_FLAGS[key]] = value.bool_param
            elif key == _LOG_LEVEL and kind == "uint32_param":
                changed["verbose"] = value.uint32_param
            elif key in _LOG_FIXED and kind == "string_param" and value.string_param == _LOG_FIXED[key]:
                continue
            elif kind is not None:
                raise InvalidMessage(
                    f"log setting {key[:80]!r} cannot be set to that; {', '.join(_LOG_FLAGS)} (true or false) and "
                    f"{_LOG_LEVEL} (a number) can be changed"
                )
        if changed:
            self._check_may_change(call, "log settings")
            self._switch.change(**changed)
            await self._tell_others(call, messages.LOG_SETTINGS, request, tenant)
        levels, response = self._switch.levels, inference_pb2.LogSettingsResponse()
        for key, field in _LOG_FLAGS.items():
            response.settings[key].bool_param = getattr(levels, field)
        response.settings[_LOG_LEVEL].uint32_param = levels.verbose
        for key, text in _LOG_FIXED.items():
            response.settings[key].string_param = text
        return response.SerializeToString()

    def _check_may_change(self, call: Call, what: str) -> None:
        """Raises TransportError for callers who may not change what holds for all tenants."""
        if not (self._remote or is_on_this_machine(call.peer) or self._access.is_peer(call)):
            raise TransportError(
                StatusCode.PERMISSION_DENIED,
                f"{what} hold for every tenant, and are changed from the pod's own machine; ask there, or start the "
                "pod with --remote-server-settings",
            )

    async def _tell_others(
        self,
        call: Call,
        method: messages.Method[messages.Request, messages.Response],
        request: messages.Request,
        tenant: str,
    ) -> None:
        """Raises TransportError when a pod did not hear of it."""
        if self._access.is_peer(call):
            return
        others = [pod for pod in self._overview.view.pods if pod != self._overview.own_pod]
        answers = await self._asking.ask_each(dict.fromkeys(others, request), method, tenant)
        silent = sorted(f"{pod}: {answer.why}" for pod, answer in answers.items() if isinstance(answer, NoAnswer))
        if silent:
            raise TransportError(
                StatusCode.UNAVAILABLE, f"set here, but not on every pod; say it again ({'; '.join(silent)})", 1.0
            )

    # Requests -----------------------------------------------------------------------------------------------

    def traced(self, handler: UnaryHandler) -> UnaryHandler:
        """The handler of ModelInfer, which leaves traces. A look, while nothing is traced."""

        async def infer(call: Call) -> Reply:
            if not self._tracing.on or self._access.is_peer(call):
                return await handler(call)
            envelope = peek(call.body)
            if not self._tracing.takes(self._access.caller(call).tenant, envelope.model_name):
                return await handler(call)
            began_ns = now_ns()
            try:
                return await handler(call)
            finally:
                self._tracing.write(envelope.model_name, envelope.request_id, began_ns, now_ns())

        return infer

    def unless_traced(self, quick: QuickHandler) -> QuickHandler:
        """The quick handler, which leaves all calls to the other one while any may be traced."""

        def answer(calls: Sequence[Call]) -> Sequence[QuickReply]:
            return [None] * len(calls) if self._tracing.on else quick(calls)

        return answer
