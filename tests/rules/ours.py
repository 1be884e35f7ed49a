"""The files of programs/: whole programmes, and lists of limits that programmes name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FRAUD = ROOT / "programs" / "fraud.yaml"
PROGRAMMES = sorted(path for path in (ROOT / "programs").glob("*.yaml") if path != FRAUD)
