"""One file a mechanism, each with a `CARD`; see `attensor.catalogue`."""
