"""One file per kind: spec, status, report, checks, columns, verbs, and one Kind record. ``registry`` lists them all;
``parts`` holds what several kinds share, ``fields`` the grammar of single fields."""
