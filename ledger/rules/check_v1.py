"""A programme's YAML to a checked `model_v1.Program`: every bound, every name, every reference.

Not for reading text (`syntax.py`) and not for bytes (`lower.py`). Called by `ledger.rules.compile_source`.
"""

from __future__ import annotations

from ruamel.yaml.nodes import MappingNode, Node

from ledger import limits
from ledger.rules import syntax, zones
from ledger.rules.currencies import DIGITS
from ledger.rules.model_v1 import LifeUnit, PerStep, Program, Wallet
from ledger.rules.syntax import Mapping, Problems, read_boolean, read_decimal, read_span, read_text, read_whole

PROGRAMME_NAME_BYTES_MAX = 40
MAX_AGE_DAYS_MAX = 3660  # ten years: longer is a typing error
LIFE_DAYS_MAX = 18_250  # fifty years
LIFE_MONTHS_MAX = 600  # fifty years
DELAY_DAYS_MAX = 3660
MONTH_DAYS_MIN = 28


def check_source(source: bytes, file: str) -> Program:
    """The programme in `source`. `file` is its name in messages. ProgramError: everything that is wrong with it."""
    problems = Problems(file)
    top = Mapping(syntax.parse(source, file), "", problems,
                  required=("programme", "currency", "zone", "wallets", "rules"), optional=("anonymous_accounts", "max_age", "funders"))
    name = top.read("programme", read_text(PROGRAMME_NAME_BYTES_MAX), f"a name of 1..{PROGRAMME_NAME_BYTES_MAX} bytes", "")
    currency = top.read("currency", lambda text: text if text in DIGITS else None, "an ISO 4217 code such as USD", "XXX",
                        lambda text: syntax.suggestion(text.upper(), DIGITS))
    zone = top.read("zone", lambda text: text if text in zones.names() else None, "an IANA time zone such as Europe/Warsaw", "UTC",
                    lambda text: syntax.suggestion(text, zones.names()))
    anonymous = top.read("anonymous_accounts", read_boolean, "true or false", False)
    max_age, _ = top.read("max_age", read_span({"days": MAX_AGE_DAYS_MAX}), f"0..{MAX_AGE_DAYS_MAX} days, such as `30 days`", (30, "days"))
    wallets = _wallets(top, problems)
    funders = _funders(top, problems)
    nodes = top.items("rules", "rules", 0, limits.RULES_MAX)
    rules = tuple(_rule(node, f"rules[{i}]", problems, wallets, funders, currency) for i, node in enumerate(nodes))
    _no_two_alike([rule.name for rule in rules], nodes, "rules", problems)
    problems.raise_if_any()
    return Program(name=name, currency=currency, currency_digits=DIGITS[currency], zone=zone, anonymous_accounts=anonymous,
                   max_age_days=max_age, wallets=wallets, funders=tuple(funders.items()), rules=rules)


def _no_two_alike(names: list[str], nodes: list[Node], path: str, problems: Problems) -> None:
    for i, node in enumerate(nodes):
        if names[i] and names[i] in names[:i]:
            problems.add(node, f"{path}[{i}].name: {names[i]!r} is taken by {path}[{names.index(names[i])}], must be another name")


def _wallets(top: Mapping, problems: Problems) -> tuple[Wallet, ...]:
    found = []
    nodes = top.items("wallets", "wallets", 1, limits.WALLETS_MAX)
    for i, node in enumerate(nodes):
        at = Mapping(node, f"wallets[{i}]", problems, required=("name",), optional=("scale",))
        found.append(Wallet(
            name=at.read("name", read_text(limits.WALLET_NAME_BYTES_MAX), f"a name of 1..{limits.WALLET_NAME_BYTES_MAX} bytes", ""),
            scale=at.read("scale", read_whole(0, 9), "a whole number of decimals, 0..9", 0)))
    _no_two_alike([wallet.name for wallet in found], nodes, "wallets", problems)
    return tuple(found)


def _funders(top: Mapping, problems: Problems) -> dict[str, int]:
    node = top.values.get("funders")
    if node is None:
        return {}
    found: dict[str, int] = {}
    names = tuple(str(key.value) for key, _ in node.value) if isinstance(node, MappingNode) else ("NAME",)
    at = Mapping(node, "funders", problems, required=(), optional=names)
    for name in at.values:
        number = at.read(name, read_whole(1, limits.FUNDERS_MAX), f"a number of 1..{limits.FUNDERS_MAX} that never changes", 0)
        if number and number in found.values():
            at.problem(name, f"number {number} is taken by another funder, must be its own")
        found[name] = number
    return found


def _rule(node: Node, path: str, problems: Problems, wallets: tuple[Wallet, ...], funders: dict[str, int], currency: str) -> PerStep:
    at = Mapping(node, path, problems, required=("name", "for_every_full", "give", "points_live"),
                 optional=("to_wallet", "available_after", "funder"))
    name = at.read("name", read_text(limits.RULE_NAME_BYTES_MAX), f"a name of 1..{limits.RULE_NAME_BYTES_MAX} bytes", "")
    digits = DIGITS.get(currency, 2)
    step = at.read("for_every_full", read_decimal(digits, 1, limits.AMOUNT_MINOR_MAX),
                   f"an amount above 0 with at most {digits} decimals ({currency}), such as {_example(digits)}", 1)
    names = [wallet.name for wallet in wallets]
    wallet_name = at.read("to_wallet", lambda text: text if text in names else None, f"one of the wallets {', '.join(names)}",
                          names[0] if names else "", lambda text: syntax.suggestion(text, names))
    wallet = names.index(wallet_name) if names else 0
    scale = wallets[wallet].scale if wallets else 0
    give = at.read("give", read_decimal(scale, 1, limits.POINTS_PER_STEP_MAX),
                   f"a number of points above 0 with at most {scale} decimals (the wallet's scale), "
                   f"at most {limits.POINTS_PER_STEP_MAX} of the smallest unit", 1)
    life, unit = at.read("points_live", _read_life,
                         f"1..{LIFE_MONTHS_MAX} months, 1..{LIFE_DAYS_MAX} days or forever, such as `12 months`", (0, LifeUnit.NEVER_ENDS))
    delay, _ = at.read("available_after", read_span({"days": DELAY_DAYS_MAX}), f"0..{DELAY_DAYS_MAX} days, such as `14 days`", (0, "days"))
    shortest = life * MONTH_DAYS_MIN if unit is LifeUnit.MONTHS else life
    if unit is not LifeUnit.NEVER_ENDS and delay >= shortest:
        at.problem("available_after", f"must be shorter than points_live (at least {shortest} days), was {delay} days: "
                                      "the points would be gone before anyone can use them")
    funder = at.read("funder", funders.get, f"one of the funders {', '.join(funders) or '(none is named under `funders`)'}", 0,
                     lambda text: syntax.suggestion(text, funders))
    return PerStep(name=name, step=step, give=give, wallet=wallet, funder=funder, life_unit=unit, life=life, available_after=delay)


def _read_life(text: str) -> tuple[int, LifeUnit] | None:
    if text == "forever":
        return 0, LifeUnit.NEVER_ENDS
    span = read_span({"days": LIFE_DAYS_MAX, "months": LIFE_MONTHS_MAX})(text)
    if span is None or span[0] == 0:
        return None
    return span[0], LifeUnit.DAYS if span[1] == "days" else LifeUnit.MONTHS


def _example(digits: int) -> str:
    return "1." + "0" * digits if digits else "100"
