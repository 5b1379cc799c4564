"""The one exception that a user's input can cause."""


class InputError(Exception):
    """The input is wrong. Its one-sentence message says what, where, found, expected and the remedy.

    Front doors print the message and exit with code 2; nothing has been written when it is raised.
    """
