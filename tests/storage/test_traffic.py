"""What a process moves between stores is counted, by where it came from and where it went."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from storage.location import locate
from storage.traffic import moved
from storage.transfer import copy_file


def test_bytes_that_are_moved_are_counted_by_the_schemes(tmp_path: Path):
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 12_345)
    # In parts, which are of 8 MiB at least.
    large.write_bytes(b"y" * (20 << 20))
    before = Counter(moved())
    for file in (small, large):
        copy_file(locate(str(file)), locate(f"memory://traffic/{file.name}"))
    copy_file(locate(str(small)), locate(str(tmp_path / "other")))
    assert Counter(moved()) - before == {("file", "memory"): 12_345 + (20 << 20), ("file", "file"): 12_345}
