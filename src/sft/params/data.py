"""The sections of params.yaml that determine the data: fetch, filter, prep, pack.

A source is one entry: `uri` is its address with a pin, `read` describes how to read its files, and the other keys
belong to the blend. The fetch stage depends on `uri`, the filter stage on `read`, and pack on the whole entry.
"""

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sft.params.base import MAX_INT, Name, Positive, Section, Seed, Share

PIN = re.compile(r"#sha256=([0-9a-f]{64})$")
REVISION = re.compile(r"^(hf://(?:(?:datasets|models)/)?[^/@]+/[^/@]+)@([^/@]+)(?=/|$)")


class Download(Section):
    """Published files with a pin: the base model, an evaluation set, a source."""

    uri: str
    """Address with its pin: `hf://owner/name@<commit>/path`, `pypi://name==version/path#sha256=...`,
    `https://...#sha256=...`, `s3://...#sha256=...` or `file://path`."""
    license: str = "unspecified"
    """License, shown in reports and the model card."""
    origin: str = ""
    """Who made it and where it is described, shown in reports and the model card."""

    @field_validator("uri")
    @classmethod
    def _pin_is_complete(cls, uri: str) -> str:
        if any("#" in each and PIN.search(each) is None for each in uri.split("\n")):
            raise ValueError("expected sha256= and 64 hex digits after '#', as in https://host/file#sha256=...")
        return uri

    @property
    def each(self) -> list["Download"]:
        """One download for each address: a source may have a list of them."""
        return [Download(uri=uri) for uri in self.uri.split("\n")]

    @property
    def address(self) -> str:
        """The uri without its pin."""
        return REVISION.sub(r"\1", PIN.sub("", self.uri))

    @property
    def sha256(self) -> str | None:
        """Digest of the downloaded file; for pypi:// of the wheel."""
        return match[1] if (match := PIN.search(self.uri)) else None

    @property
    def revision(self) -> str | None:
        """Commit of a repository on the Hugging Face hub."""
        return match[2] if (match := REVISION.search(self.uri)) else None


class Read(Section):
    """How to read the files of a source. `read: openai` is short for `read: {format: openai}`."""

    format: str
    """Format of the rows: openai, sharegpt, alpaca, auto (decided on the first 1,000 rows), or a package that
    sft.formats.demo reads."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Our field -> name in the source, where they differ: `{messages: conversation.turns}`."""
    select: dict[str, list[str]] = Field(default_factory=dict)
    """Field of the row -> accepted values. Rows with other values are not taken, and counted."""
    split: str = "train"
    """Split to read, if a card (README.md) or the names of files or folders say one (data/train-*, test.jsonl); all =
    every file."""
    config: str | None = None
    """Config of a data set, as its card (README.md) names it; null = the only one, or the default one."""
    max_rows: Positive | None = None
    """Number of rows to take, drawn by the hash of their content; null = all."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value


class Source(Download):
    """One source of the blend. Its `uri` may be a list of addresses, each with its pin."""

    bytes: Positive | None = None
    """Size of its files, as the hub lists them at the commit of `uri`. `make pin` writes it."""
    read: Read
    """How to read its files: a format, or a mapping with the keys below."""
    domain: str = "unspecified"
    """Data domain, shown in reports: one of the recipe's (sft.domains), or your own."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the blend, in trained tokens (or samples: pack.unit) of the training split. For all sources or none."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """How often the source is seen per epoch of the blend: 0.5 = half of it, 2.0 = twice; null = once."""

    @field_validator("uri", mode="before")
    @classmethod
    def _addresses(cls, uri: Any) -> Any:
        """Return a list of addresses as one text, with an address in each line."""
        if not isinstance(uri, list):
            return uri
        if not uri or not all(isinstance(each, str) and "\n" not in each for each in uri):
            raise ValueError("expected an address, or a list of addresses")
        if repeated := sorted({each for each in uri if uri.count(each) > 1}):
            raise ValueError(f"the same address twice: {repeated[0]}")
        return "\n".join(uri)

    @model_validator(mode="after")
    def _share_or_epochs(self) -> "Source":
        if self.share is not None and self.epochs is not None:
            raise ValueError("share and epochs both set how much of the source is seen. Set one of them")
        return self


class Benchmark(Download):
    """An evaluation set. Conversations that contain one of its items are rejected."""

    fields: dict[str, str] = Field(default_factory=dict)
    """Our field -> name in the set, where they differ: `{question: frage}`."""


class Fetch(Section):
    """The base model, the evaluation sets and the sources of the blend."""

    model: Download
    """The base model: a folder in Hugging Face layout, or a GGUF file."""
    benchmarks: dict[Name, Benchmark] = Field(default_factory=dict)
    """Evaluation sets, by name, whose items filter.contamination looks for."""
    sources: dict[Name, Source]
    """Sources of the blend, by name."""

    @model_validator(mode="after")
    def _sources_have_free_names(self) -> "Fetch":
        if not self.sources:
            raise ValueError("fetch.sources is empty. Add at least one source")
        for name, owner in (("model", "the base model"), ("benchmarks", "the evaluation sets")):
            if name in self.sources:
                raise ValueError(f"fetch.sources: {name!r} is the name of {owner}. Choose another name for the source")
        return self


class Repetition(Section):
    """What counts as a loop in text that a model wrote (sft.filters.repetition)."""

    min_letters: Positive
    """Shortest passage that can be a loop, in letters."""
    min_repeated_share: Share
    """Share of a passage, in letters, that repeated lines or sequences make up in a loop."""
    line_repeats: Annotated[int, Field(ge=2, le=MAX_INT)]
    """Repeats of a line or sentence within a passage; over all turns together, twice as many."""
    ngram: Positive
    """Length of a repeated sequence, in words."""
    ngram_repeats: Annotated[int, Field(ge=2, le=MAX_INT)]
    """Repeats of such a sequence within a window."""
    window: Positive
    """Length of a window, in words."""
    max_numbered_repeats: Annotated[int, Field(ge=2, le=MAX_INT)]
    """Most repeats of a sequence of words that differs only in its numbers; in program code, four times as many."""
    max_char_run: Annotated[int, Field(ge=100, le=MAX_INT)]
    """Longest run of the same few characters without anything between them."""
    max_counting_run: Annotated[int, Field(ge=10, le=MAX_INT)]
    """Longest run of numbers that only count up or down."""
    turn_repeats: Annotated[int, Field(ge=2, le=MAX_INT)]
    """Repeats of the same action as the answer to the same message."""


class Contamination(Section):
    """When a conversation contains an item of an evaluation set (sft.filters.contamination)."""

    n: Annotated[int, Field(ge=8, le=MAX_INT)]
    """Length of an n-gram, in words."""
    ratio: Annotated[float, Field(gt=0, le=1)]
    """Share of an item's n-grams that one message must contain to be rejected."""


class JudgeParams(Section):
    """A language model that judges every conversation that the rules keep (sft.filters.judge)."""

    model: str | None
    """Its name at the endpoint in SFT_JUDGE_URL; null = no judge."""
    rubric: str
    """The question to the judge: a .md file in filters/."""
    min_score: Annotated[int, Field(ge=1, le=5)]
    """Lowest accepted score."""
    max_tokens: Positive
    """Longest answer of the judge, in tokens."""
    max_prompt_chars: Positive
    """Longest prompt, in characters of rubric and conversation. A longer one is a failure."""
    on_failure: Literal["stop", "keep", "reject"]
    """What to do with a conversation without a verdict."""
    budget_requests: Positive | None
    """Most requests per source in one run; null = no limit. Verdicts are kept for the next run."""
    budget_tokens: Positive | None
    """Most tokens per source in one run; null = no limit."""


class Filter(Section):
    """Which rows are rejected. A filter that is null or false is off."""

    max_rows: Positive | None
    """Number of rows to take per source, drawn by the hash of their content; null = all. Such a run never gets an alias
    in MLflow."""
    seed: Seed
    """Seed of the draw."""
    max_rejected: Share
    """Largest share of rejected rows per source. Above it the stage stops."""
    ends: Literal["context", "trim", "reject"]
    """Turns before the first user message and after the last answer: the first are kept as context, or both are cut, or
    the conversation is rejected."""
    control_tokens: Literal["reject", "as_text", "escape"]
    """What to do with control tokens of chat templates that are typed as text."""
    repetition: Repetition | None
    """Loops in reasoning, answers and whole conversations."""
    narrative: str | None
    """Political and nationalistic narrative: a .toml file of patterns in filters/."""
    consistency: bool
    """Actions that contradict goals, tools or results, by rules."""
    near_duplicates: Share | None
    """Similarity from which a conversation is a duplicate of an earlier one of its source; null = equal ones only."""
    contamination: Contamination | None
    """Items of the evaluation sets in fetch.benchmarks."""
    judge: JudgeParams
    """The judgment of a language model."""


class Reasoning(Section):
    """Conversations whose reasoning is removed or cut, so that the model learns to reason less or not at all."""

    strip: Share
    """Share of the conversations with reasoning that lose it."""
    truncate: Share
    """Share of the conversations with reasoning that is cut to a budget."""
    budgets: list[Positive]
    """Budgets in tokens; one is drawn for each such conversation."""
    seed: Seed
    """Seed of the draws."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "Reasoning":
        if self.strip + self.truncate > 1:
            raise ValueError(f"strip {self.strip} + truncate {self.truncate} is more than 1")
        if self.truncate and not self.budgets:
            raise ValueError("truncate needs budgets, a list of numbers of tokens")
        return self


class Prep(Section):
    """Chat template, tokens and loss mask."""

    template: str
    """Chat template: a .jinja file, or models/base/chat_template.jinja for the one of the base model."""
    stop_tokens: list[str]
    """Control tokens that end an answer, beside those that the base model and the template name."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")] | None
    """What the template writes as today's date, such as "2026-01-31"; null = a template that needs it is an error."""
    max_rejected: Share
    """Share of a source's conversations that may be rejected; if more are, the stage stops."""
    max_tokens: Positive | None = None
    """Longest sample, in tokens: a conversation with a longer one is rejected. null = no limit; those longer than a
    pack follow pack.over_length."""
    reasoning: Reasoning
    """How much of the reasoning is kept."""
    train_answers: Literal["all", "last"] = "all"
    """Which answers of a conversation are trained: all, or of those the last one only."""
    train_reasoning: Literal["all", "except-cut-ends", "none"] = "all"
    """Which reasoning is trained: all of it; all but what closes reasoning that was cut to a budget; or none. What is
    not trained is still shown."""

    @field_validator("date", mode="before")
    @classmethod
    def _is_quoted(cls, date: object) -> object:
        if isinstance(date, datetime.date):  # YAML reads it so; dvc.lock and reports keep text
            raise ValueError(f'expected a text: put it in quotes, "{date}"')
        return date

    @field_validator("date")
    @classmethod
    def _exists(cls, date: str | None) -> str | None:
        if date is not None:
            datetime.date.fromisoformat(date)
        return date


class Pack(Section):
    """Splits and packed sequences."""

    pack_size: Annotated[int, Field(gt=0, le=1 << 24)]
    """Length of a pack, in tokens."""
    over_length: Literal["window", "cut-at-turn", "drop", "error"]
    """What to do with a sample longer than a pack: window trains all of it in parts; cut-at-turn keeps all whole turns
    that fit."""
    max_windows: Positive | None = 16
    """The most windows of a conversation, drawn by hash, so that a long one is not all of a source; null = all."""
    near_duplicates: Share | None
    """Similarity from which conversations of two sources are duplicates; null = equal ones only."""
    max_epochs: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """With shares: how often the scarcest source is seen per epoch of the blend. The others follow from shares."""
    unit: Literal["tokens", "samples"] = "tokens"
    """What `share` and `epochs` of a source count: trained tokens, or samples."""
    exclude_licenses: list[str] = Field(default_factory=list)
    """Licenses whose conversations are not packed; that of a row, or else of its source, in any case of letters. A
    choice, "MIT OR GPL-3.0", is left out if all of it is excluded."""
    precedence: list[Name]
    """Sources that keep a duplicate, the first before the second; the others follow in the order of their names."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    """Share of the conversations of each source for validation."""
    test: Annotated[float, Field(ge=0, lt=1)]
    """Share of the conversations of each source for the evaluation."""
    pad_segments_to: Positive
    """Pad each sample without its last token to a multiple of this: lcm(2*CP if CP > 1, CP*TP if sequence parallel)."""
    npy_max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)]
    """Splits with more tokens are written as Parquet only, not as .npy too."""
    seed: Seed
    """Seed of splits and order."""

    @model_validator(mode="after")
    def _training_remains(self) -> "Pack":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self
