"""The network, its arrays and the local steps. No ray."""
