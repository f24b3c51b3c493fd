"""One suite for every adapter: each case of `adapter_cases/*.py`, each check of `runtime_adapters.contract`."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime_adapters.base import CPU, Device
from runtime_adapters.contract import CHECKS, CUDA_CHECKS, AdapterCase, Check, Example, Subject
from runtime_adapters.devices import cuda_devices
from runtime_adapters.malloc import tune_allocator
from runtime_adapters.registry import adapter_for

_CASES_DIRECTORY = Path(__file__).parent / "adapter_cases"


def _cases() -> Iterator[AdapterCase]:
    for path in sorted(_CASES_DIRECTORY.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"adapter_cases_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from module.CASES


CASES = {case.name: case for case in _cases()}


@pytest.fixture(scope="session", autouse=True)
def _memory_is_returned_as_in_a_pod() -> None:
    tune_allocator()


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Example]:
    """Built once per case, when first asked for."""

    class Built(dict[str, Example]):
        def __missing__(self, name: str) -> Example:
            directory = tmp_path_factory.mktemp(name)
            self[name] = CASES[name].build(directory)
            return self[name]

    return Built()


def _try(check: Check, name: str, examples: dict[str, Example], scratch: Path, device: Device) -> None:
    case = CASES[name]
    check(Subject(adapter_for(case.format, include_fake=True), case, examples[name], scratch, device))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_adapter(check: Check, name: str, examples: dict[str, Example], tmp_path: Path) -> None:
    _try(check, name, examples, tmp_path, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("check", CUDA_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cuda])
def test_adapter_on_cuda(check: Check, name: str, examples: dict[str, Example], tmp_path: Path) -> None:
    found = cuda_devices()
    if not found.devices:
        pytest.skip(f"no CUDA device: {found.why_none}")
    _try(check, name, examples, tmp_path, found.devices[0].device)
