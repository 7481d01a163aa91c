"""The one error that a user is meant to read: what is wrong, where, and what would be right."""


class UserError(Exception):
    """A mistake in what the program was given. Jobs print it as one line, without a traceback."""
