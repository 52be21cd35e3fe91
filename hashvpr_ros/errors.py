"""Errors of the library: each message names the thing at fault, the reason and the remedy."""


class HashVprError(Exception):
    """Base of everything the library raises on purpose; its text is one sentence for a user."""


class EngineError(HashVprError):
    """A model file that is missing, foreign, damaged, or cannot run here."""


class MapError(HashVprError):
    """A map file that is missing, foreign, damaged, locked, or of another model or schema."""


class ConfigError(HashVprError):
    """A parameter, option or configuration file with a value that is not allowed."""


class DatasetError(HashVprError):
    """A folder, bag or ground truth that is missing, incomplete or malformed."""


class ImageError(HashVprError):
    """One image that cannot be decoded: unknown encoding, wrong step, no pixels, truncated."""


class CheckpointError(HashVprError):
    """A checkpoint that is missing, truncated, hostile, or does not fit the network."""


def reason_of(error: object) -> str:
    """The first line of what a foreign library's error says, at most 200 characters.

    Of a longer one the beginning and the end are kept: C++ libraries say the reason last.
    """
    try:
        text = str(error)
    except Exception:  # as of a class whose __str__ is broken
        text = ""
    line = (text.strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else f"{line[:60]} … {line[-137:]}"
