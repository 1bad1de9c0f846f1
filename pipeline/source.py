"""What software a run is made with: versions, and a digest over our own source.

Owns the two fields of the manifest. Does not decide what a difference means: a member refuses to work with
other source than the manifest names, a verifier only mentions it.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("cluster", "data_prep", "model", "pipeline", "verification")
LIBRARIES = ("barnraise", "blake3", "cryptography", "numpy", "ray", "tokenizers", "torch")


def software_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that touch a run's bytes; what is not installed is left out."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def source_digest() -> str:
    """`sha256:` over the Python source of all packages, equal wherever the same version is installed."""
    hashed = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            data = path.read_bytes()
            hashed.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return "sha256:" + hashed.hexdigest()
