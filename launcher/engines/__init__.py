"""Execution of runs: one folder per engine, behind the classes in `base`. `registry` finds engines by name."""
