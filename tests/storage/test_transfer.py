"""Large files on their way: bounded memory, sums of parts, exact progress, and going on after a cut."""

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core.errors import Conflict, Denied, NotFound
from runtime.core.places import file_cache
from storage.crc import combine, from_base64, to_base64
from storage.location import Location, locate
from storage.transfer import copy_file, copy_folder
from tests.conftest import ROOT
from tests.servers.proxy import Fault, FaultProxy

MIB = 1 << 20
PART_BYTES = 8 * MIB
SIZE_BYTES = 4 * PART_BYTES + 12_345
PARTS = ["1", "2", "3", "4", "5"]
COPY = "import sys\nfrom storage.transfer import copy_file\nfrom storage.location import locate\n"


class Meter:
    """Adds up what a transfer tells."""

    def __init__(self) -> None:
        self.wanted = self.moved = 0
        self._lock = threading.Lock()

    def total(self, size_bytes: int) -> None:
        self.wanted += size_bytes

    def advance(self, size_bytes: int) -> None:
        with self._lock:
            self.moved += size_bytes


@pytest.fixture
def source(tmp_path: Path) -> Location:
    """A file of five parts."""
    (tmp_path / "source").write_bytes(os.urandom(SIZE_BYTES))
    return locate(str(tmp_path / "source"))


def journals() -> list[Path]:
    return list((file_cache() / "transfers").glob("*"))


def parts_sent(proxy: FaultProxy) -> list[str]:
    """Numbers of the parts that the server took, sorted; several times what came several times."""
    numbers = (
        re.search(r"partNumber=(\d+)", path)
        for method, path, what in proxy.requests
        if (method, what) == ("PUT", 200)
    )
    return sorted(number[1] for number in numbers if number)


def parts_fetched(proxy: FaultProxy) -> int:
    return sum((method, what) == ("GET", 206) for method, _, what in proxy.requests)


# sums


@settings(deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=6))
def test_the_sum_of_a_whole_follows_from_those_of_its_pieces(pieces: list[bytes]):
    whole = 0
    for piece in pieces:
        whole = combine(whole, crc32c.crc32c(piece), len(piece))
    assert whole == crc32c.crc32c(b"".join(pieces))
    assert from_base64(to_base64(whole)) == whole


def test_sums_are_combined_over_lengths_that_no_memory_holds():
    zeros, end = crc32c.crc32c(b"\0"), crc32c.crc32c(b"x")
    for power in range(40):
        zeros = combine(zeros, zeros, 1 << power)
    # Two tebibytes of zeros and one byte more, put together in either order.
    from_the_end = combine(zeros, combine(zeros, end, 1), (1 << 40) + 1)
    assert combine(combine(zeros, zeros, 1 << 40), end, 1) == from_the_end


# memory


# Not ru_maxrss: it never falls, and a child's begins with what its parent had when it was forked.
MEASURED_COPIES = """
import json, sys
from storage.location import locate
from storage.transfer import copy_file

def status_bytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

places = [locate(text) for text in sys.argv[1:]]
[place.stat() for place in places]
idle_bytes, peaks = status_bytes("VmRSS"), []
for source, target in zip(places[::2], places[1::2]):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    copy_file(source, target)
    peaks.append(status_bytes("VmHWM") - idle_bytes)
print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_the_file(place_of: Callable[[str], Location], tmp_path: Path):
    size_bytes = 400_000_000
    large, back, copy = (tmp_path / name for name in ("large", "back", "copy"))
    remote = place_of("gs") / "large"
    with large.open("wb") as file:
        file.truncate(size_bytes)
    copies = [large, remote, remote, back, large, copy]
    command = [sys.executable, "-c", MEASURED_COPIES, *map(str, copies)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert back.stat().st_size == copy.stat().st_size == size_bytes
    finally:
        remote.delete()
        for file in (back, copy):
            file.unlink(missing_ok=True)
    peaks = json.loads(done.stdout)
    assert len(peaks) == 3 and max(peaks) < 300_000_000, peaks


# progress


def test_progress_adds_up_exactly(place: Location, source: Location, tmp_path: Path):
    folder = locate(str(tmp_path / "folder"))
    for name, size_bytes in {"empty": 0, "small": 77, "sub/manifest.json": 5}.items():
        (folder / name).write_bytes(b"x" * size_bytes)
    copy_file(source, folder / "large")
    there, back = Meter(), Meter()
    copy_folder(folder, place, progress=there)
    copy_folder(place, locate(str(tmp_path / "back")), progress=back)
    expected = SIZE_BYTES + 82
    assert (there.wanted, there.moved, back.wanted, back.moved) == (expected,) * 4


# verified


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize("size_bytes", [100_000, SIZE_BYTES])
def test_a_bit_that_is_turned_on_the_way_of_a_folder_is_put_right(
    request: pytest.FixtureRequest,
    use_servers: Callable[..., None],
    tmp_path: Path,
    scheme: str,
    size_bytes: int,
):
    data = os.urandom(size_bytes)
    with FaultProxy(request.getfixturevalue(f"{scheme}_url")) as proxy:
        use_servers(**{scheme: proxy.url})
        place = locate(f"{scheme}://tandem-test/flipped-{size_bytes}")
        (tmp_path / "source").write_bytes(data)
        copy_file(locate(str(tmp_path / "source")), place / "x")
        flip = Fault("flip", method="GET", path=r"^/tandem-test/flipped-\d+/x", min_body_bytes=10_000)
        proxy.add(flip)
        copy_folder(place, locate(str(tmp_path / "copied")))
    assert flip.times == 0
    assert (tmp_path / "copied/x").read_bytes() == data


# going on


def test_an_upload_that_was_cut_goes_on_where_it_was(
    gs_proxy: FaultProxy, proxied_place: Location, source: Location
):
    cut = Fault("status", method="PUT", path="partNumber=3", status=403, code="AccessDenied")
    gs_proxy.add(cut)
    with pytest.raises(Denied):
        copy_file(source, proxied_place / "x")
    first, again = parts_sent(gs_proxy), Meter()
    assert cut.times == 0 and "3" not in first
    assert ((proxied_place / "x").stat(), len(journals())) == (None, 1)
    copy_file(source, proxied_place / "x", progress=again)
    assert parts_sent(gs_proxy) == PARTS
    assert (again.wanted, again.moved) == (SIZE_BYTES, SIZE_BYTES)
    assert (proxied_place / "x").read_bytes() == source.read_bytes()
    assert (journals(), list(proxied_place.backend.unfinished(proxied_place.key))) == ([], [])


def test_an_upload_to_s3_that_was_cut_goes_on_where_it_was(
    s3_url: str, use_servers: Callable[..., None], source: Location
):
    with FaultProxy(s3_url) as proxy:
        use_servers(s3=proxy.url)
        target = locate("s3://tandem-test/cut/x")
        proxy.add(Fault("status", method="PUT", path="partNumber=5", status=403, code="AccessDenied"))
        with pytest.raises(Denied):
            copy_file(source, target)
        assert target.stat() is None
        copy_file(source, target)
        assert parts_sent(proxy) == PARTS
        assert (target.read_bytes(), journals()) == (source.read_bytes(), [])


def test_a_download_that_was_cut_goes_on_where_it_was(
    gs_proxy: FaultProxy, proxied_place: Location, source: Location, tmp_path: Path
):
    target = locate(str(tmp_path / "target"))
    copy_file(source, proxied_place / "x")
    cut = Fault("status", method="GET", path="/x.generation", status=403, code="AccessDenied")
    gs_proxy.add(cut)
    with pytest.raises(Denied):
        copy_file(proxied_place / "x", target)
    assert (cut.times, target.stat(), len(journals())) == (0, None, 1)
    copy_file(proxied_place / "x", target)
    assert parts_fetched(gs_proxy) == len(PARTS)
    assert (target.read_bytes(), journals()) == (source.read_bytes(), [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_parts_that_this_disk_lost_are_fetched_again(
    gs_proxy: FaultProxy, proxied_place: Location, source: Location, tmp_path: Path
):
    target = locate(str(tmp_path / "target"))
    copy_file(source, proxied_place / "x")
    gs_proxy.add(Fault("status", method="GET", path="/x.generation", status=403, code="AccessDenied"))
    with pytest.raises(Denied):
        copy_file(proxied_place / "x", target)
    # As after a loss of power: the journal is there, the bytes are not.
    for half_done in tmp_path.glob(".target*"):
        half_done.write_bytes(bytes(SIZE_BYTES))
    copy_file(proxied_place / "x", target)
    assert target.read_bytes() == source.read_bytes()


def test_what_was_sent_of_another_version_does_not_count(
    gs_proxy: FaultProxy, proxied_place: Location, source: Location
):
    gs_proxy.add(Fault("status", method="PUT", path="partNumber=4", status=403, code="AccessDenied"))
    with pytest.raises(Denied):
        copy_file(source, proxied_place / "x")
    sent = parts_sent(gs_proxy)
    changed = os.urandom(SIZE_BYTES)
    source.write_bytes(changed)
    copy_file(source, proxied_place / "x")
    assert parts_sent(gs_proxy) == sorted(sent + PARTS)
    assert (proxied_place / "x").read_bytes() == changed


def test_a_source_that_changes_meanwhile_is_not_mixed(place: Location, source: Location, tmp_path: Path):
    copy_file(source, place / "x")

    class Changing(Meter):
        def total(self, size_bytes: int) -> None:
            (place / "x").write_bytes(b"x" * SIZE_BYTES)

    with pytest.raises((Conflict, NotFound)):
        copy_file(place / "x", locate(str(tmp_path / "target")), progress=Changing())
    assert not (tmp_path / "target").exists()


def test_a_journal_with_a_broken_end_is_believed_up_to_there(
    gs_proxy: FaultProxy, proxied_place: Location, source: Location
):
    gs_proxy.add(Fault("status", method="PUT", path="partNumber=5", status=403, code="AccessDenied"))
    with pytest.raises(Denied):
        copy_file(source, proxied_place / "x")
    [journal] = journals()
    lines = journal.read_text().splitlines()
    lost = str(json.loads(lines[-1])["part"])
    journal.write_text("\n".join(lines)[:-9])
    copy_file(source, proxied_place / "x")
    assert Counter(parts_sent(gs_proxy)) == Counter([*PARTS, lost])
    assert (proxied_place / "x").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_two_processes_at_the_same_transfer_both_succeed(
    place_of: Callable[[str], Location], source: Location, tmp_path: Path, direction: str
):
    remote = place_of("gs") / "x"
    origin, target = source, remote
    if direction == "down":
        copy_file(source, remote)
        origin, target = remote, locate(str(tmp_path / "back"))
    script = COPY + (
        "source, target = map(locate, sys.argv[1:])\n"
        "source.stat(), target.stat(), print(), sys.stdout.flush(), sys.stdin.read()\n"
        "copy_file(source, target)\n"
    )
    command = [sys.executable, "-c", script, origin.uri, target.uri]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, cwd=ROOT, **streams) for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    for process in processes:
        process.stdin.close()
    for process in processes:
        assert process.wait(60) == 0, process.stderr.read().decode()
        process.stdout.close(), process.stderr.close()
    assert target.read_bytes() == source.read_bytes()
    assert (journals(), list(remote.backend.unfinished(remote.key.rpartition("/")[0]))) == ([], [])
