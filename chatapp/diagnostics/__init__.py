"""Diagnostics of the connection: the page's Run test, the same from a shell (doctor), and fault injection (drills)."""
