"""What an encoder can do, what it no longer does, and the report of it."""
