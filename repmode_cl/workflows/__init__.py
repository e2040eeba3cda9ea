"""Train a base, add a structure, and compare methods to learn one.

Nothing is imported here: each function has the name of its module, and would hide the module.
"""
