"""What goes wrong by the user's hand, and the exit code of who was interrupted."""

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, got, expected, do this."""
