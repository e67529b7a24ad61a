"""How runs are executed: a folder an engine, behind the classes in `base`; `registry` knows them by their names."""
