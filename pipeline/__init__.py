"""The round loop and the people in it: coordinator, contributor, auditor, replays, command line."""
