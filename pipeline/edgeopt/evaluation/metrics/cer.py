"""Character error rate."""

from edgeopt.evaluation.metrics._error_rate import ErrorRate


class Cer(ErrorRate):
    """Edit operations per reference character, over the whole set; 0 is perfect, and it may exceed 1.

    Every token is a character. The operations are substitutions, insertions and deletions (Levenshtein 1966).
    Labels are ``n`` arrays of tokens, or padded ``[n, k]``. A predicted token that no symbol has is wrong.
    """
