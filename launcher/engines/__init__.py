"""How one run is executed: one module an engine, behind the protocol in `base`."""
