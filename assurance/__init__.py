"""Measurements of how hard the log and its verifiers are to fool: `make assurance`, kept in docs/assurance.md."""
