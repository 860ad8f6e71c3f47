"""Pydantic's messages in the words of all others."""

import re

_WORDING = (
    (re.compile(r"^Value error, "), ""),
    (re.compile(r", unable to (parse|interpret) .*"), ""),
    (re.compile(r"Input should be a valid integer.*"), "Expected a whole number"),
    (re.compile(r"Input should be a valid boolean"), "Expected true or false"),
    (re.compile(r"Input should be a valid (tuple|list)"), "Expected a list"),
    (re.compile(r"Input should be a valid string"), "Expected text"),
    (re.compile(r"Input should be a valid (dictionary|mapping).*"), "Expected settings of the form key: value"),
    (re.compile(r"Input should be a valid dictionary or instance of .*"), "Expected settings of the form key: value"),
    (re.compile(r"Input should be a valid number"), "Expected a number"),
    (re.compile(r"Input should be (greater|less) "), r"Expected a number \1 "),
    (re.compile(r"Input should be "), "Expected "),
)


def in_words(message: str) -> str:
    """What was expected, for example ``Expected a number greater than 0``.

    Args:
        message: message of pydantic about one value.
    """
    for pattern, words in _WORDING:
        message = pattern.sub(words, message)
    return message
