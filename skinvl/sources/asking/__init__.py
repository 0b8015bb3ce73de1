"""Many requests to a server, each paid for once."""
