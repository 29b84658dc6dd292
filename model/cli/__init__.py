"""The command `shape-tokenizer`.

Heavy imports stand in the functions that need them, so that --help is there at once.
"""
