"""Template: what a chat template sees, what it cannot reach, and its limits."""

import resource
import signal

import jinja2
import pytest

from sft.cli import InputError
from sft.tokens import template as module
from sft.tokens.template import Template, limited

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"


def make(folder, source):
    path = folder / "t.jinja"
    path.write_text(source, encoding="utf-8")
    return Template(path)


def render(folder, source, **variables):
    compiled = make(folder, source)
    with limited("t.jinja"):
        return compiled.render(**variables)


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(module, "MEMORY_BYTES", 64 << 20)
    monkeypatch.setattr(module, "CPU_SECONDS", 0.2)
    monkeypatch.setattr(module, "LONGEST_TEXT", 1 << 20)


# --- What it sees -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),
        ("{{ {'é': ['<']} | tojson }}", '{"é": ["<"]}'),
        ("{{ {'b': 1, 'a': [1, 2]} | tojson(separators=(',', ':'), sort_keys=true) }}", '{"a":[1,2],"b":1}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("a{% generation %}b{% endgeneration %}c", "abc"),
        ("{% for k, v in {'x': 1} | items %}{{ k }}{{ v }}{% endfor %}", "x1"),
        ("{{ strftime_now('%Y') if strftime_now is defined else 'a fixed date' }}", "a fixed date"),
    ],
)
def test_a_template_sees_what_transformers_provides(tmp_path, source, expected):
    assert render(tmp_path, source) == expected


def test_a_template_that_raises_says_why(tmp_path):
    with pytest.raises(jinja2.TemplateError, match="roles must alternate"):
        render(tmp_path, "{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{{ 1 / 0 }}", "{{ messages[0].content.x.y }}", "{{ 'a' + 1 }}", "{{ nothing() }}"])
def test_a_fault_in_an_expression_is_a_template_error(tmp_path, source):
    with pytest.raises(jinja2.TemplateError):
        render(tmp_path, source, messages=[{"content": "a"}])


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("a\n{% for", r"t\.jinja:2: "),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", r"t\.jinja: .*(RecursionError|SyntaxError|MemoryError)"),
        ("{{ [1, 2] | random }}", r"t\.jinja:1: .*'random'"),
        ("{{ lipsum() }}", "'lipsum'"),
    ],
)
def test_a_template_that_does_not_compile_or_is_random_is_an_error(tmp_path, source, fault):
    with pytest.raises((InputError, jinja2.TemplateError), match=fault):
        render(tmp_path, source)


def test_a_template_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"t\.jinja: .*UnicodeDecodeError"):
        Template(tmp_path / "t.jinja")


# --- What it cannot reach -------------------------------------------------------------------------------

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ joiner.__call__.__func__ }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ messages.__reduce_ex__(2) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(content='x') }}",
    "{{ messages[0].pop('content') }}",
    "{{ messages[0].clear() }}",
    "{% set messages[0].content = 'x' %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends 'x' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ __import__('os') }}",
    "{{ config }}{{ request.application }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(tmp_path, source):
    messages = [{"role": "user", "content": "a"}]
    try:
        shown = render(tmp_path, source, messages=messages)
    except (InputError, jinja2.TemplateError):
        shown = ""
    assert messages == [{"role": "user", "content": "a"}]
    assert "root:" not in shown
    assert [leak for leak in ("object at", "<class", "__builtins__") if leak in shown] == []


# --- Limits ------------------------------------------------------------------------------

EXHAUSTING = [
    ("memory", "{{ 'a' * n * 10000000000 }}"),
    ("memory", "{{ 'a' * 10000000000 }}"),
    ("memory", "{{ [0] * n * 1000000000 }}"),
    ("memory", "{{ '%99999999999d' % n }}"),
    ("memory", "{{ 'a'.ljust(n * 10000000000) }}"),
    ("memory", "{{ ('a' * n * 10000000).replace('a', 'aaaaaaaaaaaaaaaa') }}"),
    (
        "memory",
        "{% set s = namespace(s='aa') %}{% for i in range(90) %}{% set s.s = s.s ~ s.s %}{% endfor %}",
    ),
    ("CPU time", "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"),
    ("CPU time", "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}"),
    ("CPU time", "{% for i in range(99999) %}{% set x = ('a' * 100000).count('b') %}{% endfor %}"),
    ("CPU time", "{{ ('a ' * n * 1000000) | wordwrap(1) | length }}"),
    ("CPU time", "{{ (n ** 99999999) % 7 }}"),
    ("CPU time", "{{ " + "~".join(["1"] * 150_000) + " }}"),
    ("characters", "{{ 'a' * n * 1000000 }}"),
]


SMALL = {
    "memory": ("MEMORY_BYTES", 64 << 20),
    "CPU time": ("CPU_SECONDS", 0.2),
    "characters": ("LONGEST_TEXT", 1 << 20),
}


@pytest.mark.parametrize(("limit", "source"), EXHAUSTING)
def test_a_template_that_exhausts_a_limit_ends_in_one_clear_error(tmp_path, monkeypatch, limit, source):
    """Only one limit is small: which of two small ones is exceeded first would depend on the machine."""
    monkeypatch.setattr(module, *SMALL[limit])
    with pytest.raises(InputError, match=rf"t\.jinja: .*{limit}.*prep\.template"):
        render(tmp_path, source, n=3)


def test_endless_recursion_is_a_template_error(tmp_path):
    with pytest.raises(jinja2.TemplateError, match="RecursionError"):
        render(tmp_path, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


def test_the_limits_end_with_the_block(tmp_path, small_limits):
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    for _ in range(2):
        with pytest.raises(InputError):
            render(tmp_path, "{{ 'a' * 10000000000 }}")
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    assert len(bytearray(128 << 20)) == 128 << 20


def test_the_time_limit_restarts_with_each_text(tmp_path, small_limits):
    compiled = make(tmp_path, "{% for i in range(n) %}{% for j in range(900) %}{% endfor %}{% endfor %}")

    def render_many(times, n):
        with limited("t.jinja"):
            for _ in range(times):
                compiled.render(n=n)

    render_many(30, n=300)  # each takes a part of the limit, all of them several times as much
    with pytest.raises(InputError, match="CPU time"):
        render_many(1, n=30_000)


def test_without_limits_no_time_is_measured(tmp_path):
    assert make(tmp_path, "a").render() == "a"
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


LOOP = "{% for m in n %}BODY{% endfor %}"
MACRO = "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"


@pytest.mark.parametrize(
    "source",
    [
        LOOP.replace("BODY", "{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.previtem }}{{ loop.nextitem }}"),
        LOOP.replace("BODY", "{{ loop.cycle('a', 'b') }}{{ loop.changed(m) }}{{ loop.nothing is defined }}"),
        "{% for m in n recursive %}{{ loop.depth }}{% if m is iterable %}{{ loop(m) }}{% endif %}{% endfor %}",
        MACRO + "{{ f(1) }}{{ f(1, b=3, c=4) }}{{ f(1, 2, 3) }}",
        "{% macro f() %}<{{ caller('x') }}>{% endmacro %}"
        + LOOP.replace("BODY", "{% call(v) f() %}{{ v }}{{ m }}{% endcall %}"),
        LOOP.replace("BODY", "{% macro f() %}{{ m }}{% endmacro %}{{ f() }}"),
        "{% set d = {'items': 1, 'a': 2} %}{{ d.a }}{{ d.b is defined }}{{ d['items'] }}"
        "{% for k, v in d.items() %}{{ k }}{% endfor %}",
        "{% set d = {'a': {'b': ' c '}} %}{{ d.a.b.strip() }}{{ d.get('z', 1) }}{{ d.a.b.c is defined }}{{ d._a }}",
        LOOP.replace("BODY", "{{ ' a b'.split(' ') }}{{ 'ab'.replace('a', n | string) }}{{ '{0!r}'.format(m) }}"),
        "{% set s = namespace(a=' x ', f=range, get=1) %}{{ s.a.strip() }}{{ s.f(2) | list }}{{ s.get }}{{ s.b }}"
        "{% for k in 'ab' %}{% set s.a = s.a ~ k %}{% endfor %}{{ s.a }}",
        "{{ {'a': [1]} | tojson }}{{ n | tojson }}{{ '' | tojson }}",
    ],
)
def test_shortcuts_give_what_jinja_s_own_sandbox_gives(tmp_path, source):
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    expected = plain.from_string(source).render(n=[[1, 2], [2], [2]])
    assert expected
    assert render(tmp_path, source, n=[[1, 2], [2], [2]]) == expected


@pytest.mark.parametrize(
    "source", ["loop.__class__", "f.__class__", "f._func", "loop._iterator", "{}.__class__", "''.__class__"]
)
def test_shortcuts_lead_nowhere_that_the_sandbox_forbids(tmp_path, source):
    assert (
        render(tmp_path, f"{{% macro f() %}}{{% endmacro %}}{{% for m in [1] %}}<{{{{ {source} }}}}>{{% endfor %}}")
        == "<>"
    )
    with pytest.raises(jinja2.TemplateError, match="unsafe"):
        render(tmp_path, f"{{% macro f() %}}{{% endmacro %}}{{% for m in [1] %}}{{{{ {source}.x }}}}{{% endfor %}}")
