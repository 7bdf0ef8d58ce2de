"""The sections of params.yaml that determine the data: fetch, filter, prep, pack.

A source is one entry: `uri` is an address with its pin, `read` says how its files are read, and the other keys are the
blend's. The stage that fetches a source sees its `uri`, the stage that filters it its `read`, and pack sees it all.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sft.params.base import Name, Positive, Section, Share

PIN = re.compile(r"#sha256=([0-9a-f]{64})$")
REVISION = re.compile(r"^(hf://(?:(?:datasets|models)/)?[^/@]+/[^/@]+)@([^/@]+)(?=/|$)")


class Download(Section):
    """Something published, and what pins it: the base model, and what every source is."""

    uri: str
    """Address with its pin: `pypi://name==version/path#sha256=...`, `hf://owner/name@<commit>/path`, `https://`,
    `s3://` and `file://` with `#sha256=...`."""
    license: str = "unspecified"
    """Licence, as reports and the model card show it."""
    origin: str = ""
    """Who made it and where it is described."""

    @field_validator("uri")
    @classmethod
    def _pin_is_readable(cls, uri: str) -> str:
        if "#" in uri and PIN.search(uri) is None:
            raise ValueError("after '#' expected sha256= and 64 hex digits, as in https://host/file#sha256=...")
        return uri

    @property
    def address(self) -> str:
        """The uri without its pin."""
        return REVISION.sub(r"\1", PIN.sub("", self.uri))

    @property
    def sha256(self) -> str | None:
        """Digest of the downloaded file (for pypi:// of the wheel)."""
        return found[1] if (found := PIN.search(self.uri)) else None

    @property
    def revision(self) -> str | None:
        """For hf:// the commit."""
        return found[2] if (found := REVISION.search(self.uri)) else None


class Read(Section):
    """How the files of a source are read; `read: openai` is short for `read: {format: openai}`."""

    format: str
    """How its rows become conversations: a name in sft.formats.chat_forms."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Our field -> theirs, where a source names them otherwise: {messages: conversation.turns}."""
    select: dict[str, list[str]] = Field(default_factory=dict)
    """Field of the row -> accepted values; rows with other values are rejected and counted."""
    max_rows: Positive | None = None
    """Rows taken, drawn by hash; null = all."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value


class Source(Download):
    """One source of the blend."""

    read: Read
    """How its files are read."""
    domain: str = "unspecified"
    """Data domain, as reports show it: one of sft.domains, or one of your own."""
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the blend, in trained tokens of the training split; for all sources or for none."""
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = None
    """How often the source is seen in an epoch of the blend: 0.5 = half of it, 2.0 = twice; null = 1."""

    @model_validator(mode="after")
    def _one_measure(self) -> "Source":
        if self.share is not None and self.epochs is not None:
            raise ValueError("share and epochs both say how much of the source is seen: give one")
        return self


class Benchmark(Download):
    """An evaluation set: what its items ask must not be trained on."""

    fields: dict[str, str] = Field(default_factory=dict)
    """Our field -> theirs, where a set names its question otherwise: {question: frage}."""


class Fetch(Section):
    """The base model, the evaluation sets and the blend."""

    model: Download
    benchmarks: dict[Name, Benchmark] = Field(default_factory=dict)
    """Evaluation sets whose items filter.contamination looks for."""
    sources: dict[Name, Source]

    @model_validator(mode="after")
    def _sources_are_named(self) -> "Fetch":
        if not self.sources:
            raise ValueError("fetch.sources is empty: name at least one source")
        for name, what in (("model", "the base model's"), ("benchmarks", "that of the evaluation sets")):
            if name in self.sources:
                raise ValueError(f"a source cannot be called {name!r}: that name is {what}")
        return self


class Repetition(Section):
    """When something comes too often in what a model wrote (sft.filters.repetition)."""

    min_letters: Positive
    """A stretch with fewer letters is no loop."""
    min_repeated_share: Share
    """Share of a stretch, in letters, that is made of repeated items."""
    line_repeats: Annotated[int, Field(ge=2)]
    """How often a line or sentence comes in a stretch; over all turns together, twice as often."""
    ngram: Positive
    """Words in a sequence."""
    ngram_repeats: Annotated[int, Field(ge=2)]
    """How often a sequence of words comes in a window."""
    window: Positive
    """Words in a window."""
    max_numbered_repeats: Annotated[int, Field(ge=2)]
    """How often a sequence of words comes that is the same but for its numbers."""
    max_char_run: Annotated[int, Field(ge=100)]
    """Length from which a few characters over and over, with nothing between, are a loop."""
    max_counting_run: Annotated[int, Field(ge=10)]
    """Numbers in a row that only count on, from which they are a loop."""
    turn_repeats: Annotated[int, Field(ge=2)]
    """How often the same message is answered by the same action."""


class Contamination(Section):
    """When a conversation holds an item of an evaluation set (sft.filters.contamination)."""

    n: Annotated[int, Field(ge=8)]
    """Words in an n-gram."""
    ratio: Annotated[float, Field(gt=0, le=1)]
    """Share of the n-grams of an item in one message from which the conversation is refused."""


class JudgeParams(Section):
    """A language model that judges every conversation that the rules keep (sft.filters.judge.judge)."""

    model: str | None
    """Its name at the endpoint that SFT_JUDGE_URL names; null = no judge."""
    rubric: str
    """What it is asked: a .md file in filters/."""
    min_score: Annotated[int, Field(ge=1, le=5)]
    """A conversation with a lower score is refused."""
    max_tokens: Positive
    """Where its answer is cut."""
    max_prompt_chars: Positive
    """A longer conversation is a failure, `too-long`: rubric and conversation, in characters."""
    on_failure: Literal["stop", "keep", "reject"]
    """What happens to a conversation without a verdict."""
    budget_requests: Positive | None
    budget_tokens: Positive | None
    """Most requests and tokens for a source in one run; what was judged until then stays judged."""


class Filter(Section):
    """Which rows are refused; a filter that is null or false is off."""

    max_rows: Positive | None
    """Rows taken per source, drawn by hash; null = all. A sampled run never takes an alias."""
    seed: int
    max_rejected: Share
    """Share of refused rows per source above which the stage stops."""
    max_chars: Positive
    """Longest conversation, in characters of all its messages."""
    max_message_chars: Positive | None
    """Longest message; null = as long as the conversation may be."""
    control_tokens: Literal["reject", "as_text", "escape"]
    """Control tokens of chat templates typed as text (sft.filters.control_tokens)."""
    repetition: Repetition | None
    """Loops in reasoning, answers, and the whole."""
    narrative: str | None
    """Patterns of political and nationalistic narrative: a .toml file in filters/."""
    consistency: bool
    """Actions against goals, tools and results, by rules."""
    near_duplicates: Share | None
    """Similarity from which a conversation repeats one of its source; null = equal ones only."""
    contamination: Contamination | None
    """Items of the evaluation sets of fetch.benchmarks."""
    judge: JudgeParams
    """A language model's judgement."""


class Reasoning(Section):
    """In which part of the conversations the model learns to reason less, or not at all."""

    strip: Share
    """Share of the conversations with reasoning that lose it."""
    truncate: Share
    """Share whose reasoning is cut to a budget."""
    budgets: list[Positive]
    """Budgets in tokens, one drawn for each such conversation."""
    seed: int

    @model_validator(mode="after")
    def _shares_fit(self) -> "Reasoning":
        if self.strip + self.truncate > 1:
            raise ValueError(f"strip {self.strip} + truncate {self.truncate} are more than all conversations")
        if self.truncate and not self.budgets:
            raise ValueError("truncate needs budgets: a list of numbers of tokens")
        return self


class Prep(Section):
    """Chat template, tokens, loss mask."""

    template: str
    """A .jinja file: ours, or models/base/chat_template.jinja, the one that the base model brings."""
    reasoning: Reasoning


class Pack(Section):
    """Splits and packed sequences."""

    pack_size: Annotated[int, Field(gt=0, le=1 << 24)]
    """Tokens in a pack."""
    over_length: Literal["drop", "error", "cut-at-turn"]
    """A sample longer than a pack: dropped and counted, an error, or cut behind the last whole turn that fits."""
    near_duplicates: Share | None
    """Similarity from which conversations of two sources are duplicates; null = equal ones only."""
    precedence: list[Name]
    """Sources that keep what others have too, the first wins; those not named follow by name."""
    validation: Annotated[float, Field(ge=0, lt=1)]
    test: Annotated[float, Field(ge=0, lt=1)]
    """Shares of conversations held out, per source."""
    pad_segments_to: Positive
    """What is read of a sample is padded to a multiple of this: lcm(2*CP if CP>1, CP*TP if sequence parallel)."""
    npy_max_tokens: int
    """Packed sets with more tokens than this are written as Parquet only."""
    seed: int

    @model_validator(mode="after")
    def _training_remains(self) -> "Pack":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on")
        return self
