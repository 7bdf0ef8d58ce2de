"""overrides: fields of `bridge` on small dataclasses; on Bridge's own ConfigContainer in test_config."""

import dataclasses
import enum
from typing import Any, Literal

import pytest
import torch

from sft.cli import InputError
from sft.training import overrides


class Backend(enum.Enum):
    flash = 1
    fused = 2


@dataclasses.dataclass
class Ddp:
    overlap_grad_reduce: bool = False
    bucket_size: int | None = None


@dataclasses.dataclass
class Optimizer:
    exp_avg_dtype: torch.dtype = torch.float32
    eps: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Graphs:
    warmup: int = 3
    scope: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.warmup >= 0, "warmup is negative"


@dataclasses.dataclass
class Window:
    size: int
    sink: int
    graphs: Graphs | None = None


@dataclasses.dataclass
class BaseModel:
    backend: Backend = Backend.fused
    dispatcher: Literal["alltoall", "flex"] = "alltoall"
    windows: "list[int] | None" = None
    window: tuple[int, int] | None = None
    backends: "list[Backend | None]" = dataclasses.field(default_factory=list)
    graphs: Graphs | None = None
    other_graphs: Graphs = dataclasses.field(default_factory=lambda: Graphs(warmup=7))
    sliding: Window | None = None


@dataclasses.dataclass
class Model(BaseModel):
    fusion: bool = True


@dataclasses.dataclass
class Overlap:
    tensor: bool
    _private: int = 0


@dataclasses.dataclass
class Container:
    model: BaseModel | Model = dataclasses.field(default_factory=Model)
    ddp: Ddp = dataclasses.field(default_factory=Ddp)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    overlap: Overlap | None = None
    env_vars: dict[str, str | int] = dataclasses.field(default_factory=dict)


def set_on(values: dict[str, Any]) -> Container:
    container = Container()
    overrides.apply(container, values)
    return container


def test_fields_are_set_in_their_own_types() -> None:
    found = set_on(
        {
            "ddp": {"overlap_grad_reduce": True, "bucket_size": None},
            "optimizer": {"exp_avg_dtype": "bfloat16", "eps": 1},
            "model": {"backend": "flash", "dispatcher": "flex", "windows": [1, 2], "fusion": False},
            "overlap": {"tensor": True},
            "env_vars": {"NCCL_DEBUG": "INFO"},
        }
    )
    assert found == Container(
        model=Model(Backend.flash, "flex", [1, 2], fusion=False),
        ddp=Ddp(overlap_grad_reduce=True),
        optimizer=Optimizer(torch.bfloat16, 1.0),
        overlap=Overlap(tensor=True),
        env_vars={"NCCL_DEBUG": "INFO"},
    )


def test_tuples_and_dataclasses_are_written_as_lists_and_their_fields() -> None:
    model = {
        "window": [128, 0],
        "backends": ["flash", None],
        "graphs": {"scope": ["attn", "mlp"]},
        "other_graphs": {"scope": ["attn"]},
    }
    found = set_on({"model": model})
    assert (found.model.window, found.model.backends) == ((128, 0), [Backend.flash, None])
    assert found.model.graphs == Graphs(3, ("attn", "mlp"))
    assert found.model.other_graphs == Graphs(7, ("attn",)), "the other fields keep their values"
    assert overrides.ignored(found, {"model": model}) == []
    found.model.other_graphs = Graphs(7, ())
    assert len(overrides.ignored(found, {"model": model})) == 1


def test_a_dataclass_with_required_fields_keeps_those_that_are_not_named() -> None:
    container, values = Container(), {"model": {"sliding": {"sink": 4, "graphs": {"warmup": 1}}}}
    container.model.sliding = Window(128, 0)
    overrides.check(values, overrides.section_classes(Container))
    overrides.apply(container, values)
    assert container.model.sliding == Window(128, 4, Graphs(1))
    assert overrides.ignored(container, values) == []
    with pytest.raises(InputError, match=r"bridge\.model\.sliding: .*'size'"):
        set_on(values)
    for wrong in ({"sink": "4"}, {"sinks": 4}, {"graphs": {"warmup": "1"}}):
        with pytest.raises(InputError, match=r"bridge\.model\.sliding: "):
            overrides.check({"model": {"sliding": wrong}}, overrides.section_classes(Container))


@pytest.mark.parametrize(
    ("values", "place", "expected"),
    [
        ({"ddp": {"overlap_grad_reduc": True}}, "ddp.overlap_grad_reduc", "Did you mean ddp.overlap_grad_reduce?"),
        ({"model": {"bucket_size": 1}}, "model.bucket_size", "Did you mean ddp.bucket_size?"),
        ({"ddl": {"bucket_size": 1}}, "ddl", "Did you mean ddp?"),
        ({"overlap": {"_private": 1}}, "overlap._private", "no such field"),
        ({"ddp": {"overlap_grad_reduce": "yes"}}, "ddp.overlap_grad_reduce", "found 'yes' (str)"),
        ({"ddp": {"overlap_grad_reduce": 1}}, "ddp.overlap_grad_reduce", "found 1 (int)"),
        ({"ddp": {"bucket_size": 1.5}}, "ddp.bucket_size", "found 1.5 (float)"),
        ({"optimizer": {"exp_avg_dtype": "bfloat17"}}, "optimizer.exp_avg_dtype", "found 'bfloat17' (str)"),
        ({"model": {"backend": "flush"}}, "model.backend", "found 'flush' (str)"),
        ({"model": {"dispatcher": "flax"}}, "model.dispatcher", "'alltoall' or 'flex'"),
        ({"model": {"windows": [1, "2"]}}, "model.windows", "found [1, '2'] (list)"),
        ({"model": {"backend": ["flash"]}}, "model.backend", "one of flash, fused; found ['flash'] (list)"),
        ({"model": {"backend": {"flash": 1}}}, "model.backend", "one of flash, fused"),
        ({"model": {"window": [1]}}, "model.window", "expected a value at index 1"),
        ({"model": {"window": [1, "2"]}}, "model.window", "valid integer"),
        ({"model": {"backends": ["flush"]}}, "model.backends", "one of flash, fused"),
        ({"model": {"graphs": {"warm": 1}}}, "model.graphs", "Graphs has no field 'warm', only scope, warmup"),
        ({"model": {"graphs": {"warmup": "1"}}}, "model.graphs", "valid integer"),
        ({"model": {"graphs": {"warmup": -1}}}, "model.graphs", "Graphs: warmup is negative"),
        ({"model": {"graphs": 3}}, "model.graphs", "expected the fields of Graphs"),
        ({"env_vars": {"A": [1]}}, "env_vars.A", "found [1] (list)"),
    ],
)
def test_what_the_classes_do_not_have_is_refused_with_its_place(
    values: dict[str, Any], place: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        set_on(values)
    assert str(caught.value).startswith(f"params.yaml: bridge.{place}: ")
    assert expected in str(caught.value)


def test_a_new_section_needs_its_required_fields() -> None:
    @dataclasses.dataclass
    class Two(Overlap):
        more: int = dataclasses.field(kw_only=True)

    container = dataclasses.make_dataclass("C", [("overlap", Two | None, None)])()
    with pytest.raises(InputError, match=r"bridge\.overlap: .*'more'"):
        overrides.apply(container, {"overlap": {"tensor": True}})


def test_a_value_that_is_replaced_later_is_named() -> None:
    values = {"ddp": {"overlap_grad_reduce": True}, "model": {"backend": "flash"}}
    container = set_on(values)
    assert overrides.ignored(container, values) == []
    container.ddp.overlap_grad_reduce = False
    assert [line.split(":")[1] for line in overrides.ignored(container, values)] == [" bridge.ddp.overlap_grad_reduce"]


def test_a_section_that_is_taken_away_later_is_named() -> None:
    values = {"overlap": {"tensor": True}}
    container = set_on(values)
    container.overlap = None
    assert len(overrides.ignored(container, values)) == 1
