"""Prints what pyproject.toml depends on, with the extras named as arguments: input for `pip install -r`.

Not for the project itself: it is installed after its build tools are there. Called by the Makefile.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
print("\n".join([*project["dependencies"], *(line for extra in sys.argv[1:] for line in extras[extra])]))
