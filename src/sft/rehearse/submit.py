"""Run a stage that submits a job, in a process that can import nothing that reads a model.

    python -m sft.rehearse.submit sft.stages.train

The job reads models; the process that submits and follows it reads configs only, in a process of its own that ends.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODEL_READERS = ("megatron", "mamba_ssm", "causal_conv1d", "transformers", "safetensors")


class NoModelReaders(MetaPathFinder):
    """Refuses to import MODEL_READERS."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return None: other finders look for the module. Raises AssertionError: it reads models."""
        if name.partition(".")[0] in MODEL_READERS:
            raise AssertionError(f"the submitting process imports {name}, but only the job may read a model")
        return None


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit("error: expected a module: python -m sft.rehearse.submit sft.stages.train")
    sys.meta_path.insert(0, NoModelReaders())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
