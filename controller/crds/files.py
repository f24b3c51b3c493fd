"""What lies in `deploy/crds`."""

from __future__ import annotations

from typing import Any

import yaml

from controller.crds import inference_service, serving_runtime

_HEAD = "# Written by `python -m controller.crds`.\n"


class _Plain(yaml.SafeDumper):
    """Without anchors: the same schema in two places is written twice, as every reader of CRDs expects."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def contents() -> dict[str, str]:
    """Every file's name and text."""
    definitions = (inference_service.definition(), *serving_runtime.definitions())
    return {
        f"{definition.plural}.yaml": _HEAD + yaml.dump(definition.manifest(), Dumper=_Plain, sort_keys=False)
        for definition in definitions
    }
