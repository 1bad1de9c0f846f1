"""How hard the log and its verifiers are to fool, measured: `make assurance`, docs/assurance.md."""
