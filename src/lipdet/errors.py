"""Exceptions whose message is all that a user is told; of bad input, a sentence to act on."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one sentence that names the file or value and says what to do. The command
    line prints it on stderr, without a traceback, and exits with status 2.
    """


class UnknownLipschitz(InputError):  # noqa: N818 - "unknown" is the finding, not a mistake
    """No bound is known for a module or operation.

    Args:
        reason: names it and says why.
        instead: what to use in its place, in the words of an audit; empty where nothing better is
            known than a layer that has a rule.
    """

    def __init__(self, reason: str, instead: str = "") -> None:
        super().__init__(reason)
        self.instead = instead


class NonFiniteLossError(Exception):
    """The loss or its gradient is not a number; the message names the step."""
