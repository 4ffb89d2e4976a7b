"""The exercises' checks, a module per notebook; the machinery is in ``explore.checks``."""
