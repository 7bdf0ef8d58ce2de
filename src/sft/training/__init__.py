"""Fine-tuning with Megatron-Bridge, on GPUs and on a CPU."""
