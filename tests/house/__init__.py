"""Tests of the house itself: fences that hold, documents that are true, files that say what they own."""
