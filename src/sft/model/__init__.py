"""The model: base weights, Megatron-Bridge, the CPU substitute, generation, tool calls."""
