"""What data a run trains on, as the person writes it in a config file.

Owns the fields and their bounds. Does not own what a source means: data_prep/corpus.py parses it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DataConfig(BaseModel):
    """The `[data]` table of a config. Integers and text only, so it goes into the manifest as it is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    source: str = Field(
        default="python-stdlib",
        min_length=1,
        description=(
            "Where the documents come from: `python-stdlib` (the .py files of the running Python), "
            "`file:PATH` (a text, .jsonl or .parquet file, or a folder of them), or "
            "`hub:[OWNER/]NAME[:CONFIG][@REVISION]` (a data set of the Hugging Face Hub, streamed)."
        ),
    )
    split: str = Field(default="train", min_length=1, description="The split of a Hub data set to read.")
    text_field: str = Field(
        default="text",
        min_length=1,
        description="The column or key that holds the text in .jsonl, .parquet and Hub data.",
    )
    licence: str = Field(
        default="",
        max_length=200,
        description=(
            "The licence of the documents, written into the manifest; an SPDX expression is best. Empty: "
            "`PSF-2.0` for `python-stdlib`, `NOASSERTION` for anything else."
        ),
    )
    vocab_size: int = Field(
        default=2048,
        ge=257,
        le=1 << 20,
        description="Tokens in the vocabulary: the end of a document, 256 bytes, and merges.",
    )
    tokenizer: str = Field(
        default="",
        description=(
            "A tokenizer.json to use instead of training one, for instance that of an earlier data set; "
            "`vocab_size` must be its size. Empty: train one on the training documents."
        ),
    )
    context: int = Field(
        default=128,
        ge=1,
        le=1 << 16,
        description="Tokens the model predicts per window; a window holds one more.",
    )
    holdout_ppm: int = Field(
        default=50_000,
        ge=1,
        le=999_999,
        description="Share of the documents held out for validation, in parts per million.",
    )
    holdout_key: str = Field(
        default="barnraise",
        max_length=200,
        description=(
            "Keys the choice of the documents held out. The same key holds out the same documents whatever "
            "else changes; another key gives another split."
        ),
    )
    max_bytes: int = Field(
        default=0,
        ge=0,
        le=(1 << 53) - 1,
        description=(
            "Stop before the first document with which the distinct documents would take more bytes of "
            "UTF-8 than this; 0 reads everything."
        ),
    )
