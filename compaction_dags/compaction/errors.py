"""What can go wrong in compaction that a caller must tell apart. Every error says what to do about it."""


class CompactionError(Exception):
    """Base of all errors of compaction."""


class UnknownFormatError(CompactionError):
    """A raw microbatch is written in a newer format than this release reads. Nothing of it was used."""
