"""PyTorch programs: what they say of themselves, what is refused, what they weigh."""

import gc
import json
import pickle
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_adapters.base import Device, LoadOptions, TensorSpec
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import BadArtifact, BadInput, LoadFailed, ModelRaised, UntrustedArtifact
from runtime_adapters.isolation import load_isolated
from runtime_adapters.malloc import trim
from runtime_adapters.memory import anonymous_bytes
from runtime_adapters.torch_effects import effects_of
from runtime_adapters.torch_programs import ADAPTER

torch = pytest.importorskip("torch")

_TRUSTED = LoadOptions("m", trusted=True)


def _options(**parameters: str) -> LoadOptions:
    return LoadOptions("m", trusted=True, parameters=parameters)


def _export(path: Path, module: Any, args: tuple[Any, ...], dynamic: Any = None, **kwargs: Any) -> Path:
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


class Twice(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


def _script(path: Path, module: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    return path


def test_every_datatype_that_torch_and_v2_share_goes_through(tmp_path: Path) -> None:
    class Same(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x.clone()

    for datatype in (name for name in DTYPE_OF if name != "BYTES"):
        array = np.arange(6).reshape(2, 3).astype(DTYPE_OF[datatype])
        dtype = torch.bfloat16 if datatype == "BF16" else torch.from_numpy(array).dtype
        path = _export(tmp_path / f"{datatype}.pt2", Same(), (torch.zeros(2, 3).to(dtype),))
        model = ADAPTER.load(path, _TRUSTED)
        assert model.metadata.inputs == (TensorSpec("x", datatype, (2, 3)),)
        assert model.metadata.outputs == (TensorSpec("output_0", datatype, (2, 3)),)
        answer = model.infer({"x": array})["output_0"]
        assert answer.dtype == array.dtype
        assert np.array_equal(answer, array)


def test_dynamic_sizes_show_as_minus_one_and_their_limits_are_the_clients(tmp_path: Path) -> None:
    batch = torch.export.Dim("batch", min=2, max=8)
    path = _export(tmp_path / "m.pt2", Twice(), (torch.zeros(3, 4),), ({0: batch},))
    model = ADAPTER.load(path, _TRUSTED)
    model.warm_up()
    assert model.metadata.inputs[0].shape == (-1, 4)
    assert model.infer({"x": np.ones((8, 4), dtype=np.float32)})["output_0"].shape == (8, 4)
    with pytest.raises(BadInput, match="refuses these inputs"):
        model.infer({"x": np.ones((9, 4), dtype=np.float32)})


def test_constants_among_the_inputs_are_kept(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any, factor: int, flag: bool, name: str, nothing: Any, *, y: Any) -> Any:
            return x * factor + y if flag else x

    args = (torch.ones(2), 3, True, "n", None)
    path = _export(tmp_path / "m.pt2", Scaled(), args, y=torch.ones(2))
    model = ADAPTER.load(path, _TRUSTED)
    assert [spec.name for spec in model.metadata.inputs] == ["x", "y"]
    inputs = {"x": np.array([1, 2], dtype=np.float32), "y": np.array([0, 1], dtype=np.float32)}
    assert model.infer(inputs)["output_0"].tolist() == [3, 7]


def test_programs_load_side_by_side(tmp_path: Path) -> None:
    path = _export(tmp_path / "model.pt2", Twice(), (torch.zeros(2),))
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: ADAPTER.load(path, _TRUSTED), range(24)))
    assert all(model.infer({"x": np.ones(2, np.float32)})["output_0"].tolist() == [2.0, 2.0] for model in models)


def test_outputs_can_be_named(tmp_path: Path) -> None:
    path = _export(tmp_path / "m.pt2", Twice(), (torch.zeros(3),))
    model = ADAPTER.load(path, _options(outputs='["twice"]'))
    assert list(model.infer({"x": np.ones(3, dtype=np.float32)})) == ["twice"]
    for wrong in ('["a", "b"]', "[1]", '[""]', "twice"):
        with pytest.raises(BadArtifact, match="outputs"):
            ADAPTER.load(path, _options(outputs=wrong))


def test_a_program_that_counts_runs_one_at_a_time_and_answers_with_copies(tmp_path: Path) -> None:
    class Counter(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Any) -> Any:
            self.seen.add_(x.sum())
            return self.seen

    model = ADAPTER.load(_export(tmp_path / "m.pt2", Counter(), (torch.ones(1),)), _TRUSTED)
    one = np.ones(1, dtype=np.float32)
    with ThreadPoolExecutor(4) as pool:
        answers = [run["output_0"].item() for run in pool.map(lambda _: model.infer({"x": one}), range(100))]
    assert sorted(answers) == list(range(1, 101))


def test_a_program_that_writes_to_its_inputs_does_not_write_to_ours(tmp_path: Path) -> None:
    class Clear(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.zero_()
            return x + 1

    x = np.full(3, 7, dtype=np.float32)
    for path in (
        _export(tmp_path / "m.pt2", Clear(), (torch.ones(3),)),
        _script(tmp_path / "m.pt", Clear()),
    ):
        parameters = {} if path.suffix == ".pt2" else _declared()
        model = ADAPTER.load(path, _options(**parameters))
        model.infer({"x": x})
        assert x.tolist() == [7, 7, 7]


def _effects(module: Any, *args: Any) -> tuple[bool, bool]:
    found = effects_of(torch, torch.export.export(module, args))
    return found.inputs, found.state


def test_what_a_program_writes_to_is_found_in_its_graph() -> None:
    class Views(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            x.t().reshape(-1)[0].add_(1)
            return x * 2

    class Pair(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            left, right = torch.split(x * 1, 1)
            return left.mul_(2) + right

    class Conditional(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))

    rows = torch.zeros(2, 2)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True), torch.nn.Dropout(inplace=True)
    )
    assert _effects(Views(), rows) == (True, False)
    assert _effects(Pair(), rows) == (False, False)
    assert _effects(Conditional(), rows) == (False, False)
    assert _effects(net.eval(), torch.zeros(1, 3, 8, 8)) == (False, False)
    assert _effects(net.train(), torch.zeros(2, 3, 8, 8))[1]
    assert _effects(torch.nn.ReLU(inplace=True), rows) == (True, False)


def _declared() -> dict[str, str]:
    return {
        "inputs": json.dumps([{"name": "x", "datatype": "FP32", "shape": [-1]}]),
        "outputs": json.dumps([{"name": "y", "datatype": "FP32", "shape": [-1]}]),
    }


def test_torchscript_takes_its_shapes_from_the_spec_or_from_a_file_beside_it(tmp_path: Path) -> None:
    path = _script(tmp_path / "model.pt", Twice())
    with pytest.raises(BadArtifact, match="give the spec the parameters inputs and outputs"):
        ADAPTER.load(path, _TRUSTED)
    (tmp_path / "config.json").write_text(json.dumps({name: json.loads(text) for name, text in _declared().items()}))
    for artifact, options in ((path, _TRUSTED), (tmp_path, _TRUSTED), (path, _options(**_declared()))):
        model = ADAPTER.load(artifact, options)
        assert model.metadata.platform == "pytorch_libtorch"
        assert model.infer({"x": np.ones(2, dtype=np.float32)})["y"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"inputs": "{}"}, "JSON list"),
        ({"inputs": "[]"}, "must differ and there must be one"),
        ({"inputs": '[{"name": "x", "datatype": "BYTES", "shape": [1]}]'}, "is no tensor"),
        ({"inputs": '[{"name": "x", "datatype": "FP32", "shape": ["n"]}]'}, "is no tensor"),
        ({"inputs": json.dumps([{"name": n, "datatype": "FP32", "shape": []} for n in "ab"])}, "takes 1 tensors"),
        ({"batch_dimension": "yes"}, "batch_dimension is 'yes'"),
        ({"batch_size": "4"}, "batch_size"),
    ],
)
def test_wrong_declarations_are_bad_artifacts(tmp_path: Path, parameters: dict[str, str], told: str) -> None:
    path = _script(tmp_path / "model.pt", Twice())
    with pytest.raises(BadArtifact, match=told):
        ADAPTER.load(path, _options(**{**_declared(), **parameters}))


def test_what_a_torchscript_model_raises_is_reported(tmp_path: Path) -> None:
    class Picky(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.size(0) > 2:
                raise ValueError("too long")
            return x

    model = ADAPTER.load(_script(tmp_path / "model.pt", Picky()), _options(**_declared()))
    with pytest.raises(ModelRaised, match="too long"):
        model.infer({"x": np.ones(3, dtype=np.float32)})
    assert model.infer({"x": np.ones(2, dtype=np.float32)})["y"].tolist() == [1, 1]


def test_weights_without_a_program_are_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(BadArtifact, match=r"torch\.save, which holds weights but no program; export it"):
        ADAPTER.load(tmp_path / "weights.pt", _TRUSTED)
    assert not ADAPTER.detect(tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme", "x")
    assert not ADAPTER.detect(tmp_path / "other.zip")


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def test_a_pickle_inside_an_untrusted_archive_is_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    good = _export(tmp_path / "good.pt2", Twice(), (torch.zeros(3),))
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("sample_inputs/model.pt"):
                content = pickle.dumps(_Evil(marker))
            target.writestr(entry.filename, content)
    assert ADAPTER.detect(evil)
    ADAPTER.estimate(evil, LoadOptions("m"))
    with pytest.raises(UntrustedArtifact, match="export the model to ONNX"):
        ADAPTER.load(evil, LoadOptions("m"))
    assert not marker.exists()


def test_an_untrusted_program_runs_in_the_jail(tmp_path: Path) -> None:
    path = _export(tmp_path / "m.pt2", Twice(), (torch.zeros(3),))
    model = load_isolated("torch", path, LoadOptions("m"), memory_limit_bytes=1 << 30, jailed=True)
    try:
        assert model.jail is not None
        assert model.jail.confined
        assert model.infer({"x": np.ones(3, dtype=np.float32)})["output_0"].tolist() == [2, 2, 2]
    finally:
        model.unload()


def test_sizes_count_tied_weights_once_and_are_gone_after_unload(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(20_000, 64)
            self.out = torch.nn.Linear(64, 20_000, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids: Any) -> Any:
            return self.out(self.words(ids))

    path = _export(tmp_path / "m.pt2", Tied(), (torch.zeros(2, dtype=torch.int64),))
    weights = 20_000 * 64 * 4
    model = ADAPTER.load(path, _TRUSTED)
    assert weights < model.size().host_bytes < 1.1 * weights
    assert weights < ADAPTER.estimate(path, _TRUSTED).host_bytes < 1.1 * weights
    on_cuda = ADAPTER.estimate(path, LoadOptions("m", Device("cuda")))
    assert on_cuda.device_bytes >= weights
    model.unload()
    assert model.size().total_bytes == 0


def test_weights_leave_with_the_copy_and_not_when_python_looks_for_cycles(tmp_path: Path) -> None:
    path = _export(tmp_path / "model.pt2", torch.nn.Linear(1500, 1500), (torch.zeros(1, 1500),))

    def load_and_leave() -> None:
        model = ADAPTER.load(path, _TRUSTED)
        model.warm_up()
        model.unload()

    load_and_leave()
    gc.collect()
    gc.disable()
    try:
        before_bytes = anonymous_bytes()
        for _ in range(6):
            load_and_leave()
        trim()
        assert anonymous_bytes() - before_bytes < 9_000_000, "less than one of six copies of 9 MB is still there"
    finally:
        gc.enable()


def test_the_number_of_threads_is_one_unless_a_load_asks_for_more(tmp_path: Path) -> None:
    path = _export(tmp_path / "m.pt2", Twice(), (torch.zeros(3),))
    ADAPTER.load(path, _TRUSTED)
    assert torch.get_num_threads() == 1
    ADAPTER.load(path, LoadOptions("m", threads=2, trusted=True))
    ADAPTER.load(path, _TRUSTED)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_cuda_device_the_error_says_so(tmp_path: Path) -> None:
    path = _export(tmp_path / "m.pt2", Twice(), (torch.zeros(3),))
    with pytest.raises(LoadFailed, match="sees 0 CUDA devices"):
        ADAPTER.load(path, LoadOptions("m", Device("cuda"), trusted=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
def test_weights_move_to_the_device(tmp_path: Path) -> None:
    path = _export(tmp_path / "m.pt2", torch.nn.Linear(512, 512), (torch.zeros(2, 512),))
    model = ADAPTER.load(path, LoadOptions("m", Device("cuda"), trusted=True))
    assert model.size().device_bytes == (512 * 512 + 512) * 4
    x = np.random.default_rng(0).normal(size=(2, 512)).astype(np.float32)
    on_cpu = ADAPTER.load(path, _TRUSTED).infer({"input": x})["output_0"]
    assert np.allclose(model.infer({"input": x})["output_0"], on_cpu, atol=1e-3)
