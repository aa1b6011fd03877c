"""`make bench`: the product beside its peers, on one machine, in one table (docs/architecture.md, "What it costs")."""
