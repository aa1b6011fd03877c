"""The test lab: the real server, real proxies and a real browser, and faults between them on demand."""
