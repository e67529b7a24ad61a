"""The configuration: keys, groups (YAML in conf/), composition and checks. Does not import torch."""
