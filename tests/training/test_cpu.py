import builtins
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sft.training import cpu

WIDTH = 8


def head_and_loss() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A head over 11 words, and 6 tokens of 2 sequences [s, b, hidden] with labels [b, s]."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        head, hidden = torch.nn.Linear(WIDTH, 11), torch.randn(6, 2, WIDTH)
        return head, hidden, torch.randint(11, (2, 6))


def losses(labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """As Megatron's compute_language_model_loss: labels [b, s], logits [s, b, words] -> [b, s]."""
    return F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")


def test_the_loss_and_its_gradient_are_those_of_all_logits_where_a_token_is_trained() -> None:
    head, hidden, labels = head_and_loss()
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0]])
    found = {}
    for name in ("all", "trained"):
        inputs = hidden.clone().requires_grad_()
        if name == "all":
            loss = losses(labels, head(inputs))
        else:
            marked = cpu.mark_untrained({"labels": labels, "loss_mask": mask})["labels"]
            loss = cpu.trained_loss(
                hidden_states=inputs,
                output_layer=lambda x, weight: (head(x), None),
                output_weight=None,
                labels=marked,
                compute_language_model_loss=losses,
                scale_logits=lambda logits: logits,
            )
        (loss * mask).sum().backward()
        found[name] = (loss * mask, inputs.grad)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert found["all"][0].count_nonzero() == 4


def test_only_the_named_importers_see_a_stub() -> None:
    real = builtins.__import__
    with cpu.import_stubs():
        inside: dict[str, object] = {"__name__": "megatron.bridge.peft.lora_layers"}
        exec("import transformer_engine.pytorch as te\nclass Linear(te.Linear): pass", inside)
        assert isinstance(inside["Linear"], type)
        with pytest.raises(ImportError):
            exec("import transformer_engine", {"__name__": "megatron.core.fusions"})
    assert builtins.__import__ is real
    assert "transformer_engine" not in sys.modules


def test_it_is_not_installed_on_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="GPU"):
        cpu.install()


@pytest.mark.pipeline
def test_what_is_sent_to_cuda_stays_on_the_cpu_and_a_second_install_changes_nothing() -> None:
    """In a process of its own: the redirect cannot be taken back."""
    program = """
import torch
from sft.training import cpu
cpu.install()
current_device = torch.cuda.current_device
cpu.install()
assert torch.cuda.current_device is current_device
places = [torch.zeros(2, device="cuda"), torch.ones(2).cuda(), torch.ones(2).to("cuda:0"),
          torch.arange(3, device=torch.cuda.current_device()), torch.nn.Linear(2, 2).cuda().weight,
          torch.empty(1, device=torch.device("cuda", 0))]
assert {str(tensor.device) for tensor in places} == {"cpu"}
assert torch.ones(2).type() == "torch.cuda.FloatTensor"
assert torch.ones(2).to(torch.float64).dtype == torch.float64
torch.cuda.manual_seed(3)
state = torch.cuda.get_rng_state()
first = torch.rand(4)
torch.cuda.set_rng_state(state)
assert torch.equal(first, torch.rand(4))
assert not torch.cuda.is_available()
from megatron.core.extensions.transformer_engine import HAVE_TE
assert not HAVE_TE
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


FREED = """
import ctypes
from sft.training import cpu

NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

class Blocks(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes, libc.mallinfo2.restype = ctypes.c_void_p, [ctypes.c_void_p], Blocks
libc.free(libc.malloc(16 << 20))  # from now on, glibc keeps blocks of this size in its heap
mapped = [libc.mallinfo2().hblks]
libc.malloc(8 << 20)
mapped.append(libc.mallinfo2().hblks)
cpu.return_freed_memory()
libc.malloc(8 << 20)
mapped.append(libc.mallinfo2().hblks)
print(mapped[1] - mapped[0], mapped[2] - mapped[1])
"""


def test_large_blocks_are_mapped_also_after_larger_ones_were_freed() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
