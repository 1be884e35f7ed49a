"""The rule compiler: a programme in YAML to a checked, content-hashed image for the core.

Not for running rules (the core does, `ledger/_rules.pxd`) nor for keeping images (`ledger/rules_compiled/`).
Called by `daybook serve` and `daybook compile`. Way of a file: `syntax` -> `check` -> `lower`; `reference` says what it means.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ledger import limits
from ledger.rules import zones
from ledger.rules.check_v1 import check_source
from ledger.rules.lower import image_hash, lower_program
from ledger.rules.model_v1 import LifeUnit, PerStep, Program
from ledger.rules.syntax import ProgramError

__all__ = ["CompiledProgram", "Program", "ProgramError", "compile_file", "compile_source", "describe"]


class CompiledProgram(NamedTuple):
    """A programme in both forms. `hash`: the image's content hash, 64 hex digits."""

    image: bytes
    source: bytes
    hash: str
    program: Program


def compile_file(path: Path) -> CompiledProgram:
    """Compile a YAML file. ProgramError: it cannot be read, or what is wrong with it, one line per problem."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}") from None
    return compile_source(source, str(path))


def compile_source(source: bytes, file: str = "<programme>") -> CompiledProgram:
    """Compile YAML text. `file` is its name in messages. ProgramError: what is wrong with it, one line per problem."""
    if len(source) > limits.SOURCE_BYTES_MAX:
        raise ProgramError(f"{file}:1:1: the file must have at most {limits.SOURCE_BYTES_MAX} bytes, has {len(source)}")
    program = check_source(source, file)
    try:
        image = lower_program(program)
    except ValueError as error:
        raise ProgramError(f"{file}:1:1: {error}") from None
    return CompiledProgram(image, source, image_hash(image), program)


def describe(compiled: CompiledProgram) -> list[tuple[str, str]]:
    """What a programme says, in words: rows of (title, text) for people."""
    program = compiled.program
    rows = [
        ("programme", program.name),
        ("currency", program.currency),
        ("zone", f"{program.zone} (zone data {zones.release()})"),
        ("unknown cards", "open an account" if program.anonymous_accounts else "are refused"),
        ("oldest receipt", _count(program.max_age_days, "day")),
    ]
    rows += [(f"wallet {i}", f"{wallet.name}, {_count(wallet.scale, 'decimal')}") for i, wallet in enumerate(program.wallets)]
    rows += [(f"funder {number}", name) for name, number in program.funders]
    rows += [(f"rule {i}", _rule_in_words(program, rule)) for i, rule in enumerate(program.rules, start=1)]
    return [*rows, ("image", f"{len(compiled.image)} bytes"), ("hash", compiled.hash)]


def _rule_in_words(program: Program, rule: PerStep) -> str:
    wallet = program.wallets[rule.wallet]
    life = {LifeUnit.NEVER_ENDS: "for ever", LifeUnit.DAYS: _count(rule.life, "day"), LifeUnit.MONTHS: _count(rule.life, "month")}
    text = (f"{rule.name}: for every full {_decimal(rule.step, program.currency_digits)} {program.currency} of the receipt "
            f"give {_decimal(rule.give, wallet.scale)} {wallet.name}; they live {life[rule.life_unit]}")
    if rule.available_after:
        text += f", available after {_count(rule.available_after, 'day')}"
    payers = {number: name for name, number in program.funders}
    return text + (f", paid by {payers[rule.funder]}" if rule.funder else "")


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("" if number == 1 else "s")


def _decimal(value: int, digits: int) -> str:
    text = str(value).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}" if digits else text
