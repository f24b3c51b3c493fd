"""Custom Python models: what counts as one, and what holds them to their declaration."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime_adapters.base import LoadedModel, LoadOptions, Streaming
from runtime_adapters.errors import BadArtifact, LoadFailed, ModelRaised, UntrustedArtifact
from runtime_adapters.isolation import IsolatedModel
from runtime_adapters.python_models import ADAPTER
from runtime_adapters.registry import detect_format

_IMPORTS = "import numpy as np\nfrom runtime_adapters.custom import Model, TensorSpec\n"
_MODEL = """
class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1,)))
    def predict(self, inputs):
        {0}
"""
_X = {"x": np.ones((3, 2), dtype=np.float32)}

LoadHere = Callable[..., LoadedModel]


@pytest.fixture
def load_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadHere:
    """Load source text as the child would, in this process: what is tested is not the isolation."""
    monkeypatch.setattr("sys.path", list(__import__("sys").path))

    def load(source: str, trusted: bool = True, **parameters: str) -> LoadedModel:
        (tmp_path / "model.py").write_text(_IMPORTS + source)
        return ADAPTER.load_in_this_process(tmp_path, LoadOptions("m", trusted=trusted, parameters=parameters))

    return load


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("return {'y': inputs['x']}", "without the output t"),
        ("return {'y': inputs['x'], 't': np.array([b'a']), 'z': 1}", "predict returned z; its outputs are y, t"),
        ("return {'y': inputs['x'].astype('f8'), 't': np.array([b'a'])}", "y as FP64; it declared FP32"),
        ("return {'y': inputs['x'][0], 't': np.array([b'a'])}", r"y with shape \[2\]; it declared \[-1, 2\]"),
        ("return {'y': inputs['x'][:, :1], 't': np.array([b'a'])}", r"shape \[3, 1\]; it declared \[-1, 2\]"),
        ("return {'y': inputs['x'].tolist(), 't': np.array([b'a'])}", "a list for y; return a NumPy array"),
        ("return {'y': inputs['x'], 't': np.array([1, None])}", "t|NoneType"),
        ("return {'y': inputs['x'].astype(complex), 't': np.array([b'a'])}", "y as complex"),
        ("return inputs['x']", "one array; return a dict with y, t"),
        ("return None", "a NoneType; return a dict of arrays"),
        ("raise KeyError('gone')", "predict raised KeyError: 'gone'"),
        ("raise SystemExit(4)", "predict raised SystemExit: 4"),
        ("raise RuntimeError('first line\\n  second')", "RuntimeError: first line second"),
        ("return inputs['nope']", "KeyError"),
    ],
)
def test_what_predict_returns_must_be_what_was_declared(load_here: LoadHere, returned: str, told: str) -> None:
    with pytest.raises(ModelRaised, match=told):
        load_here(_MODEL.format(returned)).infer(_X)


def test_bytes_may_be_bytes_str_or_fixed_width(load_here: LoadHere) -> None:
    for text in ("np.array(['a', 'b'])", "np.array([b'a', b'b'])", "np.array(['a', b'b'], dtype=object)"):
        model = load_here(_MODEL.format(f"return {{'y': inputs['x'], 't': {text}}}"))
        assert model.infer(_X)["t"].tolist() == [b"a", b"b"]


def test_the_arrays_belong_to_the_model(load_here: LoadHere) -> None:
    model = load_here(_MODEL.format("inputs['x'] += 1; return {'y': inputs['x'], 't': np.array([b''])}"))
    x = _X["x"].copy()
    x.flags.writeable = False
    assert model.infer({"x": x})["y"].max() == 2
    assert x.max() == 1


def test_a_spec_may_set_the_parameters_that_the_model_declares(load_here: LoadHere) -> None:
    source = _MODEL.format("raise ValueError(self.parameters)") + '    parameters = {"a": "1", "b": "2"}\n'
    with pytest.raises(ModelRaised, match=r"\{'a': '1', 'b': '7'\}"):
        load_here(source, b="7", load_timeout_s="5").infer(_X)
    with pytest.raises(BadArtifact, match="c"):
        load_here(source, c="7")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("x = 1", "exactly one subclass of Model, of runtime_adapters.custom or runtime_adapters.kserve; found none"),
        (_MODEL.format("pass") + _MODEL.replace("class M", "class N").format("pass"), "found M, N"),
        ("class M(Model):\n    outputs = (TensorSpec('y', 'FP31', ()),)", "datatype 'FP31'; allowed are BOOL"),
        ("class M(Model):\n    outputs = (TensorSpec('y', 'FP32', ()),) * 2", "names that differ"),
        ("class M(Model):\n    outputs = 'y'", "must be a tuple of TensorSpec"),
        ("class M(Model):\n    pass", "outputs is empty"),
        ("class M(Model:", "not valid Python: SyntaxError"),
        ("import no_such_module", "cannot be imported: ModuleNotFoundError"),
        ("raise SystemExit(1)", "cannot be imported: SystemExit"),
    ],
)
def test_a_model_file_that_is_none_is_a_bad_artifact(load_here: LoadHere, source: str, told: str) -> None:
    with pytest.raises(BadArtifact, match=told):
        load_here(source)


def test_what_load_raises_may_pass(load_here: LoadHere) -> None:
    source = _MODEL.format("pass") + "    def load(self): raise ConnectionError('no route')\n"
    with pytest.raises(LoadFailed, match="load raised ConnectionError: no route"):
        load_here(source)


def test_one_class_may_derive_from_another(load_here: LoadHere) -> None:
    load_here(_MODEL.format("pass") + "class Better(M):\n    def predict(self, inputs): pass\n")


def test_helpers_and_pickled_classes_beside_the_model_are_found(load_here: LoadHere, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("from dataclasses import dataclass\n@dataclass\nclass P:\n    v: int\n")
    answer = "return {'y': inputs['x'] * P(2).v, 't': np.array([b''])}"
    assert load_here("from beside import P\n" + _MODEL.format(answer)).infer(_X)["y"].max() == 2


def test_code_is_never_run_in_the_pod(load_here: LoadHere, tmp_path: Path) -> None:
    with pytest.raises(UntrustedArtifact, match="runs code"):
        load_here("raise RuntimeError('it ran')" + _MODEL.format("pass"), trusted=False)
    marker = tmp_path / "it-ran"
    (tmp_path / "model.py").write_text(f"open({str(marker)!r}, 'w')\n" + _IMPORTS + _MODEL.format("pass"))
    assert ADAPTER.detect(tmp_path)
    assert ADAPTER.estimate(tmp_path, LoadOptions("m")).total_bytes > 0
    assert not marker.exists()


@pytest.mark.parametrize(
    ("imports", "base", "is_one"),
    [
        ("from runtime_adapters.custom import Model", "Model", True),
        ("from runtime_adapters.custom import Model as Base", "Base", True),
        ("from runtime_adapters import custom", "custom.Model", True),
        ("import runtime_adapters.custom", "runtime_adapters.custom.Model", True),
        ("from torch.nn import Module as Model", "Model", False),
        ("", "object", False),
    ],
)
def test_a_model_is_recognised_by_its_base(tmp_path: Path, imports: str, base: str, is_one: bool) -> None:
    (tmp_path / "model.py").write_text(f"{imports}\nclass M({base}):\n    pass\n")
    assert ADAPTER.detect(tmp_path) is is_one


def test_the_estimate_counts_the_files_beside_the_source(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(_IMPORTS + _MODEL.format("pass"))
    without = ADAPTER.estimate(tmp_path, LoadOptions("m")).total_bytes
    (tmp_path / "weights.bin").write_bytes(bytes(5 << 20))
    assert ADAPTER.estimate(tmp_path, LoadOptions("m")).total_bytes == without + (5 << 20)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The example in the documentation of the base class, as it stands there."""
    import runtime_adapters.custom

    text = str(runtime_adapters.custom.__doc__)
    lines = text[text.index("    import numpy") : text.index("\n\nIt runs in a process")].splitlines()
    (tmp_path / "model.py").write_text("\n".join(line[4:] for line in lines))
    return tmp_path


def test_the_documented_example_runs_jailed(example: Path) -> None:
    assert detect_format(example) == "python"
    model = ADAPTER.load(example, LoadOptions("m", parameters={"limit": "0.25", "load_timeout_s": "30"}))
    try:
        assert isinstance(model, IsolatedModel)
        assert model.jail is not None
        assert model.jail.confined
        scores = np.array([0.1, 0.3], dtype=np.float32)
        assert model.infer({"scores": scores})["labels"].tolist() == [b"no", b"yes"]
    finally:
        model.unload()


@pytest.mark.parametrize("wrong", ["0", "-1", "soon", "nan", "inf"])
def test_limits_must_be_numbers_above_zero(example: Path, wrong: str) -> None:
    with pytest.raises(BadArtifact, match=f"load_timeout_s is '{wrong}'"):
        ADAPTER.load(example, LoadOptions("m", parameters={"load_timeout_s": wrong}))


STAGES = """
class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    async def load(self):
        self.outputs = (TensorSpec("z", "FP32", (-1, 2)),)

    def preprocess(self, inputs):
        return inputs["x"] + 1

    async def predict(self, rows):
        return [rows]

    async def postprocess(self, answer):
        {0}
"""


def test_each_stage_gets_what_the_one_before_it_gave_and_load_may_declare(load_here: LoadHere) -> None:
    model = load_here(STAGES.format("return answer[0] * 10"))
    assert [spec.name for spec in model.metadata.outputs] == ["z"]
    assert model.infer(_X)["z"].max() == 20
    model.unload()


def test_the_stage_that_is_wrong_is_named(load_here: LoadHere) -> None:
    with pytest.raises(ModelRaised, match="postprocess returned a list"):
        load_here(STAGES.format("return answer")).infer(_X)
    with pytest.raises(ModelRaised, match="postprocess raised ValueError: no"):
        load_here(STAGES.format("raise ValueError('no')")).infer(_X)


CANCELS = """
import asyncio

async def cancelled():
    task = asyncio.ensure_future(asyncio.sleep(100))
    asyncio.get_running_loop().call_soon(task.cancel)
    await task

class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "INT32", (1,)),)

    async def {0}(self, inputs=None):
        await cancelled()
        {1}
"""


@pytest.mark.parametrize("yields", ["", "yield inputs"])
def test_what_a_model_cancels_is_an_error_of_the_model_and_not_the_end_of_its_process(
    load_here: LoadHere, yields: str
) -> None:
    with pytest.raises(ModelRaised, match="predict raised CancelledError"):
        load_here(CANCELS.format("predict", yields)).infer(_X)
    with pytest.raises(LoadFailed, match="load raised CancelledError"):
        load_here(CANCELS.format("load", ""))


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_generator_of_either_kind_gives_many_answers_and_ends_where_it_is_left(
    load_here: LoadHere, kind: str
) -> None:
    source = f"""
class M(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "INT32", (1,)),)
    ended = 0

    {kind} predict(self, inputs):
        try:
            for nth in range(3):
                yield np.array([nth], np.int32)
            raise ValueError("that was all")
        finally:
            M.ended += 1

    def postprocess(self, answer):
        return answer + np.int32(10 * M.ended)
"""
    model = load_here(source)
    assert isinstance(model, Streaming)
    assert model.metadata.decoupled
    answers = model.infer_stream(_X)
    assert next(answers)["y"].item() == 0
    answers.close()
    with pytest.raises(ModelRaised, match="predict raised ValueError: that was all"):
        list(model.infer_stream(_X))
    assert model.infer(_X)["y"].item() == 20
