"""The command line as a person meets it: help, refusals, start, stop, signals, verify and compile."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger import limits
from tests.rules.ours import PROGRAMMES
from tests.running import PROGRAM, ROOT, DidNotStart, RunningServer

NewServer = Callable[..., RunningServer]


def daybook(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "server", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s,
                          stdin=subprocess.DEVNULL, env={"COLUMNS": "140", "PATH": "/usr/bin:/bin", "NO_COLOR": "1"})


def one_message(done: subprocess.CompletedProcess[str], code: int, pattern: str) -> None:
    """A clear end: this code, this message, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(pattern, done.stderr), done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def readme_call() -> str:
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert found is not None
    return found[1].replace("timeout=1)", "timeout=60)")  # a busy machine's first call takes longer than a till would wait


# --- help ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("command", ["serve", "verify", "compile"])
def test_help_teaches_with_an_example(command: str) -> None:
    done = daybook(command, "--help")
    assert done.returncode == 0
    assert f"Example: daybook {command}" in done.stdout
    assert "--clock-file" not in done.stdout and "--ports-file" not in done.stdout, "switches of tests are hidden"


def test_the_first_help_names_the_exit_codes() -> None:
    done = daybook("--help")
    assert "70" in done.stdout and "Exit codes" in done.stdout


# --- refusals -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("arguments", "message"), [
    (["--checkout", "0.0.0.0:7070"], r"--checkout 0.0.0.0:7070 is not a loopback address(.|\n)*--insecure"),
    (["--control", "[::]:0"], r"--control \[::\]:0 is not a loopback"),
    (["--http", "127.0.0.1"], r"--http must be HOST:PORT"),
    (["--http", "127.0.0.1:99999"], r"--http must be HOST:PORT with a port of 0..65535, was '127.0.0.1:99999'"),
    (["--checkout", "::1:7070"], r"--checkout must be HOST:PORT(.|\n)*brackets"),
    (["--checkout", "till.example:7070"], r"needs an IP address, was 'till.example'"),
    (["--checkout", "127.0.0.1:7070", "--http", "127.0.0.1:7070"], r"two ports have the same address"),
    (["--members-max", "0"], r"--members-max must be 1..100000000, was 0"),
    (["--ids-max", "-5"], r"--ids-max must be 1..1000000000, was -5"),
    (["--program", "no-such.yaml"], r"no-such.yaml"),
    (["--nonsense"], r"No such option"),
])
def test_a_wrong_argument_is_one_clear_message_and_nothing_is_written(tmp_path: Path, arguments: list[str], message: str) -> None:
    data = tmp_path / "data"
    defaults = [] if "--checkout" in arguments else ["--checkout", "127.0.0.1:0"]
    for name in ("--control", "--http"):
        if name not in arguments:
            defaults += [name, "127.0.0.1:0"]
    one_message(daybook("serve", "--data", str(data), *defaults, *arguments), 2, message)
    assert not data.exists()


@pytest.mark.parametrize("flag", ["checkout", "control", "http"])
def test_a_taken_port_is_refused_before_anything_is_written(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {name: "127.0.0.1:0" for name in ("checkout", "control", "http")}
        ports[flag] = f"127.0.0.1:{taken.getsockname()[1]}"
        line = [part for name, address in ports.items() for part in (f"--{name}", address)]
        done = daybook("serve", "--data", str(tmp_path / "data"), *line)
    one_message(done, 2, rf"--{flag} cannot listen on 127.0.0.1:\d+: Address already in use(.|\n)*--{flag}")
    assert not (tmp_path / "data").exists()


def test_bad_yaml_is_refused_with_its_line(new_server: NewServer, tmp_path: Path) -> None:
    program = tmp_path / "bad.yaml"
    program.write_text(PROGRAM.read_text().replace("give: 5", "give: -5"))
    line = 1 + program.read_text().split("give: -5")[0].count("\n")
    with pytest.raises(DidNotStart, match=rf"bad.yaml:{line}:") as refused:
        new_server(program=program).start()
    assert refused.value.code == 2
    one_message(daybook("compile", str(program)), 1,
                rf"bad.yaml:{line}:11: rules\[0\].give: must be .*, was '-5'\n +{line} \|     give: -5\n +\|           \^")


def test_every_programme_is_told_in_words() -> None:
    for program in PROGRAMMES:
        done = daybook("compile", str(program))
        assert done.returncode == 0 and "rule 1" in done.stdout and "hash" in done.stdout, done.stderr


def test_a_second_service_on_the_directory_is_refused(server: RunningServer, new_server: NewServer) -> None:
    second = new_server()
    second.data = server.data
    with pytest.raises(DidNotStart, match="in use by another process") as refused:
        second.start()
    assert refused.value.code == 2
    assert "ok" in server.get("/healthz"), "the first one serves on"


def test_an_unwritable_directory_is_refused(tmp_path: Path) -> None:
    """A file where a directory must be stands for every directory that cannot be made (root may write everywhere else)."""
    (tmp_path / "file").write_text("")
    done = daybook("serve", "--data", str(tmp_path / "file" / "data"), "--checkout", "127.0.0.1:0", "--control", "127.0.0.1:0",
                   "--http", "127.0.0.1:0")
    one_message(done, 2, "Not a directory")


# --- life ---------------------------------------------------------------------------------------------------------

def test_the_readme_s_first_call_runs_as_printed(server: RunningServer, tmp_path: Path) -> None:
    script = tmp_path / "call.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + readme_call().replace("127.0.0.1:7070", server.address()))
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"entry \d+: 60 points, 60 available\n", done.stdout)
    assert server.terminate() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_in_order_and_leaves_nothing_in_the_tail(server: RunningServer, number: int) -> None:
    exec(readme_call().replace("127.0.0.1:7070", server.address()), {})
    assert server.terminate(number) == 0
    head = re.search(r"stopped: everything is in the journal, head (\d+:[0-9a-f]{64})", server.log())
    assert head is not None, server.log()
    done = daybook("verify", str(server.data), "--expect-head", head[1])
    assert done.returncode == 0, done.stderr
    assert f"head {head[1]}" in done.stdout
    assert "0 of them only in the tail" in done.stdout


def test_kill_and_start_again_keeps_what_was_answered(server: RunningServer) -> None:
    exec(readme_call().replace("127.0.0.1:7070", server.address()), {})
    before = server.metrics()['ledger_issued_points{wallet="points"}']
    server.restart(kill=True)
    assert server.metrics()['ledger_issued_points{wallet="points"}'] == before == 60
    assert "Traceback" not in server.log()


def test_the_start_table_says_what_runs(server: RunningServer) -> None:
    log = server.log()
    for what in ("Base", str(server.data), server.address(), server.address("control"), "a new journal", "20,000 members"):
        assert what in log


def test_health_says_stopping_while_it_stops(server: RunningServer) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    health = health_pb2_grpc.HealthStub(server.control_channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    assert server.process is not None
    server.process.terminate()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.wait() == 0


def test_verify_beside_a_running_service(server: RunningServer) -> None:
    for _ in range(3):
        exec(readme_call().replace("127.0.0.1:7070", server.address()), {})
    done = daybook("verify", str(server.data))
    assert done.returncode == 0, done.stderr
    assert re.search(r"issued.*\n.*\n.*points +│ +180 ", done.stdout), done.stdout
    head = re.search(r"head (\S+)", done.stdout)
    assert head is not None
    server.restart(kill=True)
    assert daybook("verify", str(server.data), "--expect-head", head[1]).returncode == 0


def test_verify_names_a_directory_that_is_none(tmp_path: Path) -> None:
    one_message(daybook("verify", str(tmp_path)), 1, "is not a ledger's data directory")
    one_message(daybook("verify", str(tmp_path), "--expect-head", "12"), 2, "SEQ:HASH")


def test_compile_shows_the_programme() -> None:
    done = daybook("compile", str(PROGRAM))
    assert done.returncode == 0
    for what in ("Base", "USD", "America/New_York", "hash", "for every full 1.00 USD"):
        assert what in done.stdout


def test_a_stop_with_an_idle_connection_is_quick(server: RunningServer) -> None:
    """An open connection without calls must not hold a stop for the whole grace."""
    exec(readme_call().replace("127.0.0.1:7070", server.address()), {})
    with socket.create_connection(("127.0.0.1", server.ports["checkout"])):
        begun = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - begun < limits.DRAIN_GRACE_S
