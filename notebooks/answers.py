"""Answers to the notebooks' exercises, each under the name of its module in `exercises/`.

A notebook never imports this file. The tests put every answer before its checker.
"""
