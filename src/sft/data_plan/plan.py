"""plan: tokens, packs and epochs of a blend before it is downloaded, from range reads of a few percent of its bytes.

    make plan PROFILE=nemotron3-nano             profiles/nemotron3-nano.yaml
    make plan PROFILE=nemotron3-nano PACK=8192   with packs of 8,192 tokens
    make plan                                    params.yaml

--json prints JSON. Rows go through the filters, the chat template and the tokenizer of the param set; if models/base is
of another model, its tokenizer is downloaded. Duplicates are not found, evaluation sets are not looked for, and no
judge is asked, so a run keeps no more than this. Figures have 99 % intervals (sft.data_plan.row_sampling); lengths and
shares of rows are those of the rows seen: rows that are a tiny part of the bytes may be missing among them.
"""

import math
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sft.cli import InputError, add_json_option, at_least, echo, make_parser, print_facts, run_or_exit
from sft.data_plan.measure import BASE_FILES, FIGURES, Measured, load_chat, measure
from sft.data_plan.ranges import RemoteFile, lacks_digest, list_source
from sft.data_plan.row_sampling import DRAWS, Floats, exact_totals, interval
from sft.data_plan.samples import NotSampledError, Sampled, names_to_read, sample_file
from sft.files import read_json
from sft.formats.chat_forms import PACKAGES
from sft.hashing import value_digest
from sft.packing.bins import Int32s, plan_bins
from sft.packing.blend import describe_limits, plan_epochs
from sft.packing.splits import held_out_counts
from sft.params.check import Params, read
from sft.params.data import Download, Source
from sft.params.read import params_file
from sft.raw_folders import RawPaths
from sft.sources.download import fetch_files
from sft.sources.redact import redact
from sft.tokens.render import ChatTemplate

BASE = Path("models/base")
FETCHED = Path("reports/fetch/model.json")
TOKEN_BYTES = 5  # an id and its mask, in data/prepared and in data/packed
PACKED = slice(FIGURES.index("packed_tokens"), None)
BINNED = 50_000  # samples that are put into bins, to see how full packs are
QUANTILES = (0.1, 0.5, 0.9, 0.99)
SHOWN_REASONS = 4


@dataclass(frozen=True)
class Figure:
    """An estimate with its 99 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class SourcePlan:
    """What a source will be."""

    files: int
    bytes: int
    bytes_read: int
    bytes_left_out: int
    """Of large files that cannot be read in part: no figure counts them."""
    figures: dict[str, Figure]
    license: str
    row_licenses: dict[str, int]
    """Trained tokens of the rows seen, by the license that the rows state."""
    rows_seen: int
    lengths: dict[str, int]
    """Quantiles of the lengths of samples seen, in tokens."""
    not_selected: int
    """Rows seen that `read.select` does not take."""
    rejected: dict[str, int]
    """Rows seen that are rejected, by reason."""
    read: str
    not_read: str
    notes: list[str]
    epochs: float = 0.0
    """How often it is seen in an epoch of the blend; known when all sources were looked at."""


@dataclass(frozen=True)
class Plan:
    """What a blend will be."""

    params: str
    pack_size: int
    bytes: int
    bytes_read: int
    totals: dict[str, Figure]
    """FIGURES over all sources, every row once."""
    blend_tokens: Figure
    """Of the training split at the epochs of the sources, with padding."""
    blend_trained_tokens: Figure
    packs: Figure
    """As full as bins of samples drawn from the lengths seen."""
    limits: str
    """With shares: the scarcest sources, which limit the blend, and those of which a part is left."""
    train_iters: int
    """By `train.epochs`, if that is set."""
    epochs_of_run: float
    """How often these steps see the blend."""
    disk_bytes: float
    """Downloads, prepared and packed tokens."""
    sources: dict[str, SourcePlan]


class Seen(NamedTuple):
    """What was seen of a source."""

    draws: Floats
    """(1 + DRAWS, FIGURES), as sft.data_plan.row_sampling has them."""
    spread: Floats
    """(3, 3) Covariance of PACKED among the conversations that are kept."""
    lengths: Int32s
    """Of the samples and windows that pack keeps, in tokens."""
    plan: SourcePlan
    """Without `epochs`."""


def make_plan(profile: str | None, pack_size: int | None) -> Plan:
    """Return the plan of a profile, or of params.yaml.

    Raises:  InputError: a source without a commit or digest, or that does not answer; no tokenizer.
    """
    path = params_file(profile)
    params = read(path)
    if pack_size is not None:
        params = params.model_copy(update={"pack": params.pack.model_copy(update={"pack_size": pack_size})})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        listed = {name: _list(name, source, folder) for name, source in params.fetch.sources.items()}
        chat = load_chat(params.prep, _base(params, folder / "base"), fast=True)
        seen = {name: look_at(name, files, params, chat, folder / name) for name, files in listed.items()}
    return combine(str(path), params, seen)


def _list(name: str, source: Source, folder: Path) -> list[RemoteFile]:
    paths, found = RawPaths(), list[RemoteFile]()
    try:
        for number, each in enumerate(source.each, 1):
            wheel = folder / "wheels" / name / str(number)
            wheel.mkdir(parents=True)
            for file in list_source(each, wheel):
                file.name = paths.add(file.name, number, redact(each.address))
                found.append(file)
    except InputError as error:
        raise InputError(f"fetch.sources.{name}: {error}") from error
    return found


def _base(params: Params, folder: Path) -> Path:
    """Return a folder with the tokenizer of the base model. Raises InputError: there is none."""
    model, fetched = params.fetch.model, read_json(FETCHED) if FETCHED.exists() else {}
    pin = fetched.get("revision") or fetched.get("sha256")
    if BASE.is_dir() and (fetched.get("uri"), pin) == (redact(model.address), model.revision or model.sha256):
        return BASE
    if not model.address.startswith("hf://") or model.address.count("/") > 4:
        raise InputError(f"{BASE}: not found, or of another model than {model.address}. Run: dvc repro fetch-model")
    folder.mkdir()
    fetch_files(Download(uri=f"{model.uri}/{BASE_FILES}"), folder, is_model=True)
    return folder


def look_at(name: str, files: list[RemoteFile], params: Params, chat: ChatTemplate, folder: Path) -> Seen:
    """Read rows of a source and measure them. `folder` is made."""
    source = params.fetch.sources[name]
    folder.mkdir()
    is_package = source.read.format in PACKAGES
    chosen, line = names_to_read(files, source.read, folder)
    notes, samples, left_out = [f"not read: {line}"] if line and not is_package else [], list[Sampled](), 0
    for file in (file for file in files if is_package or file.name in chosen):
        try:
            samples.append(sample_file(file, folder, int(value_digest([name, file.name])[:8], 16)))
        except NotSampledError as error:
            notes.append(f"not in the figures: {error}")
            left_out += file.size
    notes += [f"{sample.name}: {sample.note}" for sample in samples if sample.note]
    measured = measure(folder, name, source.read, params, chat)
    notes += [f"fetch needs a digest: {redact(each.address)}#sha256=" for each in source.each if lacks_digest(each)]
    draws = _totals(samples, measured, params.pack.seed)
    most = min((limit for limit in (source.read.max_rows, params.filter.max_rows) if limit is not None), default=None)
    rows = draws[0, 0] * (1 - measured.not_selected / max(1, len(measured.figures)))
    if most is not None and rows > most:
        draws *= most / rows
        notes.append(f"{most:,} rows are drawn (max_rows)")
    lengths = np.array(measured.lengths or [0])
    kept = [figures[PACKED] for figures in measured.figures.values() if figures[FIGURES.index("kept")]]
    spread = np.cov(kept, rowvar=False) if len(kept) > 1 else np.zeros((3, 3))
    plan = SourcePlan(
        files=len(samples),
        bytes=sum(file.size for file in files),
        bytes_read=sum(sample.bytes_read for sample in samples),
        bytes_left_out=left_out,
        figures={figure: Figure(*interval(draws[:, number])) for number, figure in enumerate(FIGURES)},
        license=source.license,
        row_licenses={name: count for name, count in measured.licenses.most_common() if name},
        rows_seen=len(measured.figures),
        lengths={f"p{round(100 * share)}": int(np.quantile(lengths, share)) for share in QUANTILES},
        not_selected=measured.not_selected,
        rejected=dict(measured.rejected.most_common()),
        read=measured.read,
        not_read=measured.not_read,
        notes=notes,
    )
    return Seen(draws, spread, np.array(measured.packed, np.int32), plan)


def _totals(samples: list[Sampled], measured: Measured, seed: int) -> Floats:
    """Return draws of FIGURES over all files of a source."""
    if all(sample.rows_of_read is None for sample in samples):
        return exact_totals(sum(measured.figures.values(), np.zeros(len(FIGURES))).tolist())
    rows: dict[str, list[tuple[int, Floats]]] = {}
    for location, figures in measured.figures.items():
        file, _, number = location.rpartition(":")
        rows.setdefault(file, []).append((int(number) - 1, figures))
    draws = np.zeros((DRAWS + 1, len(FIGURES)))
    for sample in samples:
        by_read = np.zeros((len(sample.rows_of_read or [0]), len(FIGURES)))
        for row, figures in rows.get(sample.name, []):
            by_read[sample.read_of(row)] += figures
        draws += sample.totals(by_read, int(value_digest([seed, sample.name])[:8], 16))  # files are independent
    return draws


def combine(path: str, params: Params, seen: dict[str, Seen]) -> Plan:
    """Return the plan of sources that were looked at."""
    sources = params.fetch.sources
    epochs, blend = draw_blend(params, seen)
    totals = sum((source.draws for source in seen.values()), np.zeros(1))
    packs = blend[:, 0] / params.pack.pack_size / fullness(params, seen, epochs)
    plans = {name: replace(source.plan, epochs=epochs[name]) for name, source in seen.items()}
    train, bytes = params.training.with_steps(round(packs[0])).train, sum(plan.bytes for plan in plans.values())
    tokens = totals[0, FIGURES.index("tokens")] + blend[0, 0]
    return Plan(
        params=path,
        pack_size=params.pack.pack_size,
        bytes=bytes,
        bytes_read=sum(plan.bytes_read for plan in plans.values()),
        totals={name: Figure(*interval(totals[:, number])) for number, name in enumerate(FIGURES)},
        blend_tokens=Figure(*interval(blend[:, 0])),
        blend_trained_tokens=Figure(*interval(blend[:, 1])),
        packs=Figure(*interval(packs)),
        limits=describe_limits(epochs, params.pack.max_epochs) if any(s.share for s in sources.values()) else "",
        train_iters=train.steps,
        epochs_of_run=train.steps * train.global_batch_size / max(1.0, packs[0]),
        disk_bytes=bytes + TOKEN_BYTES * tokens,
        sources=plans,
    )


def draw_blend(params: Params, seen: dict[str, Seen]) -> tuple[dict[str, float], Floats]:
    """Return the epochs of each source, and draws of PACKED of the blend, (1 + DRAWS, 3).

    A draw has its own epochs, because the scarcest source limits all, and its own choice of conversations: those that
    are held out, and those that are drawn from a source that is used in part.
    """
    unit, random = 1 if params.pack.unit == "tokens" else 2, np.random.default_rng(params.pack.seed)
    training, kept = dict[str, Floats](), dict[str, int]()
    for name, source in seen.items():
        conversations = round(source.draws[0, FIGURES.index("kept")])
        held = sum(held_out_counts(conversations, params.pack.validation, params.pack.test).values())
        kept[name], share = conversations - held, 1 - held / max(1, conversations)
        training[name] = source.draws[:, PACKED] * share
        training[name][1:] += _deviations(random, source.spread * held * share)
        training[name][1:] = np.maximum(training[name][1:], np.sign(training[name][0]))
    sources = params.fetch.sources
    shares, given = ({name: getattr(each, of) for name, each in sources.items()} for of in ("share", "epochs"))
    without = {name for name, of in training.items() if params.pack.exclude_licenses and not of[0, unit]}
    planned = [
        plan_epochs(
            {name: round(of[draw, unit]) for name, of in training.items()},
            shares,
            given,
            params.pack.max_epochs,
            without,
        )
        for draw in range(DRAWS + 1)
    ]
    blend = np.zeros((DRAWS + 1, 3))
    for name, of in training.items():
        epochs = np.array([each[name] for each in planned])
        blend += of * epochs[:, None]
        part = epochs[1:] % 1  # as many units as asked for; their tokens are those of the drawn conversations
        per_unit = of[0] / max(1.0, of[0, unit])
        residual = np.eye(3) - np.outer(per_unit, np.eye(3)[unit])
        spread = residual @ seen[name].spread @ residual.T
        blend[1:] += _deviations(random, spread) * np.sqrt(kept[name] * part * (1 - part))[:, None]
    return planned[0], blend


def fullness(params: Params, seen: dict[str, Seen], epochs: dict[str, float]) -> float:
    """Return the share of packs that samples fill: that of bins of at most BINNED samples with the lengths seen."""
    counts = {name: source.draws[0, -1] * epochs[name] for name, source in seen.items() if len(source.lengths)}
    scale = min(1.0, BINNED / max(1.0, sum(counts.values())))
    random, drawn = np.random.default_rng(params.pack.seed), [np.empty(0, np.int32)]
    for name, count in counts.items():
        number, lengths = round(scale * count), seen[name].lengths
        drawn += [
            np.tile(lengths, number // len(lengths)),
            random.choice(lengths, number % len(lengths), replace=False),
        ]
    lengths = np.concatenate(drawn)
    bins = len(plan_bins(lengths, params.pack.pack_size))
    return float(lengths.sum() / (bins * params.pack.pack_size)) if bins else 1.0


def _deviations(random: np.random.Generator, covariance: Floats) -> Floats:
    """Return DRAWS vectors of this covariance and mean 0, (DRAWS, 3)."""
    return random.multivariate_normal(np.zeros(3), covariance, DRAWS, method="eigh")


def short(number: float) -> str:
    """Return a number with three digits.

    >>> short(1_234_567), short(950), short(12_345), short(2.5e10), short(999_999)
    ('1.23 M', '950', '12.3 k', '25.0 G', '1.00 M')
    """
    number = float(f"{number:.3g}")
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.{max(0, 2 - int(math.log10(number / unit)))}f}{name}"
    return f"{number:.0f}"


def with_interval(figure: Figure) -> str:
    """Return a figure as text."""
    if figure.low == figure.high:
        return f"{short(figure.estimate)} exactly"
    return f"{short(figure.estimate)} ({short(figure.low)} to {short(figure.high)})"


def lines(plan: Plan) -> list[str]:
    """Return the page of a plan, line by line."""
    totals, share = plan.totals, plan.bytes_read / max(1, plan.bytes)
    left_out = {name: source.bytes_left_out for name, source in plan.sources.items() if source.bytes_left_out}
    page = [
        f"plan       {plan.params}: {short(plan.bytes)}B, of which {short(plan.bytes_read)}B ({share:.1%}) were read; "
        "99 % intervals",
        *(
            [f"LEFT OUT   {short(sum(left_out.values()))}B of {', '.join(left_out)}: no figure counts them, see below"]
            if left_out
            else []
        ),
        f"tokens     {with_interval(totals['tokens'])} in {with_interval(totals['kept'])} kept rows of "
        f"{with_interval(totals['rows'])}",
        f"trained    {with_interval(totals['trained_tokens'])}",
        f"in packs   {with_interval(totals['packed_trained_tokens'])} of them: what pack.over_length keeps",
        f"windows    {with_interval(totals['windows'])} of {plan.pack_size:,} tokens hold all of it",
        f"blend      {with_interval(plan.blend_trained_tokens)} trained tokens in the training split",
        f"packs      {with_interval(plan.packs)}",
        *([f"           {plan.limits}"] if plan.limits else []),
        f"run        {plan.train_iters:,} steps see {plan.epochs_of_run:.3g} epochs of the blend",
        f"disk       {short(plan.disk_bytes)}B: downloads, prepared and packed tokens",
        "",
        f"{'source':22} {'bytes':>8} {'rows':>26} {'tokens':>26} {'in packs':>9} {'epochs':>7}  p50, p99 as seen",
    ]
    for name, source in plan.sources.items():
        figures = source.figures
        kept = figures["packed_trained_tokens"].estimate / max(1.0, figures["trained_tokens"].estimate)
        shown_rows, shown_tokens = (
            with_interval(figures[figure]) if source.files else "unknown" for figure in ("rows", "tokens")
        )
        page.append(
            f"{name:22} {short(source.bytes) + 'B':>8} {shown_rows:>26} {shown_tokens:>26} {kept:>9.0%} "
            f"{source.epochs:>7.3g}  {source.lengths['p50']:,}, {source.lengths['p99']:,}"
        )
    page.append("")
    licenses = Counter[str]()
    for source in plan.sources.values():
        licenses[source.license] += round(source.figures["packed_trained_tokens"].estimate * source.epochs)
    for license, tokens in licenses.most_common():
        page.append(f"license    {license}: {tokens / max(1, licenses.total()):.1%} of the trained tokens of the blend")
    for name, source in plan.sources.items():
        page += source_lines(name, source)
    return page


def source_lines(name: str, source: SourcePlan) -> list[str]:
    """Return the lines about the rows of a source: rejected, not read, licenses that rows state, notes."""
    rejected = sum(source.rejected.values())
    first = list(source.rejected.items())[:SHOWN_REASONS]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in first)
    more = [f"{rejected:,} of {source.rows_seen:,} rows seen are rejected: {reasons}"] if rejected else []
    if source.not_selected:
        more.append(f"{source.not_selected:,} of {source.rows_seen:,} rows seen are not selected")
    more += [f"not read: {source.not_read}"] if source.not_read else []
    if source.row_licenses:
        stated = ", ".join(f"{license} ({short(tokens)} tokens)" for license, tokens in source.row_licenses.items())
        more.append(f"licenses that rows state: {stated}")
    return [f"{name:22} {line}" for line in more + source.notes]


def show(plan: Plan) -> None:
    """Print a plan."""
    for line in lines(plan):
        echo(line.replace("[", r"\["))


if __name__ == "__main__":
    parser = make_parser(__name__, __doc__)
    parser.add_argument("--profile", metavar="NAME", help="a file of profiles/, without .yaml; default: params.yaml")
    parser.add_argument("--pack", type=at_least(1), metavar="TOKENS", help="tokens in a pack; default: pack.pack_size")
    add_json_option(parser)
    options = parser.parse_args()
    run_or_exit(lambda: print_facts(lambda: make_plan(options.profile, options.pack), show, as_json=options.json))
