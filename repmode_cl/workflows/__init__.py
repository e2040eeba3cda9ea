"""Train a base, add a structure, compare ways to learn one.

Each function has the name of its module, so nothing is imported here: it would hide the module.
"""
