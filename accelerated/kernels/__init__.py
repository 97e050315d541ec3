"""The implementations of the operators: `triton/` and, in plain PyTorch, `eager/`.

They import nothing of the package but each other. Both folders hold one file per operator, with the
same functions.
"""
