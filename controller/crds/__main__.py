"""Writes `deploy/crds`: `python -m controller.crds`, from the top of the repository."""

from __future__ import annotations

from pathlib import Path

from controller.crds.files import contents

if __name__ == "__main__":
    for name, content in contents().items():
        (Path("deploy/crds") / name).write_text(content)
