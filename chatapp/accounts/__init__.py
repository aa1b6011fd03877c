"""Authentication and limits: passwords, sessions, the first run, the audit."""
