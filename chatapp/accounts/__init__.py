"""Who may do what: passwords, sessions, the first run, and how much one person or address may ask for."""
