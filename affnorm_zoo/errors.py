class UsageError(ValueError):
    """An error that the caller can fix; the message says what was given, what is wanted and what to do.

    Scripts print it as one line and exit with code 2.
    """
