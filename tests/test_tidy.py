"""The house stays as docs/ARCHITECTURE.md draws it: who imports whom, integers, clocks, and pages that say what is there.

Reads the files of the repository, runs nothing of it.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest

from ledger import errors

ROOT = Path(__file__).resolve().parents[1]

# --- the allowed arrows -----------------------------------------------------------------------------------------------

GENERATED = {"ledger._limits", "ledger._status"}
LEAVES = {f"ledger.{name}" for name in (
    "_arith", "_atomic", "_clock", "_entry", "_evaluate", "_hash", "_identity", "_image", "_layout", "_lmdb", "_lots", "_programme",
    "_quote", "_rules", "_table", "_thread", "_velocity")} | GENERATED
ENGINE = LEAVES | {"ledger._core", "ledger._tail", "ledger._journal", "ledger._ids", "ledger._snapshot"}
RULES = {f"ledger.rules.{name}" for name in (
    "apart", "catalogue", "check", "conditions", "currencies", "difference", "firing", "fits", "image2", "lower2", "lower_articles",
    "lower_conditions", "lower_dimensions", "lower_velocity", "quoted", "reference", "schema", "shape", "syntax", "tree", "velocity",
    "words", "zones")}

# A module -> the modules of ours that it may use. A module that is not here may not exist.
ARROWS: dict[str, set[str]] = {
    "ledger.limits": set(),
    "ledger.errors": {"ledger.limits"},
    "ledger._generate": set(),  # loads limits and errors by path, before the package can be imported
    "ledger._layout": {"ledger._limits", "ledger._hash"},
    **{leaf: LEAVES for leaf in LEAVES - GENERATED - {"ledger._layout"}},
    "ledger._core": LEAVES,
    "ledger._tail": LEAVES,
    "ledger._journal": LEAVES,
    "ledger._ids": LEAVES | {"ledger._core"},
    "ledger._engine": ENGINE | {"ledger.published"},
    "ledger._snapshot": LEAVES | {"ledger._core"},
    "ledger._feed": LEAVES | {"ledger._core", "ledger._tail"},
    "ledger._verifier": LEAVES | {"ledger._core", "ledger._feed"},
    "ledger._follower": LEAVES | {"ledger._core", "ledger._feed", "ledger._snapshot"},
    "ledger._simulator": LEAVES | {"ledger._core", "ledger._feed", "ledger.published"},
    "ledger._backtest": LEAVES | {"ledger._core", "ledger._feed"},
    "ledger._index": LEAVES,
    "ledger._past": LEAVES,
    "ledger._columns": LEAVES,
    "ledger._probe": LEAVES,
    "ledger.published": {"ledger.limits"},
    "ledger.engine": {"ledger.limits", "ledger.errors", "ledger.published", "ledger.snapshot", "ledger._engine", "ledger._snapshot",
                      "ledger.ids",
                      "ledger.rules", "ledger.rules_compiled"},
    "ledger.ids": {"ledger.limits", "ledger.journal", "ledger._ids"},
    "ledger.journal": {"ledger.limits", "ledger.published"},
    "ledger.backup": {"ledger.limits", "ledger.journal"},
    "ledger.restore": {"ledger.limits", "ledger.journal", "ledger._verifier", "ledger.backup", "ledger.engine"},
    "ledger.room": {"ledger.journal", "ledger.limits"},
    "ledger.verify": {"ledger.limits", "ledger.journal", "ledger.room", "ledger._verifier", "ledger.backup"},
    "ledger.snapshot": {"ledger.limits", "ledger._snapshot"},
    "ledger.follower": {"ledger.limits", "ledger.journal", "ledger.snapshot", "ledger.verify", "ledger._follower", "ledger._snapshot"},
    "ledger.index": {"ledger.limits", "ledger.journal", "ledger._index"},
    "ledger.export": {"ledger.errors", "ledger.journal", "ledger._columns", "ledger.published", "ledger.rules.quoted",
                      "ledger.rules.syntax"},
    "ledger.simulate": {"ledger.errors", "ledger.journal", "ledger.limits", "ledger.room", "ledger._simulator", "ledger.rules",
                        "ledger.rules.quoted", "ledger.rules.syntax", "ledger.rules.tree"},
    "ledger.backtest": {"ledger.journal", "ledger.limits", "ledger.published", "ledger.room", "ledger._backtest", "ledger.rules.check",
                        "ledger.rules.lower2", "ledger.rules.quoted", "ledger.rules.syntax", "ledger.rules.tree", "ledger.rules.velocity"},
    "ledger.explain": {"ledger.errors", "ledger.journal", "ledger.limits", "ledger._simulator", "ledger._index", "ledger.rules.quoted",
                       "ledger.rules.syntax", "ledger.rules.tree"},
    "ledger.rules": {"ledger.limits"} | RULES,
    **{rules: {"ledger.limits", "ledger.rules"} | RULES for rules in RULES},
    "ledger.rules_compiled": set(),
    "server._frames": set(),
    "server._nghttp2": set(),
    "server._hpack": set(),
    "server._grpc": LEAVES,
    "server._encode": LEAVES,
    "server._wire": LEAVES | {"server._encode"},
    "server._entries": LEAVES | {"ledger.published", "server._encode", "server._wire"},
    "server._call": LEAVES | {"ledger._core", "ledger._engine", "server._wire"},
    "server._http2": LEAVES | {"server._frames", "server._grpc", "server._hpack", "server._nghttp2"},
    "server._transport": LEAVES | {"ledger._engine", "server._call", "server._frames", "server._grpc", "server._http2"},
    "server._local": LEAVES | {"ledger._core", "ledger._ids", "ledger._snapshot", "server._call", "server._wire"},
    "server._reader": LEAVES | {"ledger._core", "ledger._follower", "server._call"},
    "server.config": {"ledger.limits"},
    "server.ports": {"server.config"},
    "server.child": {"server.config"},
    "server.control": {"ledger.limits", "ledger.errors", "ledger._engine", "server.config", "server.limit_keys", "server.reviews",
                       "server.rules", "server.segments"},
    "server.rules": {"ledger.errors", "ledger.limits", "ledger.published", "ledger._engine", "ledger.rules.apart", "server.config"},
    "server.segments": {"ledger.limits", "server.config"},
    "server.metrics": {"ledger.limits", "ledger.errors", "server._transport", "server.config"},
    "server.service": {"ledger.engine", "ledger.limits", "server._transport", "server.config", "server.control", "server.metrics",
                       "server.child", "server.ports"},
    "server.follow": {"ledger._follower", "ledger.follower", "ledger.journal", "ledger.limits", "server._reader", "server.config",
                      "server.control",
                      "server.metrics", "server.ports", "server.reading"},
    "server.reading": {"ledger.errors", "ledger.index", "ledger.journal", "ledger.limits", "ledger.published", "ledger._past",
                       "server._entries",
                       "server.config", "server.control"},
    "server.cli_index": {"ledger.follower", "ledger.index", "ledger.journal", "server.console"},
    "server.cli_export": {"ledger.export", "ledger.journal", "server.console"},
    "server.cli_follow": {"ledger.limits", "server.config", "server.console", "server.follow"},
    "server.cli_admin": {"server.console", "server.control"},
    "server.cli_fraud": {"server.cli_admin", "server.console"},
    "server.reviews": {"ledger._engine", "ledger.limits", "server.config"},
    "server.limit_keys": {"ledger._engine", "ledger.limits", "ledger.rules.tree", "server.config"},
    "server.cli_rules": {"ledger.rules.syntax", "server.cli_admin", "server.console", "server.control"},
    "server.cli_backup": {"ledger._follower", "ledger.backup", "ledger.journal", "ledger.limits", "ledger.restore", "ledger._verifier",
                          "server.console"},
    "server.cli_simulate": {"ledger.backtest", "ledger.journal", "ledger.rules", "ledger.simulate", "server.console", "server.plot"},
    "server.cli_explain": {"ledger.explain", "ledger.journal", "ledger.rules.tree", "server.console"},
    "server.plot": set(),
    "server.console": set(),
    "server.cli": {"ledger.engine", "ledger.errors", "ledger.journal", "ledger.limits", "ledger.rules", "ledger.verify",
                   "server.cli_admin", "server.cli_backup", "server.cli_explain", "server.cli_export", "server.cli_follow",
                   "server.cli_fraud", "server.cli_ids", "server.cli_index", "server.cli_rules", "server.cli_simulate",
                   "server.config", "server.console",
                   "server.service"},
    "server.cli_ids": {"ledger.ids", "ledger.journal", "ledger.limits", "server.console"},
    "server.__main__": {"server.cli"},
}

# The command line's modules.
COMMANDS = {"server/cli.py", "server/cli_admin.py", "server/cli_backup.py", "server/cli_explain.py", "server/cli_export.py",
            "server/cli_follow.py", "server/cli_fraud.py", "server/cli_ids.py", "server/cli_index.py", "server/cli_rules.py",
            "server/cli_simulate.py",
            "server/console.py"}

# A package of others -> where it may be imported. bench/ and tests/ may import everything.
OTHERS = {
    "lmdb": {"ledger/journal.py"},
    "grpc": {"server/cli_admin.py", "server/control.py", "server/follow.py", "server/reading.py",
             "server/service.py"},
    "grpc_health": {"server/control.py", "server/follow.py"},
    "grpc_reflection": {"server/control.py", "server/follow.py"},
    "grpc_status": {"server/control.py"},
    "google": {"server/cli_admin.py", "server/cli_rules.py", "server/control.py", "server/limit_keys.py", "server/reading.py",
               "server/reviews.py", "server/rules.py", "server/segments.py"},
    "prometheus_client": {"server/metrics.py"},
    "ruamel": {f"ledger/rules/{name}.py" for name in ("check", "conditions", "difference", "quoted", "shape",
                                                          "syntax", "velocity")},
    "tzdata": {"ledger/rules/zones.py"},
    "zoneinfo": {"ledger/rules/zones.py"},
    "numpy": {"ledger/backtest.py", "ledger/export.py", "ledger/index.py", "ledger/simulate.py", "server/_local.pyi",
              *(f"ledger/rules/{name}.py" for name in ("fits", "image2", "lower2", "lower_articles", "lower_conditions",
                                                         "lower_dimensions", "lower_velocity"))},
    "pyarrow": {"ledger/export.py", "ledger/simulate.py", "ledger/rules/catalogue.py"},
    "typer": COMMANDS,
    "rich": COMMANDS,
}

# A C library -> where its header may be included.
HEADERS = {
    "lmdb.h": {"ledger/_lmdb.pxd"},
    "nghttp2/nghttp2.h": {"server/_nghttp2.pxd"},
    "openssl/evp.h": {"ledger/_tail.pxd", "ledger/_tail.pyx"},
    "openssl/crypto.h": {"ledger/_quote.pxd"},
    "openssl/sha.h": {"ledger/_image.pxd", "ledger/_quote.pxd", "ledger/_rules.pxd", "ledger/_feed.pyx", "ledger/_snapshot.pyx"},
}

# --- reading the files ------------------------------------------------------------------------------------------------


@lru_cache
def files() -> list[str]:
    """Every file of the repository that is or will be in git."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return sorted(name for name in listed.stdout.splitlines() if (ROOT / name).exists())
    skipped = {".venv", "build", "__pycache__", "_pb", "data", ".git", ".hypothesis", ".pytest_cache"}
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*")
                  if path.is_file() and not skipped & set(path.relative_to(ROOT).parts))


def sources(*folders: str) -> list[str]:
    """Python and Cython files of ours below the folders."""
    return [name for name in files() if name.startswith(folders) and name.endswith((".py", ".pyi", ".pyx", ".pxd"))]


@lru_cache
def text(name: str) -> str:
    return (ROOT / name).read_text()


@lru_cache
def tokens(name: str) -> list[tokenize.TokenInfo]:
    """Cython reads like Python to the tokenizer; C snippets are strings to it."""
    return list(tokenize.generate_tokens(io.StringIO(text(name)).readline))


def code_words(name: str) -> set[str]:
    return {token.string for token in tokens(name) if token.type == tokenize.NAME}


def module_of(name: str) -> str:
    return name.rsplit(".", 1)[0].replace("/", ".").removesuffix(".__init__")


def imports(name: str) -> set[str]:
    """The modules that a file imports or cimports. `from package import module` is the module, where it is one of ours."""
    pairs: list[tuple[str, list[str]]] = []
    if name.endswith((".py", ".pyi")):
        for node in ast.walk(ast.parse(text(name))):
            if isinstance(node, ast.Import):
                pairs += [(alias.name, [""]) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                pairs.append((node.module or "", [alias.name for alias in node.names]))
    else:
        joined = re.sub(r"\(([^()]*)\)", lambda match: match[1].replace("\n", " "), text(name))
        for module, names in re.findall(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]+(.+)$", joined, re.MULTILINE):
            pairs.append((module, [part.split()[0] for part in names.split("#")[0].split(",") if part.strip()]))
        pairs += [(module, [""]) for module in re.findall(r"^[ \t]*c?import[ \t]+([\w.]+)", joined, re.MULTILINE)]
    return {whole if (whole := f"{module}.{part}") in MODULES else module for module, parts in pairs for part in parts}


MODULES = {module_of(name) for name in sources("ledger/", "server/", "bench/")} | GENERATED
PACKAGES = {"ledger", "server", "bench", "tests", "server._pb"}


def ours(name: str) -> set[str]:
    """The modules of ours that a file uses."""
    return {module for module in imports(name) if module in MODULES and module not in PACKAGES} - {module_of(name)}


# --- the tests ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", sources("ledger/", "server/"))
def test_a_room_uses_only_the_rooms_below_it(name):
    module = module_of(name)
    if module in PACKAGES:
        assert ours(name) == set(), f"{name} must import nothing"
        return
    assert module in ARROWS, f"{name} is not in the table of arrows: say there whom it may use"
    assert sorted(ours(name) - ARROWS[module]) == [], f"{name} uses rooms that it may not use"
    assert not any(used.split(".")[0] in ("bench", "tests") for used in imports(name)), f"{name} uses bench or tests"


def test_the_table_of_arrows_names_only_modules_that_are_there():
    assert sorted(set(ARROWS) - MODULES) == []
    assert sorted(set().union(*ARROWS.values()) - MODULES) == []


def test_the_table_of_arrows_has_no_circle():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join(path[path.index(module):])} -> {module}"
        if module not in done:
            for name in sources("ledger/", "server/"):
                if module_of(name) == module:
                    for used in sorted(ours(name)):
                        visit(used, (*path, module))
            done.add(module)

    for module in ARROWS:
        visit(module, ())


@pytest.mark.parametrize("package", sorted(OTHERS))
def test_a_package_of_others_is_imported_in_its_place_only(package):
    users = {name for name in sources("ledger/", "server/") if any(used.split(".")[0] == package for used in imports(name))}
    assert sorted(users - OTHERS[package]) == []


@pytest.mark.parametrize("header", sorted(HEADERS))
def test_a_c_library_is_included_in_its_place_only(header):
    users = {name for name in sources("ledger/", "server/", "bench/") if re.search(rf'["<]{re.escape(header)}[">]', text(name))}
    assert sorted(users - HEADERS[header]) == []


def test_every_dependency_is_used():
    wanted = tomllib.loads(text("pyproject.toml"))["project"]["dependencies"]
    modules = {"grpcio": "grpc", "grpcio-health-checking": "grpc_health", "grpcio-reflection": "grpc_reflection",
               "protobuf": "google.protobuf", "googleapis-common-protos": "google.rpc", "prometheus-client": "prometheus_client"}
    used = set().union(*(imports(name) for name in sources("ledger/", "server/", "bench/")))
    for requirement in wanted:
        package = re.split(r"[<>=!~ \[]", requirement)[0]
        module = modules.get(package, package)
        assert any(name == module or name.startswith(module + ".") for name in used), f"{package} is a dependency that nobody imports"


# Whole-number division of sizes and positions, which are unsigned: rings, capacities, halves. Points, money and days go through _arith.
DIVIDES = {"ledger/_arith.pxd", "ledger/_engine.pyx", "ledger/_lots.pxd", "ledger/_snapshot.pyx", "ledger/_table.pxd",
           "ledger/_velocity.pxd"}


@pytest.mark.parametrize("name", [name for name in sources("ledger/") if name.endswith((".pyx", ".pxd"))])
def test_divisions_of_the_core_name_their_rounding(name):
    operators = [token for token in tokens(name) if token.type == tokenize.OP and token.string in ("/", "//", "%", "/=", "//=", "%=")]
    banned = [f"{name}:{token.start[0]}: {token.line.strip()}" for token in operators if name not in DIVIDES or token.string in ("/", "/=")]
    assert banned == [], "use div_floor, mul_div_floor or mul_div_rem of ledger/_arith.pxd: `//` and `%` truncate here, `/` gives a float"


def test_the_files_that_may_divide_do():
    assert [name for name in sorted(DIVIDES) if not re.search(r"//|%", text(name))] == []


@pytest.mark.parametrize("name", sources("ledger/"))
def test_the_ledger_counts_in_integers(name):
    assert not code_words(name) & {"float", "double", "Decimal"}, f"{name}: integers only"
    numbers = [token.string for token in tokens(name) if token.type == tokenize.NUMBER]
    literals = [number for number in numbers if re.search(r"^[\d_]*\.|^[\d_]+[eE]", number)]
    assert literals == [], f"{name}: integers only"


# Time enters as data. These read it; nobody else does. A stopwatch only says how long something took.
CLOCKS = {"ledger/_clock.pxd", "server/control.py"}
STOPWATCHES = {"ledger/backtest.py", "ledger/simulate.py", "ledger/backup.py", "ledger/follower.py", "ledger/verify.py", "server/cli.py",
               "server/cli_backup.py", "server/cli_export.py", "server/cli_follow.py", "server/cli_index.py"}


@pytest.mark.parametrize("name", sources("ledger/", "server/"))
def test_clocks_are_read_in_one_place_and_its_twin(name):
    code = text(name) if not name.endswith(".pyi") else ""  # stubs explain, they run nothing
    clocks = r"\b(clock_gettime|gettimeofday|timespec_get|time_ns|monotonic|monotonic_ns|utcnow|today|(?<=time\.)time|(?<=datetime\.)now)\("
    stopwatches = r"\b(perf_counter|perf_counter_ns|process_time)\("
    if name not in CLOCKS:
        assert re.findall(clocks, code) == [], f"{name} reads a clock"
    if name not in STOPWATCHES:
        assert re.findall(stopwatches, code) == [], f"{name} reads a stopwatch"


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "HA" + "CK")) + r")\b")
    left = [f"{name}:{number}" for name in files() if not name.endswith((".image", ".json"))
            for number, line in enumerate((ROOT / name).read_text(errors="replace").splitlines(), start=1) if marks.search(line)]
    assert left == []


def headings(page: str, level: int) -> list[str]:
    return re.findall(rf"^{'#' * level} (.+)$", text(page), re.MULTILINE)


def test_every_refusal_is_explained_and_no_other():
    assert sorted(headings("docs/errors.md", 3)) == sorted(name for name in errors.BY_NAME if name != "OK")


@pytest.mark.parametrize("status", [status for status in errors.STATUSES if status.number], ids=lambda status: status.name)
def test_a_refusal_is_explained_as_the_table_has_it(status):
    codes = {3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS", 8: "RESOURCE_EXHAUSTED",
             9: "FAILED_PRECONDITION", 11: "OUT_OF_RANGE", 12: "UNIMPLEMENTED", 14: "UNAVAILABLE"}
    section = text("docs/errors.md").split(f"### {status.name}\n")[1].split("\n#")[0]
    assert section.strip().startswith(codes[status.grpc_code] + ".")
    assert ("Remembered: yes" in section) == status.remembered
    assert not status.retryable or "Again: yes" in section
    for key in filter(None, (status.a, status.b)):
        assert f"`{key}`" in section


def test_every_metric_is_explained_and_no_other():
    source = text("server/metrics.py")
    kinds = dict(re.findall(r'"(ledger_\w+)", "(\w+)", "', source))
    kinds |= {name: kind.lower() for kind, name in re.findall(r'(Counter|Gauge|Histogram)MetricFamily\(\s*"(ledger_\w+)"', source)}
    there = {name + ("_total" if kind == "counter" else "") for name, kind in kinds.items()}
    assert there and set(re.findall(r"\bledger_\w+", source)) == set(kinds), "a metric is declared in a way that this test does not read"
    assert sorted(re.findall(r"^\| `(ledger_\w+)`", text("docs/metrics.md"), re.MULTILINE)) == sorted(there)


PAGES = [name for name in files() if name.endswith(".md") and not name.startswith(".")]


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_that_a_page_names_is_there(page):
    targets = set(re.findall(r"^([a-z][\w-]*):", text("Makefile"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z][\w-]*)", text(page))) | set(re.findall(r"^\s*make ([a-z][\w-]*)", text(page), re.MULTILINE))
    assert sorted(named - targets) == []


def test_facts_of_the_digest_have_numbers_of_their_own():
    """Two kinds with one number would let two different states have one digest."""
    numbers = [int(number) for name in files() if name.startswith("ledger/") and name.endswith((".pyx", ".pxd", ".pxi"))
               for number in re.findall(r"^    FACT_[A-Z]+ = (\d+)", text(name), re.MULTILINE)]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))


ENDINGS = r"(?:py|pyi|pyx|pxd|md|yaml|proto|toml|h|c|json|service|image)"


@pytest.mark.parametrize("page", [*PAGES, *(name for name in sources("ledger/", "server/", "bench/", "tests/"))])
def test_every_file_that_is_named_is_there(page):
    folders = "ledger|server|bench|tests|docs|proto|programs|deploy"
    named = set(re.findall(rf"(?<![\w/.*{{-])((?:{folders})/[\w/.-]*\w\.{ENDINGS})\b", text(page)))
    generated = re.compile(r"_pb/|_limits|_status\.(h|pxd)|\.image$")
    gone = [name for name in named if not (ROOT / name).exists() and not generated.search(name)]
    assert sorted(gone) == []


def test_no_page_names_the_place_where_it_was_written():
    place = re.compile("/" + r"work/(main|wt|shared|venv)|/" + "tmp/brief")
    assert [name for name in files() if not name.endswith(".image") and place.search((ROOT / name).read_text(errors="replace"))] == []
