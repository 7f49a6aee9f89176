"""Independent oracles: the rule that fills networks, recorded outputs, the original libraries."""
