"""First-stage search: lexical, dense, sparse, late interaction; and the mining of candidates."""
