"""Bytes for the tests of level 1: records, keys, notes and logs, written from the protocol.

The other half of each test: it shares no code with the checker.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
from typing import Any

import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "example.org/barn"


def canon(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def b3(data: bytes) -> str:
    return "blake3:" + blake3.blake3(data).hexdigest()


def dom(domain: str, value: Any) -> str:
    return sha(domain.encode() + b"\x00" + canon(value))


def key_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"key of " + name.encode()).digest())


def public(name: str) -> bytes:
    return key_of(name).public_key().public_bytes_raw()


def key_text(name: str) -> str:
    return "ed25519:" + public(name).hex()


def leaf_hash(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def tree_over(hashes: list[bytes]) -> bytes:
    """RFC 6962 over leaf hashes, by its recursive definition."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_over(hashes[:k]) + tree_over(hashes[k:])).digest()


def tree_root(leaves: list[bytes]) -> bytes:
    return tree_over([leaf_hash(leaf) for leaf in leaves])


def hash_of(leaf: str) -> bytes:
    """The leaf hash that an element of a verdict's trace stands for."""
    return leaf_hash(bytes.fromhex(leaf[7:])) if leaf.startswith("sha256:") else bytes.fromhex(leaf)


def trace_root(trace: list[str]) -> str:
    return "sha256:" + tree_over([hash_of(leaf) for leaf in trace]).hex()


def opened_trace(trace: list[str], opened: list[int]) -> bytes:
    """A trace as it is served, with made-up losses and arrays in the leaves that are opened."""
    parts = [b"barnraise-trace-v1\n", len(trace).to_bytes(4, "little"), *map(hash_of, trace)]
    for index in opened:
        arrays = [b"weights %d" % index, b"state %d" % index]
        parts += [index.to_bytes(4, "little"), (1).to_bytes(4, "little"), (6_500_000).to_bytes(8, "little")]
        parts += [len(data).to_bytes(8, "little") + data for data in arrays]
    return b"".join(parts)


def sign_object(name: str, domain: str, value: Any) -> str:
    return base64.b64encode(key_of(name).sign(domain.encode() + b"\x00" + canon(value))).decode()


def witness_vkey(name: str, signer: str = "") -> str:
    """A witness's verifier key; its key is made of its name, or of `signer`."""
    key_id = hashlib.sha256(name.encode() + b"\n\x04" + public(signer or name)).digest()[:4]
    return f"{name}+{key_id.hex()}+{base64.b64encode(bytes([4]) + public(signer or name)).decode()}"


def cosignature(note: str, name: str, time: int = 1_700_000_000, signer: str = "") -> str:
    """The line that a witness adds to a note."""
    body = note[: note.index("\n\n") + 1]
    signature = key_of(signer or name).sign(f"cosignature/v1\ntime {time}\n{body}".encode())
    key_id = bytes.fromhex(witness_vkey(name, signer).split("+")[1])
    return f"— {name} {base64.b64encode(key_id + time.to_bytes(8, 'big') + signature).decode()}\n"


def cosigned(note: str, *names: str) -> str:
    return note + "".join(cosignature(note, name) for name in names)


@functools.cache
def _bls() -> tuple[Any, Any, Any]:
    limit = sys.getrecursionlimit()
    from py_ecc import optimized_bls12_381
    from py_ecc.bls import hash_to_curve, point_compression

    sys.setrecursionlimit(limit)
    return optimized_bls12_381, point_compression, hash_to_curve


def _beacon_secret(name: str) -> int:
    return int.from_bytes(hashlib.sha256(b"beacon of " + name.encode()).digest()) >> 8


@functools.cache
def beacon_key(name: str = "beacon") -> str:
    """A beacon's public key, in hex; its secret is made of its name."""
    curve, points, _ = _bls()
    return "{:096x}{:096x}".format(*points.compress_G2(curve.multiply(curve.G2, _beacon_secret(name))))


@functools.cache
def pulse_signature(number: int, name: str = "beacon") -> str:
    """The signature of a pulse of a beacon, in hex."""
    curve, points, hashing = _bls()
    message = hashlib.sha256(number.to_bytes(8, "big")).digest()
    domain = b"BLS_SIG_BLS12381G1_XMD:SHA-256_SSWU_RO_NUL_"
    point = curve.multiply(hashing.hash_to_G1(message, domain, hashlib.sha256), _beacon_secret(name))
    return f"{points.compress_G1(point):096x}"


def note_of(entries: list[bytes], signer: str = "coordinator", origin: str = ORIGIN) -> str:
    text = f"{origin}\n{len(entries)}\n{base64.b64encode(tree_root(entries)).decode()}\n"
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public(signer)).digest()[:4]
    blob = base64.b64encode(key_id + key_of(signer).sign(text.encode())).decode()
    return f"{text}\n— {origin} {blob}\n"


def envelope(kind: str, record: dict[str, Any], signer: str, subject: tuple[str, str]) -> bytes:
    payload = canon(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "predicate": record,
            "predicateType": f"barnraise:{kind}:v1",
            "subject": [{"digest": {"sha256": subject[1]}, "name": subject[0]}],
        }
    )
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    return canon(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [
                {"keyid": key_text(signer), "sig": base64.b64encode(key_of(signer).sign(pae)).decode()}
            ],
        }
    )


def draw_number(seed: str, label: str, n: int) -> int:
    counter = 0
    while True:
        digest = dom("barnraise/uniform/v1", {"counter": counter, "label": label, "seed": seed})
        x = int(digest[7:23], 16)
        if x < n * (2**64 // n):
            return x % n
        counter += 1


def vkey(name: str = "coordinator", origin: str = ORIGIN) -> str:
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + public(name)).digest()[:4]
    return f"{origin}+{key_id.hex()}+{base64.b64encode(b'' + bytes([1]) + public(name)).decode()}"


def log_files(entries: list[bytes], note: str = "") -> dict[str, bytes]:
    files = {"log/checkpoint": (note or note_of(entries)).encode()}
    level, hashes = 0, [hashlib.sha256(b"\x00" + e).digest() for e in entries]
    while hashes:
        for at in range(0, len(hashes), 256):
            part = hashes[at : at + 256]
            index = at // 256
            name = f"{index:03d}" if index < 1000 else f"x{index // 1000:03d}/{index % 1000:03d}"
            suffix = "" if len(part) == 256 else f".p/{len(part)}"
            files[f"log/tile/{level}/{name}{suffix}"] = b"".join(part)
            if level == 0:
                bundle = b"".join(len(e).to_bytes(2, "big") + e for e in entries[at : at + 256])
                files[f"log/tile/entries/{name}{suffix}"] = bundle
        full = [hashes[i : i + 256] for i in range(0, len(hashes) - 255, 256)]
        hashes = []
        for tile in full:
            part = tile
            while len(part) > 1:
                part = [
                    hashlib.sha256(b"\x01" + a + b).digest()
                    for a, b in zip(part[::2], part[1::2], strict=True)
                ]
            hashes.append(part[0])
        level += 1
    return files


def test_the_tree_of_rfc_6962() -> None:
    """Known answers: the empty tree, one empty leaf, eight leaves."""
    eight = "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
    leaves = [bytes.fromhex(leaf) for leaf in eight]
    assert tree_root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree_root(leaves[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert tree_root(leaves).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_names_of_tiles() -> None:
    names = set(log_files([b"entry"] * 600))
    assert names >= {
        "log/tile/0/001",
        "log/tile/0/002.p/88",
        "log/tile/entries/002.p/88",
        "log/tile/1/000.p/2",
    }
    assert len(names) == 8
