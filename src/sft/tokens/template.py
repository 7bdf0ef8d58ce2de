"""Template: a chat template as a function from messages to text, in a sandbox with limits.

A template may come with a model from anywhere: it is untrusted code. The sandbox gives it access to its variables only,
and two limits protect the machine. While a template is compiled or rendered, this process may use MEMORY_BYTES more
address space, and CPU_SECONDS for each text; beyond that, the stage fails with an InputError. The limits hold in this
process, so rendering needs no second process and no copies.

A template sees what `transformers` provides, except what would give other text for the same data tomorrow: the clock
and random choice. If it writes today's date, it gets the date of `prep.date`. Linux, main thread only.
"""

import contextlib
import datetime
import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from sft.chat_files import read_template
from sft.cli import InputError
from sft.tokens.shapes import texts_looked_for

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 15
LONGEST_TEXT = 1 << 24  # characters; longer text would exhaust the tokenizer
# Exceptions of template expressions on unexpected data.
TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
DICT_METHODS = frozenset(dir(dict))
LOOP_VALUES = frozenset(
    ("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "depth0")
)
# A template that calls strftime_now without asking whether it is defined; the first words of jinja2's message.
NO_CLOCK = "the template writes today's date: set prep.date, such as '2026-01-31'"
DATE_STRING = "%d %b %Y"  # of `date_string`, as templates of Llama 3 write it


class Template:
    """A compiled chat template."""

    source: str
    """Its text."""
    looks_for: tuple[str, ...]
    """Texts that it looks for in messages."""

    def __init__(self, path: Path, date: str | None = None) -> None:
        """Read and compile the template at `path` (sft.chat_files); `date`: what it writes as today's.

        Raises:  InputError: there is no such template, or it does not compile within the limits.
        """
        self.name = str(path)
        self._variables: dict[str, Any] = {}
        sandbox = _Sandbox()
        if date is not None:
            today = datetime.date.fromisoformat(date)
            sandbox.globals["strftime_now"] = today.strftime
            self._variables["date_string"] = today.strftime(DATE_STRING)
        try:
            self.source = read_template(path)
            with limited(self.name):
                self._template = sandbox.from_string(self.source)
                self.looks_for = texts_looked_for(sandbox.parse(self.source))
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{path}:{error.lineno}: not a Jinja template: {error.message}") from error
        except (jinja2.TemplateError, SyntaxError, *TEMPLATE_FAULTS) as error:
            raise InputError(
                f"{path}: not a Jinja template: {type(error).__name__}: {error}"
            ) from error  # or not UTF-8

    def render(self, **variables: Any) -> str:
        """Return the rendered text; the limits apply inside `limited`.

        Raises:  jinja2.TemplateError: the template rejects the variables, or fails on them.
        """
        _grant_time()
        try:
            text = self._template.render(**self._variables, **variables)
        except TEMPLATE_FAULTS as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
        if len(text) > LONGEST_TEXT:
            raise _ExhaustedError(f"a text of {len(text):,} characters")
        return text


class _ExhaustedError(Exception):
    """A template exceeded a limit; no error that templates are expected to raise."""


_limits_hold = False


@contextlib.contextmanager
def limited(name: str) -> Iterator[None]:
    """Limit memory and time of compiling and rendering until the block ends; blocks in it change nothing.

    Raises:  InputError: the template exceeded a limit; the message starts with `name`.
    """
    global _limits_hold
    if _limits_hold:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = _pages_in_use() * resource.getpagesize() + MEMORY_BYTES
    former = signal.signal(signal.SIGPROF, _out_of_time)
    resource.setrlimit(resource.RLIMIT_AS, (bound if soft == resource.RLIM_INFINITY else min(soft, bound), hard))
    _limits_hold = True
    try:
        _grant_time()
        yield
    except (MemoryError, _ExhaustedError) as error:
        used = str(error) or f"more than {MEMORY_BYTES >> 20} MiB of memory"
        raise InputError(
            f"{name}: the chat template used {used}. It is broken or hostile. Choose another prep.template."
        ) from None
    finally:
        _limits_hold = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, former)


def _pages_in_use() -> int:
    """Return the address space of this process, in pages."""
    statm = os.open("/proc/self/statm", os.O_RDONLY)  # a Python file would take ten times as long, for each row
    try:
        return int(os.read(statm, 64).split()[0])
    finally:
        os.close(statm)


def _grant_time() -> None:
    """Restart the CPU time of one text, if it is limited."""
    if _limits_hold:  # otherwise the signal would end the process
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS, 1)  # then every second: Jinja's compiler swallows some errors


def _out_of_time(_signal: int, _frame: Any) -> None:
    raise _ExhaustedError(f"more than {CPU_SECONDS} s of CPU time for one text")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks: accepted without effect, because the mask comes from rendering turns."""

    tags = {"generation"}  # noqa: RUF012 (the form that jinja2 prescribes)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates in `transformers`, without the clock and random choice."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        del self.filters["random"], self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = jinja2.Undefined(
            hint=NO_CLOCK
        )  # not `defined`: some templates then use a fixed date

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `message.role`, `loop.first`: the same as the sandbox, without its detours, twice as fast."""
        if type(obj) is dict and attribute not in DICT_METHODS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if type(obj) is jinja2.runtime.LoopContext and attribute in LOOP_VALUES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in jinja2)
        """Call a callable of the template; its own macros need no check."""
        if type(__obj) is jinja2.runtime.Macro:
            kwargs.pop("_loop_vars", None)  # added by the compiler for callables that take the context
            kwargs.pop("_block_vars", None)
            return __obj(__context.eval_ctx, *args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
