"""FSDP2 on CPUs, for tests alone. accelerate shards on GPUs only and leaves processes on CPUs plainly parallel without a word. With this folder
on PYTHONPATH, processes that its launcher wants to shard pass for GPUs. TrainingArguments reset accelerate's state, so every new one is changed."""
import os


def shim() -> None:
    from accelerate.state import DistributedType, PartialState
    make = PartialState.__init__
    def changed(self, *args, **kwargs):
        make(self, *args, **kwargs)
        sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
        if sharded and self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU: self._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState.__init__ = changed


if os.environ.get("ACCELERATE_USE_FSDP") == "true": shim()
