"""Records, signatures, the log, the lottery, verdicts. No torch, no ray, no numpy."""
