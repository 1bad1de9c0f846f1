"""Text to windows of tokens, and who gets which."""
