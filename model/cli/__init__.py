"""The command `shape-tokenizer`: encode, decode, evaluate, export-vae and compare.

commands.py declares the arguments of all of them and imports nothing that takes time, so that --help and completions
are there at once. What a command does stands in the module of its name. Nothing else imports this package.
"""

from .commands import main

__all__ = ["main"]
