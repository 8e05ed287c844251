"""Tables and progress displays."""
