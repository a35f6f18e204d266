"""The portable exact search, in torch on the processor."""
