"""The errors of the ingester, named by what the caller does about them.

TweetlakeError
├── Transient            try again later, with back-off
│   └── AnswerLost       the same, and X may have billed what did not arrive
├── NeedsOperator        pause and say why; probe slowly; nothing is dropped
├── KeyTaken             the object exists: compare SHA-256
├── ChecksumRefused      the bytes did not arrive as sent: hash the file again
├── SpoolFull            no room on the disk: wait, keep what is in memory
├── SpoolDamaged         a file is not what its checksum says: set it aside
├── NewerFormat          a newer program wrote it: end the process, touch nothing
├── SpoolBroken          the disk cannot be trusted: end the process
├── SpoolLocked          another process owns the spool: end the process
├── LoopDied             a loop that works for ever has ended: end the process
└── Stopping             the service is stopping: finish the step and return
"""


class TweetlakeError(Exception):
    """Base of everything the ingester raises on purpose. The message is a sentence for an operator."""


class Transient(TweetlakeError):
    """The other side did not answer, or answered that it is in trouble. Trying again may help."""


class AnswerLost(Transient):
    """A request was sent to X and no whole answer came back. X may have answered, and bills what it sent."""


class NeedsOperator(TweetlakeError):
    """The other side refuses: credentials, rights, a missing bucket. Trying again soon does not help."""


class KeyTaken(TweetlakeError):
    """A create-only PUT found an object under its key (412)."""


class ChecksumRefused(TweetlakeError):
    """S3 computed another checksum than the one sent (BadDigest)."""


class SpoolFull(TweetlakeError):
    """The disk or its quota is full. What was being written stays in memory until there is room."""


class SpoolDamaged(TweetlakeError):
    """A spool file cannot be read as what it claims to be."""


class NewerFormat(TweetlakeError):
    """A microbatch was written by a newer program. Going on without what it says would pay for it a second time."""


class SpoolBroken(TweetlakeError):
    """Writing or fsync failed for another reason than room: what the disk holds is unknown until the next start."""


class SpoolLocked(TweetlakeError):
    """Another process holds the lock of this spool folder."""


class LoopDied(TweetlakeError):
    """A loop that works for as long as the process has ended; its cause, if any, is the error that ended it."""


class Stopping(TweetlakeError):
    """The service is stopping; nothing new may be started."""
