"""`make bench`: the product and its peers, on one machine, in one table (docs/architecture.md, "The comparison")."""
