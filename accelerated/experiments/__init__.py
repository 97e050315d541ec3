"""Experiments: the paper's ablation, and the benchmark of operators and whole models."""
