"""Generative text classification: exact log-likelihoods under one language model per class.

The library under gencls, usable from a notebook without Ray. Importing it loads nothing heavy.
"""
