"""The configuration: keys, groups (YAML in conf/), composition and checks. No torch here."""
