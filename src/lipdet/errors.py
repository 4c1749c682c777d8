"""The one exception for bad input: its message is a sentence that a user can act on."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or value and says what to do. The command
    line prints it on stderr, without a traceback, and exits with status 2.
    """
