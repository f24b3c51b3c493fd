"""What every adapter must do, as checks that anybody can run on theirs.

An `AdapterCase` says how to make one real artifact of a format and what the framework itself predicts on it. The
checks below take a case and try the promises of `runtime_adapters.base`: right numbers, clear errors, nothing left
behind. The suite in `tests/contract/test_adapters.py` runs all of them on every case; the author of an adapter of
their own runs `check_all(adapter, case, directory)`.

Adding a format to the suite: a file `tests/contract/adapter_cases/<format>.py` with `CASES: list[AdapterCase]`.
`build` is called once per case, in an empty directory; import the framework inside it, not above.

Broken promises raise `ContractBroken`, an AssertionError with a sentence. The checks use no test framework.

Deliberately absent: speed (the benches measure it), and bit flips that leave a valid file (each adapter fuzzes its own
parser in a subprocess, because a native parser that crashes would take the suite with it).
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runtime_adapters.base import (
    CPU,
    DYNAMIC,
    Array,
    Device,
    LoadedModel,
    LoadOptions,
    LoadsAsFetched,
    Parkable,
    Promotable,
    Replaceable,
    RuntimeAdapter,
    Tensors,
    Trust,
)
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import AdapterError, BadArtifact, BadInput, MissingRuntime, UntrustedArtifact
from runtime_adapters.malloc import trim
from runtime_adapters.memory import resident_bytes
from runtime_adapters.registry import detect_format
from runtime_adapters.validation import InputChecker

_CONCURRENT_THREADS = 8
_CONCURRENT_RUNS = 64
_CHANGES_OF_FORM = 4
_TIMES_PARKED = 2
_TRUNCATIONS = (0.1, 0.5, 0.9, 0.999)
"""Shares of the file that are kept. Nearly whole matters most: that is what an interrupted upload looks like."""


class ContractBroken(AssertionError):
    """An adapter does not do what `runtime_adapters.base` promises."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One request and what the framework itself answers: every output, optional ones included."""

    inputs: Tensors
    expected: Tensors


@dataclass(frozen=True, slots=True)
class Example:
    """A real artifact on disk, with predictions of the framework that made it.

    The first prediction must hold at least three rows if the model has a batch dimension.
    `refused`: inputs of the right datatype and shape whose values the framework refuses.
    """

    artifact: Path
    predictions: tuple[Prediction, ...]
    refused: tuple[Tensors, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterCase:
    """One model to try an adapter with."""

    name: str
    format: str
    build: Callable[[Path], Example]
    """Makes the artifact in the given empty directory. Import the framework inside."""
    trusted: bool = False
    """Load as from a trusted prefix."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    """Top-level modules of the framework: made un-importable in turn to see the install command in the error."""
    main_file: str | None = None
    """The file to damage, when the artifact is a directory."""
    truncation_breaks: bool = True
    """A file cut short is never a valid artifact. False for source text, whose prefix may be a valid program."""
    untrusted_is_refused: bool | None = None
    """None: exactly when the adapter's trust is RUNS_CODE. False when the adapter always isolates and jails."""
    tolerance: float = 0.0
    """Largest relative difference to the framework's own prediction. Not 0: say why in the case."""
    row_tolerance: float = 1e-5
    """Largest relative difference of a row run alone: matrix kernels differ by batch size."""
    prepared_tolerance: float = 1e-6
    """Largest relative difference of the prepared form, which may run other kernels."""
    cuda: bool = False
    """Also run on a CUDA device where there is one."""
    cuda_tolerance: float = 1e-3
    load_cycles: int = 200
    growth_max_bytes: int = 8 << 20
    """Resident bytes that `load_cycles` loads and unloads may add, after a tenth as many to warm up."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a check looks at. `scratch` is an empty directory of its own."""

    adapter: RuntimeAdapter
    case: AdapterCase
    example: Example
    scratch: Path
    device: Device = CPU

    def options(self, *, trusted: bool | None = None, parameters: Mapping[str, str] | None = None) -> LoadOptions:
        return LoadOptions(
            model_id=self.case.name,
            device=self.device,
            trusted=self.case.trusted if trusted is None else trusted,
            parameters=self.case.parameters if parameters is None else parameters,
        )

    @contextlib.contextmanager
    def loaded(self, artifact: Path | None = None) -> Iterator[LoadedModel]:
        model = self.adapter.load(artifact or self.example.artifact, self.options())
        try:
            yield model
        finally:
            model.unload()

    @property
    def tolerance(self) -> float:
        return self.case.tolerance if self.device.kind == "cpu" else self.case.cuda_tolerance


Check = Callable[[Subject], None]


# --- what it says about a model ---------------------------------------------------------------------------------------


def metadata_is_valid_v2(subject: Subject) -> None:
    with subject.loaded() as model:
        metadata = model.metadata
        _expect(bool(metadata.platform), "the platform is empty")
        _expect(bool(metadata.outputs), "there is no output")
        for tensor in (*metadata.inputs, *metadata.outputs):
            _expect(bool(tensor.name), f"a tensor has no name: {tensor}")
            _expect(tensor.datatype in DTYPE_OF, f"{tensor.name}: {tensor.datatype!r} is no V2 datatype")
            _expect(all(d == DYNAMIC or d >= 0 for d in tensor.shape), f"{tensor.name}: bad shape {tensor.shape}")
        for side in (metadata.inputs, metadata.outputs):
            names = [tensor.name for tensor in side]
            _expect(len(names) == len(set(names)), f"a name occurs twice in {names}")
        required = [tensor for tensor in metadata.inputs if not tensor.optional]
        if metadata.any_input_name:
            _expect(len(required) == 1, "any_input_name needs exactly one required input")
        if metadata.batch_dimension:
            for tensor in (*metadata.inputs, *metadata.outputs):
                _expect(tensor.shape[:1] == (DYNAMIC,), f"batch_dimension, but {tensor.name} has shape {tensor.shape}")


def sizes_are_positive(subject: Subject) -> None:
    estimate = subject.adapter.estimate(subject.example.artifact, subject.options())
    _expect(estimate.total_bytes > 0, f"the estimate is {estimate}")
    with subject.loaded() as model:
        model.warm_up()
        _expect(model.size().total_bytes > 0, f"the measured size is {model.size()}")


# --- what it predicts -------------------------------------------------------------------------------------------------


def predictions_equal_the_framework_s_own(subject: Subject) -> None:
    with subject.loaded() as model:
        model.warm_up()
        for prediction in subject.example.predictions:
            _expect_equal(
                _infer(model, prediction.inputs, tuple(prediction.expected)), prediction.expected, subject.tolerance
            )


def outputs_match_the_metadata(subject: Subject) -> None:
    with subject.loaded() as model:
        prediction = subject.example.predictions[0]
        answer = _infer(model, prediction.inputs, tuple(prediction.expected))
        specs = {tensor.name: tensor for tensor in model.metadata.outputs}
        for name, array in answer.items():
            spec = specs[name]
            _expect(array.dtype == DTYPE_OF[spec.datatype], f"{name} is {spec.datatype}, but came as {array.dtype}")
            _expect(_fits(array.shape, spec.shape), f"{name} is {spec.shape}, but came as {array.shape}")
            if spec.datatype == "BYTES":
                _expect(all(type(item) is bytes for item in array.flat), f"{name}: an element is not bytes")


def only_the_asked_outputs_are_answered(subject: Subject) -> None:
    with subject.loaded() as model:
        prediction = subject.example.predictions[0]
        default = {tensor.name for tensor in model.metadata.outputs if not tensor.optional}
        answered = set(_infer(model, prediction.inputs, ()))
        _expect(answered == default, f"asked for no output in particular: {answered}, not {default}")
        for name in prediction.expected:
            answer = _infer(model, prediction.inputs, (name,))
            _expect(set(answer) == {name}, f"asked for {name}: {set(answer)}")
            _expect_equal(answer, {name: prediction.expected[name]}, subject.tolerance)


def rows_do_not_influence_one_another(subject: Subject) -> None:
    with subject.loaded() as model:
        if not model.metadata.batch_dimension:
            return
        prediction = subject.example.predictions[0]
        rows = len(next(iter(prediction.inputs.values())))
        _expect(rows >= 3, "the case's first prediction needs at least three rows")
        tolerance = max(subject.tolerance, subject.case.row_tolerance)
        for row in range(min(rows, 8)):
            alone = {name: array[row : row + 1] for name, array in prediction.inputs.items()}
            expected = {name: array[row : row + 1] for name, array in prediction.expected.items()}
            _expect_equal(_infer(model, alone, tuple(expected)), expected, tolerance)


def concurrent_runs_agree(subject: Subject) -> None:
    with subject.loaded() as model, ThreadPoolExecutor(_CONCURRENT_THREADS) as pool:
        prediction = subject.example.predictions[0]
        inputs, wanted = _checked(model, prediction.inputs), tuple(prediction.expected)
        runs = [pool.submit(model.infer, inputs, wanted) for _ in range(_CONCURRENT_RUNS)]
        for run in runs:
            _expect_equal(run.result(timeout=60), prediction.expected, subject.tolerance)


def refused_values_are_bad_input(subject: Subject) -> None:
    with subject.loaded() as model:
        for inputs in subject.example.refused:
            with _raises(BadInput, "values that the framework refuses"):
                model.infer(_checked(model, inputs))
        prediction = subject.example.predictions[0]
        answer = _infer(model, prediction.inputs, tuple(prediction.expected))
        _expect_equal(answer, prediction.expected, subject.tolerance)


def prepared_form_predicts_the_same(subject: Subject) -> None:
    into = subject.scratch / "prepared"
    into.mkdir()
    if not subject.adapter.prepare(subject.example.artifact, into, subject.options()):
        _expect(not any(into.iterdir()), "prepare said there is nothing better, yet left files")
        return
    _expect(any(into.iterdir()), "prepare said it wrote a form, yet left no file")
    _expect(subject.adapter.estimate(into, subject.options()).total_bytes > 0, "the prepared form has no size")
    with subject.loaded(into) as model, subject.loaded() as plain:
        model.warm_up()
        _expect(model.metadata == plain.metadata, f"prepared: {model.metadata}, plain: {plain.metadata}")
        for prediction in subject.example.predictions:
            answer = _infer(model, prediction.inputs, tuple(prediction.expected))
            _expect_equal(answer, prediction.expected, max(subject.tolerance, subject.case.prepared_tolerance))


def both_forms_predict_the_same_while_one_takes_the_other_s_place(subject: Subject) -> None:
    into = subject.scratch / "two forms"
    into.mkdir()
    prepared = subject.adapter.prepare(subject.example.artifact, into, subject.options())
    with subject.loaded(into if prepared else None) as model:
        if not isinstance(model, Promotable) or model.hot_size() is None:
            return
        with _asked_all_the_while(subject, model):
            for _ in range(_CHANGES_OF_FORM):
                model.promote()
                model.promote()
                _expect(model.is_hot and model.size() == model.hot_size(), "a promoted model is not hot")
                model.demote()
                model.demote()
                _expect(not model.is_hot, "a demoted model is hot")


def the_prepared_form_takes_the_place_of_what_was_fetched(subject: Subject) -> None:
    adapter, options = subject.adapter, subject.options()
    if not isinstance(adapter, LoadsAsFetched):
        return
    size = adapter.size_as_fetched(subject.example.artifact, options)
    if size is None:
        return
    _expect(size.total_bytes > 0, "as fetched it has no size")
    into = subject.scratch / "prepared"
    into.mkdir()
    prepared = into if adapter.prepare(subject.example.artifact, into, options) else subject.example.artifact
    model = adapter.load(subject.example.artifact, replace(options, as_fetched=True))
    with _asked_all_the_while(subject, model):
        _expect(isinstance(model, Replaceable), "a model that is loaded as fetched cannot be replaced")
        assert isinstance(model, Replaceable)
        form = adapter.load(prepared, options)
        wanted = form.size()
        model.go_on_as(form)
        _expect(model.size() == wanted, "after it has become its prepared form it has another size")
    model.unload()


@contextlib.contextmanager
def _asked_all_the_while(subject: Subject, model: LoadedModel) -> Iterator[None]:
    """Threads run the first prediction until the block ends; each answer is right, and each thread has got one."""
    prediction = subject.example.predictions[0]
    tolerance = max(subject.tolerance, subject.case.prepared_tolerance)
    stop = threading.Event()

    def run_until_stopped() -> int:
        runs = 0
        while not stop.is_set():
            answer = _infer(model, prediction.inputs, tuple(prediction.expected))
            _expect_equal(answer, prediction.expected, tolerance)
            runs += 1
        return runs

    with ThreadPoolExecutor(_CONCURRENT_THREADS) as threads:
        running = [threads.submit(run_until_stopped) for _ in range(_CONCURRENT_THREADS)]
        try:
            yield
        finally:
            stop.set()
        _expect(all(future.result() > 0 for future in running), "no run ended while the forms changed")


def a_parked_model_answers_nobody_and_comes_back_the_same(subject: Subject) -> None:
    prediction = subject.example.predictions[0]
    wanted = tuple(prediction.expected)
    with _parkable(subject) as model:
        if model is None:
            return
        before = _infer(model, prediction.inputs, wanted)
        for _ in range(_TIMES_PARKED):
            assert isinstance(model, Parkable)
            said = model.parked_size()
            parked = model.park()
            _expect(parked.size() == said, f"parked it takes {parked.size()}; {said} was said before")
            _expect(parked.size().total_bytes > 0, "parked it takes nothing")
            _expect(parked.size().device_bytes == 0, f"parked it still takes its device: {parked.size()}")
            with _raises(AdapterError, "a run of a parked model"):
                model.infer(_checked(model, prediction.inputs), wanted)
            model = parked.unpark(subject.device)
            _expect_equal(_infer(model, prediction.inputs, wanted), before, subject.tolerance)
        model.unload()


def parking_and_unloading_returns_the_memory(subject: Subject) -> None:
    def cycle() -> bool:
        with _parkable(subject) as model:
            if not isinstance(model, Parkable):
                return False
            parked = model.park().unpark(subject.device)
            assert isinstance(parked, Parkable)
            left = parked.park()
            left.unload()
            left.unload()
            return True

    if cycle():
        _expect_no_growth(subject, cycle, max(8, subject.case.load_cycles // 4), "parked models")


@contextlib.contextmanager
def _parkable(subject: Subject) -> Iterator[LoadedModel | None]:
    """A model as it would be loaded in a pod; None where it cannot be parked."""
    into = subject.scratch / "to park"
    prepared = into.is_dir() and any(into.iterdir())
    if not into.exists():
        into.mkdir()
        prepared = subject.adapter.prepare(subject.example.artifact, into, subject.options())
    with subject.loaded(into if prepared else None) as model:
        yield model if isinstance(model, Parkable) and model.parked_size() is not None else None


# --- what it refuses --------------------------------------------------------------------------------------------------


def detection_finds_exactly_this_format(subject: Subject) -> None:
    found = detect_format(subject.example.artifact, include_fake=True)
    _expect(found == subject.case.format, f"detected as {found}")


def broken_artifacts_are_bad_artifacts(subject: Subject) -> None:
    for what, artifact in _broken_artifacts(subject):
        for call in (subject.adapter.estimate, subject.adapter.load):
            if call == subject.adapter.estimate and what not in ("missing", "empty"):
                continue  # an estimate may look at the file's size alone
            with _raises(BadArtifact, f"{call.__name__} of an artifact that is {what}"):
                call(artifact, subject.options())
        into = subject.scratch / f"prepared from {what}"
        into.mkdir()
        with contextlib.suppress(BadArtifact):  # either refuse now, or do nothing and refuse in load
            _expect(
                not subject.adapter.prepare(artifact, into, subject.options()), f"prepared an artifact that is {what}"
            )


def untrusted_artifacts_are_refused_where_loading_runs_code(subject: Subject) -> None:
    refused = subject.case.untrusted_is_refused
    if refused is None:
        refused = subject.adapter.trust is Trust.RUNS_CODE
    if not refused:
        return
    with _raises(UntrustedArtifact, "loading untrusted code"):
        subject.adapter.load(subject.example.artifact, subject.options(trusted=False))
    into = subject.scratch / "prepared"
    into.mkdir()
    with contextlib.suppress(UntrustedArtifact):
        prepared = subject.adapter.prepare(subject.example.artifact, into, subject.options(trusted=False))
        _expect(not prepared, "prepared an untrusted artifact")


def unknown_parameters_are_refused(subject: Subject) -> None:
    parameters = {**subject.case.parameters, "no_such_parameter": "1"}
    with _raises(BadArtifact, "an unknown parameter") as raised:
        subject.adapter.load(subject.example.artifact, subject.options(parameters=parameters))
    _expect("no_such_parameter" in str(raised[0]), f"the error does not name the parameter: {raised[0]}")


def missing_package_names_the_install_command(subject: Subject) -> None:
    for module in subject.case.modules:
        with _module_missing(module):
            with _raises(MissingRuntime, f"loading without {module}") as raised:
                subject.adapter.load(subject.example.artifact, subject.options())
            command = f"pip install 'hexcomb[{subject.adapter.extra}]'"
            _expect(command in str(raised[0]), f"the error does not say {command}: {raised[0]}")
            with _raises(MissingRuntime, f"the runtime version without {module}"):
                subject.adapter.runtime_version()


# --- what it leaves behind --------------------------------------------------------------------------------------------


def unload_is_idempotent(subject: Subject) -> None:
    model = subject.adapter.load(subject.example.artifact, subject.options())
    model.unload()
    model.unload()


def loading_and_unloading_returns_the_memory(subject: Subject) -> None:
    prediction = subject.example.predictions[0]

    def cycle() -> None:
        with subject.loaded() as model:
            _infer(model, prediction.inputs, tuple(prediction.expected))

    _expect_no_growth(subject, cycle, subject.case.load_cycles, "loads and unloads")


def _expect_no_growth(subject: Subject, cycle: Callable[[], object], cycles: int, what: str) -> None:
    def settled_bytes() -> int:
        gc.collect()
        trim()
        return resident_bytes()

    for _ in range(max(1, cycles // 10)):
        cycle()
    before_bytes = settled_bytes()
    for _ in range(cycles):
        cycle()
    grown_bytes = settled_bytes() - before_bytes
    _expect(
        grown_bytes <= subject.case.growth_max_bytes,
        f"{cycles} {what} left {grown_bytes:,} bytes; allowed are {subject.case.growth_max_bytes:,}",
    )


CHECKS: tuple[Check, ...] = (
    metadata_is_valid_v2,
    sizes_are_positive,
    predictions_equal_the_framework_s_own,
    outputs_match_the_metadata,
    only_the_asked_outputs_are_answered,
    rows_do_not_influence_one_another,
    concurrent_runs_agree,
    refused_values_are_bad_input,
    prepared_form_predicts_the_same,
    both_forms_predict_the_same_while_one_takes_the_other_s_place,
    the_prepared_form_takes_the_place_of_what_was_fetched,
    a_parked_model_answers_nobody_and_comes_back_the_same,
    detection_finds_exactly_this_format,
    broken_artifacts_are_bad_artifacts,
    untrusted_artifacts_are_refused_where_loading_runs_code,
    unknown_parameters_are_refused,
    missing_package_names_the_install_command,
    unload_is_idempotent,
    loading_and_unloading_returns_the_memory,
    parking_and_unloading_returns_the_memory,
)

CUDA_CHECKS: tuple[Check, ...] = (
    metadata_is_valid_v2,
    sizes_are_positive,
    predictions_equal_the_framework_s_own,
    only_the_asked_outputs_are_answered,
    concurrent_runs_agree,
    prepared_form_predicts_the_same,
    a_parked_model_answers_nobody_and_comes_back_the_same,
    unload_is_idempotent,
)
"""Those that a device can change the answer of."""


def check_all(adapter: RuntimeAdapter, case: AdapterCase, directory: Path) -> None:
    """Build the case and run every check, each in a directory of its own. Raises ContractBroken at the first."""
    made_in = directory / "artifact"
    made_in.mkdir()
    example = case.build(made_in)
    for check in CHECKS:
        scratch = directory / check.__name__
        scratch.mkdir()
        check(Subject(adapter, case, example, scratch))


# --- tools of the checks ----------------------------------------------------------------------------------------------


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ContractBroken(otherwise)


@contextlib.contextmanager
def _raises(wanted: type[Exception], by: str) -> Iterator[list[Exception]]:
    """The block must raise `wanted`; the list holds the exception afterwards."""
    raised: list[Exception] = []
    try:
        yield raised
    except wanted as error:
        raised.append(error)
        _expect(bool(str(error).strip()), f"{by} gave a {wanted.__name__} without a message")
    except Exception as error:
        raise ContractBroken(f"{by} raised {type(error).__name__}, not {wanted.__name__}: {error}") from error
    else:
        raise ContractBroken(f"{by} raised nothing; {wanted.__name__} is due")


def _checked(model: LoadedModel, inputs: Tensors) -> dict[str, Array]:
    return InputChecker(model.metadata).check_arrays(inputs)


def _infer(model: LoadedModel, inputs: Tensors, outputs: tuple[str, ...]) -> dict[str, Array]:
    return model.infer(_checked(model, inputs), outputs)


def _expect_equal(answer: Tensors, expected: Tensors, tolerance: float) -> None:
    _expect(set(answer) == set(expected), f"outputs {sorted(answer)}, not {sorted(expected)}")
    for name, wanted in expected.items():
        got = answer[name]
        _expect(got.shape == wanted.shape, f"{name}: shape {got.shape}, the framework has {wanted.shape}")
        if got.dtype == object or tolerance == 0:
            floating = got.dtype.kind == "f"
            same = np.array_equal(got, wanted, equal_nan=floating)
            _expect(same, f"{name}: not equal to the framework's own prediction")
            continue
        left, right = got.astype(np.float64), wanted.astype(np.float64)
        close = np.allclose(left, right, rtol=tolerance, atol=tolerance * 1e-2, equal_nan=True)
        _expect(close, f"{name}: off by {np.nanmax(np.abs(left - right)) if left.size else 0}")


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    return len(shape) == len(declared) and all(d in (DYNAMIC, n) for n, d in zip(shape, declared, strict=True))


def _broken_artifacts(subject: Subject) -> Iterator[tuple[str, Path]]:
    """(what is wrong with it, where it lies)."""
    yield "missing", subject.scratch / "nothing here"
    whole = _main_file(subject, subject.example.artifact).read_bytes()
    noise = np.random.default_rng(7).bytes(len(whole) or 1)
    contents = {
        "empty": b"",
        "random bytes": noise,
        "another format": b"\x89PNG\r\n\x1a\n" + noise[:64],
        "plain text": b"This is a README, not a model.\n" * 8,
    }
    if subject.case.truncation_breaks:
        for kept in _TRUNCATIONS:
            contents[f"cut to {kept:.1%}"] = whole[: min(int(len(whole) * kept), len(whole) - 1)]
    for what, content in contents.items():
        place = subject.scratch / what
        original = subject.example.artifact
        if original.is_dir():
            shutil.copytree(original, place)
            artifact = place
        else:
            place.mkdir()
            artifact = place / original.name
            shutil.copyfile(original, artifact)
        _main_file(subject, artifact).write_bytes(content)
        yield what, artifact


def _main_file(subject: Subject, artifact: Path) -> Path:
    if artifact.is_dir():
        _expect(subject.case.main_file is not None, "a directory artifact needs the case's main_file")
        return artifact / str(subject.case.main_file)
    return artifact


@contextlib.contextmanager
def _module_missing(name: str) -> Iterator[None]:
    """`import name` fails in this block, as if the package were not installed."""
    hidden = {key: module for key, module in sys.modules.items() if key == name or key.startswith(name + ".")}
    for key in hidden:
        del sys.modules[key]
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(hidden)
