"""The machine that both programs run on: prepared, upgraded and put back by one command, `tweetlake-machine`.

Debian's own Python runs it, before anything is installed: the standard library has to be enough.
"""
