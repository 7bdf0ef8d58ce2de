"""Mamba2 layers in plain PyTorch: for training on a CPU, and for models that transformers computes wrongly."""
