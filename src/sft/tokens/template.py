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
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from sft.chat_files import read_template
from sft.cli import InputError
from sft.tokens.row_kwargs import variables_read
from sft.tokens.shapes import texts_looked_for

MEMORY_BYTES = 1 << 30
CPU_SECONDS, TICKS = 15, 15  # one timer for many texts: to set it for each would cost more than a short one
LONGEST_TEXT = 1 << 24  # characters; longer text would exhaust the tokenizer
# Exceptions of template expressions on unexpected data.
TEMPLATE_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
DICT_METHODS = frozenset(dir(dict))
# Methods that neither change a value nor take a format.
READING_METHODS: dict[type, frozenset[str]] = {
    dict: frozenset(("get", "items", "keys", "values")),
    str: frozenset(
        ("endswith", "find", "lower", "lstrip", "replace", "rsplit", "rstrip", "split", "startswith", "strip")
    ),
}
# What a namespace mostly holds.
PLAIN = {bool, dict, float, int, list, str, type(None)}
TO_JSON = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps makes a new encoder for each value
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
    reads: frozenset[str]
    """Variables that it reads, also as `chat_template_kwargs.<name>`."""

    def __init__(self, path: Path, date: str | None = None) -> None:
        """Read and compile the template at `path` (sft.chat_files); `date`: what it writes as today's.

        Raises:  InputError: there is no such template, or it does not compile within the limits.
        """
        self.name = str(path)
        sandbox = _Sandbox()
        self._globals = dict(sandbox.globals)
        if date is not None:
            today = datetime.date.fromisoformat(date)
            self._globals |= {"strftime_now": today.strftime, "date_string": today.strftime(DATE_STRING)}
        try:
            self.source = read_template(path)
            with limited(self.name):
                self._template = sandbox.from_string(self.source)
                parsed = sandbox.parse(self.source)
                self.looks_for, self.reads = texts_looked_for(parsed), variables_read(parsed)
        except InputError:
            raise
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
        global _ticks
        _ticks = 0
        try:
            # As Template.render, without two walks through a ChainMap of the globals.
            template, known = self._template, {**self._globals, **variables}
            context = jinja2.runtime.new_context(template.environment, None, template.blocks, known, True, None, None)
            text = "".join(template.root_render_func(context))
        except TEMPLATE_FAULTS as error:
            raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error
        if len(text) > LONGEST_TEXT:
            raise _ExhaustedError(f"a text of {len(text):,} characters")
        return text


class _ExhaustedError(Exception):
    """A template exceeded a limit; no error that templates are expected to raise."""


_limits_hold = False
_ticks = 0  # of CPU time, since a text was begun


def limited(name: str) -> contextlib.AbstractContextManager[None]:
    """Limit memory and time of compiling and rendering until the block ends; blocks in it change nothing.

    Raises:  InputError: the template exceeded a limit; the message starts with `name`.
    """
    return contextlib.nullcontext() if _limits_hold else _limited(name)


@contextlib.contextmanager
def _limited(name: str) -> Iterator[None]:
    global _limits_hold, _ticks
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = _pages_in_use() * resource.getpagesize() + MEMORY_BYTES
    former = signal.signal(signal.SIGPROF, _count_tick)
    resource.setrlimit(resource.RLIMIT_AS, (bound if soft == resource.RLIM_INFINITY else min(soft, bound), hard))
    _limits_hold, _ticks = True, 0
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS / TICKS, CPU_SECONDS / TICKS)
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


def _count_tick(_signal: int, _frame: Any) -> None:
    """Count a tick of the timer; beyond TICKS raise at each, because Jinja's compiler swallows some errors."""
    global _ticks
    _ticks += 1
    if _ticks >= TICKS:
        raise _ExhaustedError(f"more than {CPU_SECONDS} s of CPU time for one text")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` blocks: accepted without effect, because the mask comes from rendering turns."""

    tags = {"generation"}  # noqa: RUF012 (the form that jinja2 prescribes)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Return the body unchanged."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Code(jinja2.compiler.CodeGenerator):
    """Python of a template in which `message.role` looks into a dict itself, without a call."""

    @jinja2.compiler.optimizeconst
    def visit_Getattr(self, node: jinja2.nodes.Getattr, frame: jinja2.compiler.Frame) -> None:  # noqa: N802 (as in jinja2)
        """Write the value of an attribute."""
        if node.attr in DICT_METHODS:
            super().visit_Getattr(node, frame)
            return
        name = self.temporary_identifier()
        self.write(f"({name}[{node.attr!r}] if type({name} := ")
        self.visit(node.node, frame)
        self.write(f") is dict and {node.attr!r} in {name} else environment.getattr({name}, {node.attr!r}))")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of chat templates in `transformers`, without the clock and random choice."""

    code_generator_class = _Code

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        del self.filters["random"], self.globals["lipsum"]
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = jinja2.Undefined(
            hint=NO_CLOCK
        )  # not `defined`: some templates then use a fixed date

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `message.role`, `loop.first`, `content.strip`: the same as the sandbox, without its detours."""
        kind = type(obj)
        if kind is dict:
            if attribute not in DICT_METHODS:
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
            if attribute in READING_METHODS[dict]:
                return getattr(obj, attribute)
        elif (kind is jinja2.runtime.LoopContext and attribute in LOOP_VALUES) or (
            kind is str and attribute in READING_METHODS[str]
        ):
            return getattr(obj, attribute)
        elif kind is jinja2.utils.Namespace and attribute[:1] != "_":
            value = getattr(obj, attribute, NotImplemented)
            if type(value) in PLAIN:
                return value
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in jinja2)
        """Call a callable of the template; its own macros, and methods that only read, need no check."""
        kind = type(__obj)
        if kind is types.BuiltinMethodType and __obj.__name__ in READING_METHODS.get(type(__obj.__self__), ()):
            kwargs.pop("_loop_vars", None)  # added by the compiler for callables that take the context
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        if kind is jinja2.runtime.Macro:
            kwargs.pop("_loop_vars", None)
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
    if not ensure_ascii and indent is None and separators is None and not sort_keys:
        return TO_JSON(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
