"""The child of `runtime_adapters.isolation`: jail itself, load one model, answer until told to stop.

`python -m runtime_adapters.isolation_worker CHANNEL_FD REQUESTS_FD RESPONSES_FD TENSOR_BYTES_MAX PARENT_PID`

The order matters. First the promise to die with the pod. Then the jail, while there is one thread and nothing of the
model has been read. Then NumPy and the framework. Then the memory limit, so that it counts what the model takes and
not what its framework needs. Then the model.

The pod's death ends it twice over: the kernel kills it, and the channel's end ends the loop.

Only the standard library is imported above; everything else would start threads before the jail stands.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime_adapters.isolation_channel import Channel, ChannelClosed
from runtime_adapters.jail import JailPlan, JailReport, enter_jail

if TYPE_CHECKING:
    from runtime_adapters.base import LoadedModel, LoadOptions, RuntimeAdapter
    from runtime_adapters.shared_tensors import TensorSegment

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    channel_fd, requests_fd, responses_fd, tensor_bytes_max, parent_pid = (int(argument) for argument in arguments)
    for fd in (channel_fd, requests_fd, responses_fd):
        os.set_inheritable(fd, False)
    _die_with(parent_pid)
    faulthandler.enable()
    channel = Channel(socket.socket(fileno=channel_fd))
    try:
        start = channel.receive()
        if start["packages"] is not None:
            sys.path.insert(0, start["packages"])
        report = _jail(start)
        if report is not None and start["require_jail"] and not report.confined:
            channel.send({"error": _refusal(report)})
            return
        channel.send({"jail": report.as_json() if report is not None else None})

        from runtime_adapters.shared_tensors import TensorSegment

        segments = TensorSegment(requests_fd, tensor_bytes_max), TensorSegment(responses_fd, tensor_bytes_max)
        model = _load(channel, start)
        if model is not None:
            _serve(channel, model, *segments)
    except ChannelClosed:
        pass  # the pod is gone, or has given this copy up


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the pod was gone before its child began")


def _jail(start: Mapping[str, Any]) -> JailReport | None:
    artifact = Path(start["artifact"])
    report = None
    if start["jailed"]:
        report = enter_jail(
            JailPlan(
                artifact=artifact,
                scratch=Path.cwd(),
                file_bytes_max=start["file_bytes_max"],
                cuda=start["options"]["device"][0] == "cuda",
            )
        )
    else:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if artifact.is_dir():
        os.chdir(artifact)
    return report


def _refusal(report: JailReport) -> dict[str, str]:
    return {
        "kind": "UntrustedArtifact",
        "message": (
            f"its format runs code, its prefix is not trusted, and in the jail {report.missing()}; mark the prefix as "
            "trusted, use a format that runs no code (ONNX), or run the pod on Linux 5.13 or later with Landlock"
        ),
    }


def _load(channel: Channel, start: Mapping[str, Any]) -> LoadedModel | None:
    """The model, or None after the error was told."""
    from runtime_adapters.errors import LoadFailed
    from runtime_adapters.isolation_messages import describe_error, describe_metadata, options_from
    from runtime_adapters.malloc import tune_allocator

    try:
        options = options_from({**start["options"], "trusted": start["options"]["trusted"] or start["jailed"]})
        tune_allocator()
        adapter = _adapter(start["format"])
        adapter.runtime_version()  # imports the framework
        channel.send({})
        if start["memory_limit_bytes"] is not None:
            _limit_memory(start["memory_limit_bytes"])
        model = _load_here(adapter, Path(start["artifact"]), options)
        loaded = {"metadata": describe_metadata(model.metadata), "device_bytes": model.size().device_bytes}
    except (ChannelClosed, KeyboardInterrupt):
        raise
    except BaseException as error:
        channel.send({"error": describe_error(error, LoadFailed)})
        return None
    channel.send(loaded)
    return model


def _adapter(format_name: str) -> RuntimeAdapter:
    from runtime_adapters.registry import adapter_for

    # The pod decided whether the fake may be served before it asked for a process.
    return adapter_for(format_name, include_fake=format_name == "fake")


def _load_here(adapter: RuntimeAdapter, artifact: Path, options: LoadOptions) -> LoadedModel:
    """The adapter of Python models would start a process for it; this is that process."""
    from runtime_adapters.python_models import PythonModels

    if isinstance(adapter, PythonModels):
        return adapter.load_in_this_process(artifact, options)
    return adapter.load(artifact, options)


def _limit_memory(beyond_now_bytes: int) -> None:
    """RLIMIT_DATA and not RLIMIT_AS: it counts writable private memory, not address space that CUDA only reserves."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            limit = int(line.split()[1]) * 1024 + beyond_now_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _serve(channel: Channel, model: LoadedModel, requests: TensorSegment, responses: TensorSegment) -> None:
    while True:
        message = channel.receive()
        if message["op"] == "unload":
            model.unload()
            return
        if message["op"] == "infer_stream":
            _answer_in_parts(channel, message, model, requests, responses)
            continue
        channel.send(_answer(message, model, requests, responses))


def _answer(
    message: Mapping[str, Any], model: LoadedModel, requests: TensorSegment, responses: TensorSegment
) -> dict[str, Any]:
    from runtime_adapters.errors import ModelRaised
    from runtime_adapters.isolation_messages import describe_error

    try:
        if message["op"] == "warm_up":
            model.warm_up()
            gc.collect()
            return {"device_bytes": model.size().device_bytes}
        answer = model.infer(requests.read(message["inputs"], copy=False), message["outputs"])
        return {"outputs": responses.write(answer)}
    except Exception as error:
        return {"error": describe_error(error, ModelRaised)}


def _answer_in_parts(
    channel: Channel,
    message: Mapping[str, Any],
    model: LoadedModel,
    requests: TensorSegment,
    responses: TensorSegment,
) -> None:
    """One answer at a time, each when the pod has taken the one before it and asks for the next."""
    from runtime_adapters.base import Streaming
    from runtime_adapters.errors import ModelRaised
    from runtime_adapters.isolation_messages import describe_error

    try:
        assert isinstance(model, Streaming)
        answers = model.infer_stream(requests.read(message["inputs"], copy=False), message["outputs"])
        for answer in answers:
            channel.send({"outputs": responses.write(answer)})
            if channel.receive()["op"] != "next":
                answers.close()
                break
        end: dict[str, Any] = {"ended": True}
    except ChannelClosed:
        raise
    except Exception as error:
        end = {"error": describe_error(error, ModelRaised)}
    channel.send(end)


if __name__ == "__main__":
    main(sys.argv[1:])
