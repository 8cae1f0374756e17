"""What can go wrong in compaction that a caller must tell apart. Every error says what to do about it."""


class CompactionError(Exception):
    """Base of all errors of compaction."""


class UnknownFormatError(CompactionError):
    """A raw microbatch is written in a newer format than this release reads. Nothing of it was used."""


class LakeUnreachableError(CompactionError):
    """S3 did not answer, or answered that it is in trouble. Nothing was lost; trying again may help."""


class LakeRefusedError(CompactionError):
    """S3 refuses: credentials, rights, the bucket. A person has to mend it."""


class RawMissingError(CompactionError):
    """Microbatches that were consumed before are no longer in raw. The hour was left as it is."""


class ConflictError(CompactionError):
    """Other writers were always ahead. Running the hour again is enough."""


class AccountingError(CompactionError):
    """Rows do not add up: a bug, found before anything was committed."""


class TransformError(CompactionError):
    """The user's transform cannot be loaded, failed, or returned what cannot be used."""


class HelperLostError(CompactionError):
    """A process that shared the work ended by itself. Nothing was committed; trying again may help."""


class UnexpectedError(CompactionError):
    """Something that nobody thought of, most likely because of what an hour holds. Nothing was committed of it."""


class StaleHoursError(CompactionError):
    """Raw hours wait to be compacted, so that what was collected is not known yet. Compact them first."""
