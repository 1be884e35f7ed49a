"""bench.quotes at its smallest: it runs to its end, and its quotes meet rules."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from bench import quotes


def test_a_quick_look_prints_both_rows(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(quotes.main)
    result = CliRunner().invoke(app, ["--seconds", "0.5", "--members", "500", "--folder", str(tmp_path / "quotes")], terminal_width=200)
    assert result.exit_code == 0, result.output
    assert "6 lines x 200 rules" in result.output and "3 quotes : 1 write" in result.output
    assert not (tmp_path / "quotes").exists()
