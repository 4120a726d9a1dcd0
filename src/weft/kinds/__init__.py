"""One file per kind: spec, status, report, checks, columns, verbs, and one Kind record. ``registry`` lists them all."""
