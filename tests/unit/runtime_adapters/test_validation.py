"""Inputs and outputs are checked against a model's metadata before a framework sees them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_adapters.base import ModelMetadata, TensorSpec
from runtime_adapters.datatypes import DTYPE_OF
from runtime_adapters.errors import BadArtifact, BadInput
from runtime_adapters.validation import InputChecker, check_inputs, check_outputs, refuse_unknown_parameters

IMAGE = TensorSpec("image", "FP32", (-1, 2, 2))
SCALE = TensorSpec("scale", "FP32", (-1,), optional=True)
NETWORK = ModelMetadata("test", (IMAGE, SCALE), (TensorSpec("y", "FP32", (-1,)),), batch_dimension=True)
TABLE = ModelMetadata(
    "test",
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("base_margin", "FP32", (-1,), optional=True)),
    (TensorSpec("predict", "FP32", (-1,)), TensorSpec("predict_proba", "FP32", (-1, 2), optional=True)),
    any_input_name=True,
    batch_dimension=True,
)


def zeros(*shape: int, datatype: str = "FP32") -> np.ndarray:
    return np.zeros(shape, DTYPE_OF[datatype])


def test_fitting_inputs_pass_without_a_copy() -> None:
    image = zeros(5, 2, 2)
    assert InputChecker(NETWORK).check({"image": image}, {"image": "FP32"})["image"] is image


@pytest.mark.parametrize(
    ("metadata", "inputs", "said"),
    [
        (NETWORK, {}, r"required input missing: 'image' \(FP32, shape \[-1, 2, 2\]\); found nothing"),
        (NETWORK, {"scale": zeros(1)}, "required input missing: 'image'.*found 'scale'"),
        (NETWORK, {"picture": zeros(1, 2, 2)}, "'picture': the model has none of that name; it takes 'image', 'scale'"),
        (NETWORK, {"image": zeros(1, 2, 2, datatype="FP64")}, "'image': datatype FP64 found, FP32 allowed$"),
        (NETWORK, {"image": zeros(1, 2, 3)}, r"shape \[1, 2, 3\] found, \[-1, 2, 2\] allowed.*dimension 2 must be 2"),
        (NETWORK, {"image": zeros(1, 4)}, r"shape \[1, 4\] found, \[-1, 2, 2\] allowed.*3 dimensions are due"),
        (NETWORK, {"image": zeros(2, 2, 2), "scale": zeros(3)}, "number of rows.*'image' has 2, 'scale' has 3"),
        (TABLE, {"a": zeros(1, 3), "b": zeros(1, 3)}, "one required input, 'x', under any name; 2 were sent"),
        (TABLE, {"x": zeros(1, 3), "b": zeros(1, 3)}, "'b': the model has none of that name"),
        (TABLE, {"x": zeros(1, 3, datatype="BYTES")}, "datatype BYTES found, FP32 .*any other float or integer"),
        (TABLE, {"x": zeros(1, 3, datatype="BOOL")}, "datatype BOOL found"),
    ],
)
def test_misfits_are_named(metadata: ModelMetadata, inputs: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        InputChecker(metadata).check_arrays(inputs)


def test_a_declaration_that_contradicts_the_array_is_refused() -> None:
    with pytest.raises(BadInput, match="declared as 'INT64', but decoded as FP32"):
        check_inputs(NETWORK, {"image": zeros(1, 2, 2)}, {"image": "INT64"})


def test_a_huge_name_is_not_echoed_whole() -> None:
    with pytest.raises(BadInput) as raised:
        InputChecker(NETWORK).check_arrays({"n" * 100_000: zeros(1)})
    assert len(str(raised.value)) < 400


def test_a_tabular_model_takes_its_input_under_any_name() -> None:
    assert set(InputChecker(TABLE).check_arrays({"features": zeros(4, 3)})) == {"x"}
    both = InputChecker(TABLE).check_arrays({"features": zeros(4, 3), "base_margin": zeros(4)})
    assert set(both) == {"x", "base_margin"}


@pytest.mark.parametrize("datatype", ["FP64", "FP16", "BF16", "INT8", "INT64", "UINT16"])
def test_a_tabular_model_takes_any_number(datatype: str) -> None:
    rows = np.array([[1, 2, 3]], DTYPE_OF[datatype])
    checked = InputChecker(TABLE).check_arrays({"x": rows})["x"]
    assert checked.dtype == np.float32
    assert checked.tolist() == [[1, 2, 3]]


def test_integers_are_cast_to_integers_only_where_no_value_can_change() -> None:
    metadata = ModelMetadata("test", (TensorSpec("x", "INT32", (-1, 1)),), (), any_input_name=True)
    assert InputChecker(metadata).check_arrays({"x": zeros(1, 1, datatype="INT16")})["x"].dtype == np.int32
    for datatype in ("INT64", "UINT32", "FP32"):
        with pytest.raises(BadInput, match=f"{datatype} found, INT32 allowed"):
            InputChecker(metadata).check_arrays({"x": zeros(1, 1, datatype=datatype)})


def test_requested_outputs_are_kept_in_order_and_once() -> None:
    assert check_outputs(TABLE, ["predict_proba", "predict", "predict_proba"]) == ("predict_proba", "predict")
    with pytest.raises(BadInput, match="output 'shap': the model has none of that name; it has 'predict'"):
        check_outputs(TABLE, ["shap"])


def test_an_unknown_parameter_is_named_with_those_that_exist() -> None:
    refuse_unknown_parameters({"weights": "mapped"}, ("weights",))
    with pytest.raises(BadArtifact, match="does not know 'wieghts'; it takes weights"):
        refuse_unknown_parameters({"wieghts": "mapped"}, ("weights",))


_arrays = st.builds(
    lambda shape, datatype: zeros(*shape, datatype=datatype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from(sorted(DTYPE_OF)),
)


@given(st.dictionaries(st.sampled_from(["x", "base_margin", "image", "scale", "other"]), _arrays, max_size=3))
def test_whatever_is_sent_the_answer_fits_the_metadata_or_is_bad_input(inputs: dict[str, np.ndarray]) -> None:
    for metadata in (NETWORK, TABLE):
        try:
            checked = InputChecker(metadata).check_arrays(inputs)
        except BadInput:
            continue
        specs = {spec.name: spec for spec in metadata.inputs}
        assert {spec.name for spec in metadata.inputs if not spec.optional} <= checked.keys()
        assert len({len(array) for array in checked.values()}) == 1
        for name, array in checked.items():
            assert array.dtype == DTYPE_OF[specs[name].datatype]
            assert array.ndim == len(specs[name].shape)
