class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, got, expected, do this."""
