"""The same commands on another machine, over ssh."""
