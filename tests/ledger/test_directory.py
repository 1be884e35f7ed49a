"""Bad data directories: each gets one clear sentence, and nothing is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ledger import limits
from ledger.engine import StartRefused, open_ledger
from ledger.rules import compile_file
from tests.ledger.conftest import PROGRAM
from tests.running import ROOT

GOLDEN_1 = ROOT / "tests" / "golden" / "base-v1.image"


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes; LMDB's lock file is memory shared between processes, not data."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb"}


def refusal(tmp_path: Path, *, untouched: Path | None = None, **arguments: object) -> str:
    """The sentence of a refused start; checks that nothing was written."""
    settings = {"data": tmp_path / "data", "program": PROGRAM, "members_max": 1000, "ids_max": 10_000,
                "tail_bytes": limits.TAIL_BYTES_MIN, **arguments}
    before = snapshot(untouched or tmp_path)
    with pytest.raises(StartRefused) as caught:
        open_ledger(settings.pop("data"), settings.pop("program"), **settings)
    assert snapshot(untouched or tmp_path) == before
    text = str(caught.value)
    assert "\n" not in text and len(text) < 600
    return text


@pytest.fixture
def closed(tmp_path: Path, small_ledger) -> Path:
    """A data directory with some entries, half of them drained, nobody in it."""
    ledger = small_ledger()
    ledger.handle.turn(10, True)
    ledger.handle.finish(False)
    ledger.handle.turn(10, True)
    ledger.close()
    return tmp_path / "data"


def test_second_process_on_the_directory(tmp_path: Path, small_ledger) -> None:
    small_ledger()
    assert "in use by another process" in refusal(tmp_path)


def test_format_of_another_version(closed: Path, tmp_path: Path) -> None:
    text = (closed / "FORMAT").read_text()
    (closed / "FORMAT").write_text(text.replace("daybook 1", "daybook 2"))
    assert "format 2" in refusal(tmp_path)


def test_format_that_is_not_ours(closed: Path, tmp_path: Path) -> None:
    (closed / "FORMAT").write_text("PG_VERSION 15\n")
    assert "not a format file of daybook" in refusal(tmp_path)


def test_directory_with_strangers_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "photo.jpg").write_bytes(b"x")
    assert "not empty (photo.jpg)" in refusal(tmp_path)
    assert os.listdir(tmp_path / "data") == ["photo.jpg"]


def test_missing_format_beside_a_journal(closed: Path, tmp_path: Path) -> None:
    (closed / "FORMAT").unlink()
    assert "no FORMAT file" in refusal(tmp_path)


def test_data_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")
    assert "is a file" in refusal(tmp_path)


def test_missing_identity_key(closed: Path, tmp_path: Path) -> None:
    (closed / "identity.key").unlink()
    assert "identity.key is missing" in refusal(tmp_path)


def test_wrong_identity_key(closed: Path, tmp_path: Path) -> None:
    (closed / "identity.key").write_text("00" * 16 + "\n")
    assert "not the key that this journal was begun with" in refusal(tmp_path)


def test_malformed_identity_key(closed: Path, tmp_path: Path) -> None:
    (closed / "identity.key").write_text("secret\n")
    assert "32 hex digits" in refusal(tmp_path)


def test_identity_key_that_others_can_read(closed: Path, tmp_path: Path) -> None:
    assert (closed / "identity.key").stat().st_mode & 0o777 == 0o600
    (closed / "identity.key").chmod(0o644)
    assert "chmod 600" in refusal(tmp_path)


def test_missing_tail(closed: Path, tmp_path: Path) -> None:
    (closed / "tail").rename(tmp_path / "elsewhere")
    assert "tail is missing" in refusal(tmp_path)


def test_tail_of_another_directory(closed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    open_ledger(other, PROGRAM, members_max=10, ids_max=100, tail_bytes=limits.TAIL_BYTES_MIN).close()
    (other / "tail").replace(closed / "tail")
    assert "belongs to data directory" in refusal(tmp_path)


def test_tail_with_a_bad_first_block(closed: Path, tmp_path: Path) -> None:
    with (closed / "tail").open("r+b") as file:
        file.seek(100)
        file.write(b"\1")
    assert "damaged in its first block" in refusal(tmp_path)


def test_tail_cut_off(closed: Path, tmp_path: Path) -> None:
    os.truncate(closed / "tail", limits.TAIL_BYTES_MIN - 4096)
    assert "was cut off or changed" in refusal(tmp_path)
    os.truncate(closed / "tail", 0)
    assert "damaged in its first block" in refusal(tmp_path)


def test_tail_directory_of_a_new_ledger(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path, tail=tmp_path / "nowhere")
    assert not (tmp_path / "data").exists()


def test_new_directory_with_somebody_elses_tail(closed: Path, tmp_path: Path) -> None:
    assert "exists already" in refusal(tmp_path, data=tmp_path / "new", tail=closed)


def test_missing_journal(closed: Path, tmp_path: Path) -> None:
    (closed / "journal" / "data.mdb").unlink()
    assert "is missing or cut off" in refusal(tmp_path)
    (closed / "journal" / "data.mdb").write_bytes(b"")
    assert "is missing or cut off" in refusal(tmp_path)


def test_journal_of_another_directory(closed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    open_ledger(other, PROGRAM, members_max=10, ids_max=100, tail_bytes=limits.TAIL_BYTES_MIN).close()
    (other / "journal" / "data.mdb").replace(closed / "journal" / "data.mdb")
    assert "not the one of this data directory" in refusal(tmp_path)


def opened_twice(closed: Path, *programs: Path) -> tuple[list[bytes], list[int], list[str]]:
    """Images in force, entries that each start wrote, and what was said."""
    images, sequences, said = [], [], []
    for program in programs:
        ledger = open_ledger(closed, program, members_max=1000, ids_max=10_000, warn=said.append)
        images.append(ledger.handle.program_image())
        ledger.stop(digest=False)
        sequences.append(ledger.head[0])
    return images, [after - before for before, after in zip(sequences, sequences[1:], strict=False)], said


def write_program(closed: Path, image: bytes, source: bytes) -> None:
    ledger = open_ledger(closed, PROGRAM, members_max=1000, ids_max=10_000)
    ledger.handle.seed(image, source)
    ledger.stop(digest=False)


def test_another_programme_is_published_and_not_started(closed: Path, tmp_path: Path) -> None:
    """What the journal runs stays when a file is named that was published once."""
    changed = tmp_path / "changed.yaml"
    changed.write_text(PROGRAM.read_text().replace("give: 5", "give: 7"))
    text = refusal(tmp_path, program=changed)
    assert "is another programme than the programme that the journal runs (version 1, hash" in text and "`daybook rules publish" in text
    write_program(closed, compile_file(changed).image, changed.read_bytes())
    images, wrote, said = opened_twice(closed, PROGRAM, changed, PROGRAM)
    assert images == [compile_file(changed).image] * 3
    assert (wrote, said) == ([0, 0], [])


def test_the_source_in_force_is_compiled_anew_where_that_makes_another_image(closed: Path, tmp_path: Path) -> None:
    seven, nine = (tmp_path / f"{number}.yaml" for number in (7, 9))
    for path in (seven, nine):
        path.write_text(PROGRAM.read_text().replace("give: 5", f"give: {path.stem}"))
    write_program(closed, compile_file(seven).image, nine.read_bytes())  # as another compiler might have made it
    images, wrote, said = opened_twice(closed, nine, nine)
    assert images == [compile_file(nine).image] * 2 and wrote == [0]
    assert len(said) == 1 and "it is the same source, with a newer compiler or newer zone data" in said[0]


@pytest.mark.parametrize(("old", "new", "wallets"), [
    ("- name: points", "- name: stars", "stars (scale 0)"), ("scale: 0", "scale: 1", "points (scale 1)"),
    ("- name: points", "- name: first\n  - name: points", "first (scale 0), points (scale 0)"),
])
def test_wallets_are_for_ever(closed: Path, tmp_path: Path, old: str, new: str, wallets: str) -> None:
    """Whatever follows an image of version 1, which no build runs any more."""
    write_program(closed, GOLDEN_1.read_bytes(), b"programme: as it was then")
    changed = tmp_path / "changed.yaml"
    changed.write_text(PROGRAM.read_text().replace("to_wallet: points", "").replace(old, new, 1).partition("\nburn:")[0])
    text = refusal(tmp_path, program=changed)
    assert f"must begin with points (scale 0), as there, but are {wallets};" in text
    images, wrote, said = opened_twice(closed, PROGRAM, PROGRAM)
    assert images == [compile_file(PROGRAM).image] * 2 and wrote == [0]
    assert len(said) == 1 and "an older compiler made it" in said[0]


def test_programme_with_a_mistake_touches_no_directory(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("programme: [\n")
    assert "bad.yaml" in refusal(tmp_path, program=tmp_path / "bad.yaml")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [{"members_max": 0}, {"ids_max": 0}, {"tail_bytes": 4096}, {"tail_bytes": limits.TAIL_BYTES_MIN + 1}])
def test_numbers_out_of_range(tmp_path: Path, arguments: dict[str, int]) -> None:
    assert "must be" in refusal(tmp_path, **arguments)
    assert not (tmp_path / "data").exists()


def test_clock_file_that_is_missing(closed: Path, tmp_path: Path) -> None:
    assert "clock file" in refusal(tmp_path, clock_file=tmp_path / "clock")


def test_unwritable_directory(tmp_path: Path) -> None:
    """As an unprivileged user in a child process: root may write everywhere."""
    data = tmp_path / "data"
    data.mkdir(mode=0o555)
    data.chmod(0o555)
    text = refusal_as_nobody(tmp_path, data)
    assert "cannot be written" in text and "give this user the right" in text
    assert os.listdir(data) == []


def refusal_as_nobody(tmp_path: Path, data: Path) -> str:
    for parent in (tmp_path, *tmp_path.parents[:3]):  # pytest's own: of the test, (the worker,) the run, the user
        if parent.stat().st_uid == os.geteuid() and parent.name.startswith(("test_", "popen-", "pytest-")):
            parent.chmod(parent.stat().st_mode | 0o055)
    out = tmp_path / "refusal"
    out.touch()
    out.chmod(0o666)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            open_ledger(data, PROGRAM, members_max=10, ids_max=100, tail_bytes=limits.TAIL_BYTES_MIN)
        except StartRefused as error:
            out.write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return out.read_text()


def test_interrupted_creation_is_begun_anew(tmp_path: Path, small_ledger) -> None:
    """Every prefix of a creation: the remains are ours, nothing was acknowledged from them."""
    made = tmp_path / "made"
    small_ledger(data=made).close()
    content = {name: (made / name).read_bytes() for name in ("FORMAT", "identity.key", "tail")}
    steps = [("FORMAT.new", content["FORMAT"][:7]), ("FORMAT.new", content["FORMAT"]), ("identity.key", content["identity.key"]),
             ("tail.new", b"\0" * 100_000), ("tail", content["tail"]), ("journal/data.mdb", b"half")]
    for count in range(1, len(steps) + 1):
        data = tmp_path / f"cut-{count}"
        (data / "journal").mkdir(parents=True) if count == len(steps) else data.mkdir()
        for name, raw in steps[:count]:
            (data / name).write_bytes(raw)
        ledger = small_ledger(data=data)
        assert ledger.recovered.created
        assert ledger.handle.sequence == 1
        assert sorted(os.listdir(data)) == ["FORMAT", "LOCK", "identity.key", "ids", "journal", "tail"]
