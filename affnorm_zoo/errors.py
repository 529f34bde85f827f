class UsageError(ValueError):
    """Something the caller can put right; the message says what was wrong and what would be right.

    Scripts print it as one line and exit with code 2.
    """
