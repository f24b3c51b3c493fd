"""What goes from step to step when tensors do: names matched, answers merged, and the JSON that conditions look at.

A step's inputs are the tensors that it is given, in this order:

1. all of them are inputs of the model: as they are;
2. they are more than the model takes, all of its required inputs among them: those that it takes;
3. none has a name of the model's, and they are as many as it takes (or as it needs): by position;
4. anything else is an error that names both sides.

An Ensemble's answer has every output of every step under `<step>.<output>`. Conditions look at a request or an answer
as KServe's router would see it over REST: `{"inputs": [{"name", "datatype", "shape", "data"}]}`, or `outputs`, the
data flat.

Everything is a function of values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from runtime_adapters.base import Array, TensorSpec
from runtime_adapters.datatypes import datatype_of
from runtime_adapters.errors import BadInput

Values = Mapping[str, Array]
_NAMES_SHOWN_MAX = 16


def inputs_for(given: Values, takes: Sequence[TensorSpec]) -> dict[str, Array]:
    """What a model is given, of what there is. Raises BadInput."""
    names = dict.fromkeys(spec.name for spec in takes)
    required = [spec.name for spec in takes if not spec.optional]
    if not takes or all(name in names for name in given):
        return dict(given)
    if all(name in given for name in required) and (required or any(name in given for name in names)):
        return {name: given[name] for name in names if name in given}
    if not any(name in given for name in names):
        for positions in (names, required):
            if len(positions) == len(given):
                return dict(zip(positions, given.values(), strict=True))
    raise BadInput(
        f"it takes {_listed(names)} and is given {_listed(given)}: by name some are missing, and by position they do "
        "not agree in number; name the outputs of the step before as the inputs are named, or give as many"
    )


def as_sent(outputs: Values) -> dict[str, Array]:
    """A model's answer as the next one gets it: what a message would hold, without one. Texts are bytes, and nobody may
    write where others read."""
    found: dict[str, Array] = {}
    for name, array in outputs.items():
        if array.dtype.kind in "SUO":
            elements = [each.encode() if isinstance(each, str) else each for each in array.reshape(-1).tolist()]
            plain = np.empty(len(elements), np.object_)
            plain[:] = elements
            found[name] = plain.reshape(array.shape)
        else:
            found[name] = array.view()
        found[name].flags.writeable = False
    return found


def merged(parts: Mapping[str, Values]) -> dict[str, Array]:
    """The answer of an Ensemble. Raises BadInput."""
    found: dict[str, Array] = {}
    for step, outputs in parts.items():
        for name, array in outputs.items():
            if (full := f"{step}.{name}") in found:
                raise BadInput(f"two outputs of the Ensemble would be called {full!r}; give its steps other names")
            found[full] = array
    return found


def wanted_of(step: str, wanted: Iterable[str]) -> tuple[str, ...]:
    """Which outputs of an Ensemble's step are wanted by name."""
    return tuple(name.removeprefix(f"{step}.") for name in wanted if name.startswith(f"{step}."))


def chosen(outputs: Values, wanted: Sequence[str]) -> dict[str, Array]:
    """The outputs that a client asked for, in that order; all, where it asked for none. Raises BadInput."""
    if not wanted:
        return dict(outputs)
    for name in wanted:
        if name not in outputs:
            raise BadInput(f"output {name[:80]!r} is not among those of the pipeline's answer: {_listed(outputs)}")
    return {name: outputs[name] for name in wanted}


def as_document(word: str, values: Values) -> dict[str, Any]:
    """What a condition looks at; `word` is `inputs` or `outputs`. Nothing is copied."""
    return {
        word: [
            {
                "name": name,
                "datatype": datatype_of(array.dtype) or "",
                "shape": list(array.shape),
                "data": array.reshape(-1),
            }
            for name, array in values.items()
        ]
    }


def _listed(names: Iterable[str]) -> str:
    found = [repr(name[:80]) for name in names]
    more = f" and {len(found) - _NAMES_SHOWN_MAX} more" if len(found) > _NAMES_SHOWN_MAX else ""
    return ", ".join(found[:_NAMES_SHOWN_MAX]) + more if found else "nothing"
