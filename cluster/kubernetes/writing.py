"""Manifests as text, JSON or YAML in which every string is quoted, and as files, all or nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from cluster.kubernetes.workloads import Manifest
from runtime.core.errors import ConfigError

Format = Literal["yaml", "json"]

LISTING = ".tandem-render"
"""What we wrote into a folder, by checksum. Not .yaml or .json: kubectl would apply it."""

# Words that no reader of YAML takes for anything but a string, so that keys stay readable.
_PLAIN_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{2,}")
_WORDS = {"true", "false", "null", "yes", "off"}


class _Dumper(yaml.SafeDumper):
    """PyYAML leaves ``y``, ``1e3`` and ``0o17`` unquoted, and kubectl reads them as other types."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


def _mapping(dumper: _Dumper, mapping: dict[str, Any]) -> yaml.MappingNode:
    pairs = [(_key(dumper, key), dumper.represent_data(value)) for key, value in mapping.items()]
    return yaml.MappingNode("tag:yaml.org,2002:map", pairs, flow_style=not pairs)


def _key(dumper: _Dumper, key: str) -> yaml.ScalarNode:
    is_plain = _PLAIN_KEY.fullmatch(key) and key.lower() not in _WORDS
    return yaml.ScalarNode("tag:yaml.org,2002:str", key) if is_plain else _string(dumper, key)


_Dumper.add_representer(str, _string)
_Dumper.add_representer(dict, _mapping)


def text_of(manifests: Iterable[Manifest], how: Format = "yaml") -> str:
    """All objects as one text that kubectl takes: YAML's documents, or a List in JSON."""
    if how == "json":
        return _text_of_one({"apiVersion": "v1", "kind": "List", "items": list(manifests)}, "json")
    return "".join(f"---\n{_text_of_one(manifest, how)}" for manifest in manifests)


def file_names(manifests: Sequence[Manifest], how: Format = "yaml") -> list[str]:
    """``07-rayservice-lab-serve.yaml`` and so on: in the order of the alphabet they are in apply order."""
    width = max(2, len(str(len(manifests))))
    return [
        f"{number:0{width}}-{one['kind'].lower()}-{one['metadata']['name']}.{how}"
        for number, one in enumerate(manifests, 1)
    ]


def write_folder(manifests: Sequence[Manifest], folder: Path, how: Format = "yaml") -> list[Path]:
    """Write one file for each object; what an earlier call wrote there is replaced.

    Returns:
        The files, in apply order.

    Raises:
        ConfigError: the folder holds something that is not ours or was changed since, or cannot be written;
            nothing is changed then.
    """
    _check_is_ours(folder)
    names = file_names(manifests, how)
    texts = dict(zip(names, (_text_of_one(manifest, how) for manifest in manifests), strict=True))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            _fill(fresh, texts)
            _swap(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror}). Choose a folder that you may write."
        ) from None
    return [folder / name for name in names]


def _text_of_one(manifest: Manifest, how: Format) -> str:
    if how == "json":
        return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    return yaml.dump(
        manifest, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=1 << 30
    )


def _fill(folder: Path, texts: dict[str, str]) -> None:
    folder.chmod(0o755)  # mkdtemp's is for its owner alone
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / LISTING).write_text("".join(f"{_checksum(folder / name)}  {name}\n" for name in texts))


def _swap(fresh: Path, folder: Path) -> None:
    """``fresh`` becomes ``folder``; where that fails the old one is back."""
    if not folder.exists():
        fresh.rename(folder)
        return
    old = fresh.with_name(f"{fresh.name}-old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _check_is_ours(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is no folder. Name a new one, or one that was rendered before.")
    ours = _listed(folder)
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        if path.name == LISTING and ours:
            continue
        if path.is_dir() or path.name not in ours:
            raise ConfigError(
                f"{folder}: holds {path.name}, which tandem render did not write and would delete. Name an "
                "empty folder, or move it away."
            )
        if _checksum(path) != ours[path.name]:
            raise ConfigError(
                f"{path}: was changed since tandem render wrote it, and would be replaced. Put the change "
                "into the specs, or move the file away."
            )


def _listed(folder: Path) -> dict[str, str]:
    """Checksums by the name of the file."""
    listing = folder / LISTING
    lines = listing.read_text().splitlines() if listing.is_file() else []
    return {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
