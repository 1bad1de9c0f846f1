"""data_prep/tokenizer.py: what goes in comes out, the end token, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep import tokenizer as module
from data_prep.tokenizer import (
    END_ID,
    END_TOKEN,
    encode_documents,
    load_tokenizer,
    tokenizer_bytes,
    train_tokenizer,
)
from verification.errors import FormatError, UsageError

TEXTS = [f"the cat {i} sat on the mat, and the dog {i * 7} ate the hat\n" * 3 for i in range(50)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def test_end_token_then_bytes_then_merges(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(END_TOKEN) == END_ID == 0
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    assert tokenizer.get_vocab_size() == 300
    assert max(len(t) for t, i in tokenizer.get_vocab().items() if 1 <= i <= 256) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), max_size=6))
def test_round_trip_of_any_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    pieces = list(encode_documents(tokenizer, texts))
    assert [tokenizer.decode(p[:-1].tolist(), skip_special_tokens=False) for p in pieces] == texts
    assert all(p[-1] == END_ID and not (p[:-1] == END_ID).any() and p.dtype == "int64" for p in pieces)


def test_a_document_cannot_forge_its_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(tokenizer_bytes(tokenizer))
    text = f"a{END_TOKEN}b"
    for each in (tokenizer, load_tokenizer(tmp_path / "t.json")):
        (piece,) = encode_documents(each, [text])
        assert (piece == END_ID).sum() == 1
        assert each.decode(piece[:-1].tolist(), skip_special_tokens=False) == text


def test_batches_do_not_change_the_stream(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [p.tolist() for p in encode_documents(tokenizer, TEXTS)]
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 200)
    assert [p.tolist() for p in encode_documents(tokenizer, iter(TEXTS))] == whole
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 10**9)
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 7)
    assert [p.tolist() for p in encode_documents(tokenizer, iter(TEXTS))] == whole
    assert len(whole) == len(TEXTS)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["\n", "\n\n", " ", "\t", "the", "cat", "'s", "7", "é", ".", "\r\n", "  x"])))
def test_parts_of_a_long_document_give_the_same_tokens(tokenizer: Tokenizer, words: list[str]) -> None:
    document = "".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_CHARACTERS", 3)
        parts = list(module._parts(document))
        pieces = [p.tolist() for p in encode_documents(tokenizer, [document])]
        trained = tokenizer_bytes(train_tokenizer([document * 50, *TEXTS], 290))
    assert "".join(text for text, _ in parts) == document
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
    assert [i for piece in pieces for i in piece] == [*tokenizer.encode(document).ids, END_ID]
    assert trained == tokenizer_bytes(train_tokenizer([document * 50, *TEXTS], 290))


def test_a_long_document_is_cut_before_white_space() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART_CHARACTERS", 2)
        assert list(module._parts("abc d\n\n ef gh")) == [
            *(("abc", False), (" d", False), ("\n\n ef", False), (" gh", True)),
        ]
        assert list(module._parts("x" * 99)) == [("x" * 99, True)]


def test_same_documents_same_bytes_in_another_process(tokenizer: Tokenizer) -> None:
    code = (
        "import sys, json, hashlib\nfrom data_prep.tokenizer import train_tokenizer, tokenizer_bytes\n"
        "t = train_tokenizer(json.load(sys.stdin), 300)\n"
        "print(hashlib.sha256(tokenizer_bytes(t)).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.strip() == hashlib.sha256(tokenizer_bytes(tokenizer)).hexdigest()


def test_loads_what_it_wrote(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(tokenizer_bytes(tokenizer))
    loaded = load_tokenizer(tmp_path / "t.json")
    assert tokenizer_bytes(loaded) == tokenizer_bytes(tokenizer)
    assert [p.tolist() for p in encode_documents(loaded, TEXTS[:3])] == [
        p.tolist() for p in encode_documents(tokenizer, TEXTS[:3])
    ]


def test_truncation_and_padding_of_a_file_are_ignored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cut = Tokenizer.from_str(tokenizer_bytes(tokenizer).decode())
    cut.enable_truncation(2)
    cut.enable_padding(length=9)
    (tmp_path / "t.json").write_bytes(tokenizer_bytes(cut))
    (piece,) = encode_documents(load_tokenizer(tmp_path / "t.json"), [TEXTS[0]])
    (expected,) = encode_documents(tokenizer, [TEXTS[0]])
    assert piece.tolist() == expected.tolist()


def test_too_large_a_vocabulary() -> None:
    message = r"larger than the training documents support; expected vocab_size up to 2\d\d, got 5000\."
    with pytest.raises(UsageError, match=message):
        train_tokenizer(["abc abc abc"], 5000)


def test_bad_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(
        UsageError, match=r"t\.json cannot be read; expected a tokenizer\.json, got No such file"
    ):
        load_tokenizer(path)
    for data in (b"", b"\xff", b"[]", b'{"model":{}}'):
        path.write_bytes(data)
        with pytest.raises(FormatError, match=r"t\.json is not a tokenizer"):
            load_tokenizer(path)
    path.write_bytes(tokenizer_bytes(tokenizer).replace(END_TOKEN.encode(), b"<|other|>"))
    with pytest.raises(FormatError, match=r"expected <\|endoftext\|> as id 0, got no such token\."):
        load_tokenizer(path)
