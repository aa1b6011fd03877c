"""The load generator: one process, one epoll, the standard library alone, the same code for every peer.

`wire` makes and parses frames, `loop` moves bytes, `dialects` knows the peers' envelopes, `work` has the workloads.
"""
